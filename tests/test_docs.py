"""The pages: every link leads somewhere, every name exists, every command is one that its script takes."""

import importlib
import re
import shlex
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
import tyro
from conftest import ROOT, run_script

import evaluate
import figures
import play
import q_agent_train
import search
import sweep
import trained_model_video_generation as film
from benchmarks.common import BenchmarkConfig
from runtime.flags import parse

PAGES = [*ROOT.glob("*.md"), ROOT / "pretrained" / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
KINDS: dict[str, type] = {
    "q_agent_train.py": q_agent_train.Config,
    "evaluate.py": evaluate.EvaluationConfig,
    "trained_model_video_generation.py": film.FilmConfig,
    "play.py": play.PlayConfig,
    "benchmark.py": BenchmarkConfig,
    "sweep.py": sweep.SweepConfig,
    "search.py": search.SearchConfig,
}
OTHER_PROGRAMS = {".", "pip", "export", "ray", "tensorboard"}

# What cannot run in a test: it needs a display, packages that a user installs first, a GPU, a chat or a cluster.
ONLY_PARSED = ("play.py", "benchmark.py", "sweep.py", "search.py", "aggregate", "cuda", "bfloat16", "--webhook")
SMALL = [
    *("--steps", "640", "--num-envs", "2", "--replay-size", "3200", "--replay-start-size", "320"),
    *("--minibatch-size", "8", "--evaluate-every", "320", "--evaluation-games", "2"),
]
LIMITS: dict[str, Iterable[str]] = {
    "q_agent_train.py": SMALL,
    "evaluate.py": ("--games", "2"),
    "trained_model_video_generation.py": ("--epsilon", "1", "--from", "5"),  # a random agent's game is short
    "--grid": ("--grid", "2"),
    "embedding": ("--states", "90"),
}


def without_code(page: Path) -> str:
    return re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(*pages: str) -> Iterator[list[str]]:
    """The commands in the sh blocks of pages, as lists of words."""
    for page in pages:
        for block in re.findall(r"```sh\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").replace("&&", "\n").splitlines():
                if words := shlex.split(line, comments=True):
                    yield words


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r"^#+ (.*)$", without_code(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    text = without_code(page)
    for target in [*re.findall(r"\]\(([^)\s]+)\)", text), *re.findall(r'src="([^"]+)"', text)]:
        if target.startswith("http"):
            assert re.fullmatch(r"https://[\w.-]+\.\w+(/\S*)?", target), target
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_that_the_code_names_exists() -> None:
    code = [*ROOT.glob("*.py"), *ROOT.glob("[a-z]*/*.py"), *ROOT.glob("configs/*.yaml")]
    named = {page for file in code for page in re.findall(r"\bdocs/[\w/]+\.md\b", file.read_text(encoding="utf-8"))}
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_every_picture_is_on_a_page() -> None:
    shown = "".join(page.read_text(encoding="utf-8") for page in PAGES)
    assert [path.name for path in (ROOT / "docs").glob("*.[pg][ni][gf]") if path.name not in shown] == []


def defines(file: str, name: str) -> bool:
    """Whether a module has this name: `function`, `Class.method`, a constant or a field."""
    owner: object = importlib.import_module(file.removesuffix(".py").replace("/", "."))
    for part in name.split("."):
        if not hasattr(owner, part):
            return part in getattr(owner, "__annotations__", {})  # a field without a default
        owner = getattr(owner, part)
    return True


@pytest.mark.parametrize("page", ["README.md", "docs/how_it_works.md", "docs/fidelity.md"])
def test_every_name_of_the_code_exists(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = [(file, name) for file, name in re.findall(r"`([\w/]+\.py)::([\w.]+)`", text)]
    names += [(file, name) for name, file in re.findall(r"`([\w.]+)`\s+in\s+`([\w/]+\.py)`", text)]
    assert len(names) > 10
    assert [f"{file}::{name}" for file, name in names if not defines(file, name)] == []
    lines = {line.strip() for file, _ in names for line in (ROOT / file).read_text(encoding="utf-8").splitlines()}
    quoted = "".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    assert [line for line in quoted.splitlines() if line not in lines] == []
    assert [file for file in re.findall(r"`([\w/]+\.py)[`:]", text) if not (ROOT / file).exists()] == []


@pytest.mark.parametrize("command", [*commands("README.md", "docs/guide.md")], ids=" ".join)
def test_every_command_is_one_that_its_script_takes(command: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    program, *arguments = command
    if program == "make":
        assert f"\n{arguments[0]}:" in (ROOT / "Makefile").read_text()
    elif program in OTHER_PROGRAMS:
        assert program != "pip" or (ROOT / arguments[-1]).exists()
    else:
        script, *flags = arguments
        assert program == "python"
        assert [word for word in flags if word.startswith("pretrained/") and not (ROOT / word).exists()] == []
        assert "--config" not in flags or (ROOT / "configs" / f"{flags[flags.index('--config') + 1]}.yaml").exists()
        if script == "figures.py":
            words = flags if flags[0] in figures.COMMANDS else ["curves", *flags]
            tyro.extras.subcommand_cli_from_dict(figures.COMMANDS, args=words)
        else:
            monkeypatch.setattr(sys, "argv", [script, *flags])
            parse(KINDS[script])


@pytest.mark.docs
@pytest.mark.slow
def test_the_pictures_of_how_it_works_can_be_drawn_again(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "docs.pictures", str(tmp_path), "640"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=600)
    drawn = {path.name for path in tmp_path.iterdir()}
    assert drawn == {"state.png", "transition.png", "q_values.png", "target_network.png"}
    assert drawn <= {path.name for path in (ROOT / "docs").iterdir()}


def run_small(words: list[str], folder: Path) -> None:
    """Run a script as written, but for the limits; a run that is there already is made a little longer."""
    resumes = "--run-dir" in words and "--config" not in words
    limits = [flag for part in words for flag in LIMITS.get(part, ())]
    result = run_script(*words, *(["--steps", "700"] if resumes else limits), cwd=folder, timeout=600)
    assert result.returncode == 0, (words, result.stderr)
    assert result.stdout, words


@pytest.mark.docs
@pytest.mark.slow
def test_the_commands_of_readme_and_guide_run_as_written(tmp_path: Path) -> None:
    """One of each kind, in a folder that has the clone's files; what would take more than a minute is made small."""
    for path in ROOT.iterdir():
        if not path.name.startswith(".") and path.name not in ("runs", "breakout.mp4"):
            (tmp_path / path.name).symlink_to(path)
    done = set[str]()
    for _, *words in (each for each in commands("README.md", "docs/guide.md") if each[0] == "python"):
        text, kind = " ".join(words), " ".join([*words[:2], *(word for word in words if word.startswith("--"))])
        if kind not in done and not any(part in text for part in ONLY_PARSED):
            done.add(kind)
            run_small(words, tmp_path)
    made = {path.name for path in tmp_path.rglob("*") if not path.is_symlink()}
    assert {"best.pt", "breakout.mp4", "breakout.gif", "scores.csv", "scores.png", "curves-breakout.png"} <= made


def test_the_readme_is_read_in_one_sitting() -> None:
    assert 1_100 <= len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1_400
