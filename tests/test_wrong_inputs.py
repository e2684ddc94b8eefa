"""Everything that a user can get wrong: one clear line, the right exit status, and no file changed.

Each row is a command, as typed after `python`, in a folder with networks, tables, pictures and a run.
"""

import dataclasses
import json
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import run_script, save_network
from soak import SMALL

import benchmark
import evaluate
import figures
import play
import q_agent_train
import trained_model_video_generation as film
from runtime.checkpoint import CheckpointFile, save_state_dict
from runtime.exits import UsageError, exit_with
from runtime.flags import parse

SCRIPTS = {
    "q_agent_train.py": q_agent_train.main,
    "evaluate.py": evaluate.main,
    "trained_model_video_generation.py": film.main,
    "play.py": play.main,
    "figures.py": figures.main,
    "benchmark.py": benchmark.main,
}
TRAIN, EVALUATE, FILM = "q_agent_train.py", "evaluate.py --state-dict", "trained_model_video_generation.py --state-dict"
SIZES = "--replay-size 1600 --replay-start-size 320 --num-envs 4 --device cpu --evaluate-every 0"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, finished: Path) -> Path:
    """Sound files and broken ones, another program's files, and a run that may be resumed."""
    folder = tmp_path_factory.mktemp("world")
    network = torch.load(save_network(folder / "net.pt"), weights_only=True)
    broken = network["values.bias"].clone()
    broken[1] = float("nan")
    save_state_dict(network | {"values.bias": broken}, folder / "nan.pt")
    flipped = bytearray((folder / "net.pt").read_bytes())
    flipped[3_000_000] ^= 1
    (folder / "flipped.pt").write_bytes(flipped)
    (folder / "notes.txt").write_text("mine\n")
    (folder / "scores.csv").write_text("game,mean\nbreakout,12\n")
    for name in ("models", "folder.csv", "folder.mp4", "folder.png"):
        (folder / name).mkdir()
    (folder / "models" / "model.pt").write_text("mine\n")
    shutil.copytree(finished, folder / "run")
    return folder


def versions(folder: Path) -> dict[Path, tuple[int, int, int]]:
    """Of every file and folder what changes when it is written; without the lock that a run leaves aside."""
    found = {}
    for path in folder.rglob("*"):
        now = path.lstat()
        if path.name != "lock":
            found[path] = (0, 0, 0) if path.is_dir() else (now.st_mtime_ns, now.st_size, now.st_ino)
    return found


Run = Callable[[str], tuple[int, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs a script in this process; gives its exit status and all that was printed, by the emulator too."""

    def run_here(command: str) -> tuple[int, str]:
        script, *arguments = shlex.split(command)
        monkeypatch.setattr(sys, "argv", [script, *arguments])
        monkeypatch.setenv("SDL_VIDEODRIVER", "dummy")
        capfd.readouterr()
        status = 0
        try:
            exit_with(SCRIPTS[script])
        except SystemExit as end:
            status = int(end.code or 0)
        output = capfd.readouterr()
        return status, output.out + output.err

    return run_here


ROWS = [
    # outputs: their suffix, their folder, and a run's own files
    (f"{EVALUATE} net.pt --csv net.pt", "net.pt must end in .csv"),
    (f"{EVALUATE} net.pt --csv run/games.csv", "games.csv is the name of a run's own file"),
    (f"{EVALUATE} net.pt --csv folder.csv", "folder.csv is a folder"),
    (f"{FILM} net.pt --frames models", "models exists and is not empty; name a new or an empty folder"),
    (f"{FILM} net.pt --frames missing/frames", "the folder missing of frames does not exist"),
    (f"{FILM} net.pt --frames ..", ".. exists and is not empty"),
    ("figures.py run --output notes.txt/curves", "cannot write to --output notes.txt/curves: "),
    # what a benchmark measures
    ("benchmark.py --figure new.png", "leave it out, or measure "),
    ("benchmark.py learning --game Pongg", 'unknown game "Pongg"'),
    ("benchmark.py learning --config quickk --run-dir hour", "--config must be a file or one of d3qn, "),
    # a run folder is new, empty, or a run
    (f"{TRAIN} --run-dir models", "models holds model.pt but no config.json or checkpoint.pt of a run"),
    (f"{TRAIN} --run-dir notes.txt {SIZES}", "cannot create a run in notes.txt: File exists"),
    (f"{TRAIN} --run-dir run --learning-rate 0.1", "run was started with --learning-rate 0.00025, not 0.1"),
    (f"{TRAIN} --run-dir run --game Pong", "run was started with --game RoadRunner, not Pong"),
    (f"{TRAIN} --run-dir run --steps 1000", "--steps must be at least the 1200 of run, got 1000"),
    # a network is whole and finite wherever one is read
    (f"{EVALUATE} net.pt nan.pt", "nan.pt has weights that are NaN or infinite"),
    (f"{EVALUATE} flipped.pt", "flipped.pt is damaged or was not written by this project"),
    (f"{EVALUATE} run/checkpoint.pt", "checkpoint.pt is not a state dict of this project"),
    # values outside their bounds, alone or with others
    (f"{TRAIN} --steps 1000000000000000000", "--steps must be at least 1 and at most 1000000000000000, got 10000"),
    (f"{TRAIN} --learning-rate -1", "--learning-rate must be above 0 and at most 1e+30, got -1"),
    (f"{TRAIN} --discount nan", "--discount must be at least 0 and at most 1, got nan"),
    (f"{TRAIN} --rmsprop-decay 1", "--rmsprop-decay must be at least 0 and below 1, got 1.0"),
    (f"{TRAIN} --minibatch-size 1000000", "--minibatch-size 1000000 needs about"),
    (f"{TRAIN} --replay-size 1601 --num-envs 32", "1,601 is not a multiple of --num-envs 32; the nearest is 1,600"),
    (f"{TRAIN} --replay-start-size 2000000", "--replay-start-size 2000000 must be at most --replay-size 1000000"),
    (f"{TRAIN} --steps 50000", "--replay-start-size 50000 must be below --steps 50000, or nothing is learned"),
    (f"{TRAIN} --epsilon-end 0.5 --epsilon-start 0.1", "--epsilon-end must be at most --epsilon-start 0.1, got 0.5"),
    (f"{TRAIN} --game Breakuot", 'unknown game "Breakuot"; did you mean Breakout?'),
    (f"{TRAIN} --device cuda:99", 'this machine has no device "cuda:99"'),
    ("figures.py embedding --state-dict net.pt --states 1e9", "--states must be "),
    ("figures.py scores run/games.csv", "games.csv has no column"),
    ("figures.py models", "models is not the folder of a run"),
    # who plays, and which film
    (f"{EVALUATE} net.pt --random --game Breakout", "who plays?"),
    ("evaluate.py --random", "--random needs the game: --random --game Breakout"),
    ("evaluate.py --random --game Pong --epsilon 0.1", "--epsilon 0.1"),
    (f"{EVALUATE} net.pt --game Breakout Pong", "--game Breakout Pong is for --random"),
    ("figures.py", "name one or more run folders"),
    (f"{FILM} net.pt --grid 65", "--grid must be "),
    (f"{FILM} net.pt --grid 4 --plain", "leave --episodes and --plain out"),
    (f"{FILM} net.pt --grid 2 --from 12 --epsilon 1 --seed 16", "game 1 ends after 8.3 seconds of play"),
]


@pytest.mark.parametrize(("command", "message"), ROWS, ids=[row[0] for row in ROWS])
def test_it_is_one_clear_line_and_no_file_changes(
    world: Path, monkeypatch: pytest.MonkeyPatch, run: Run, command: str, message: str
) -> None:
    monkeypatch.chdir(world)
    before = versions(world)
    status, output = run(command)
    assert len(output.splitlines()) == 1, output
    assert output.startswith("error: ")
    assert message in output
    assert status == 2
    assert versions(world) == before


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (f"{TRAIN} --learningrate 1", "--learning-rate FLOAT"),
        (f"{TRAIN} Pong", "Pong"),
        (f"{TRAIN} --seed", "--seed"),
        (f"{TRAIN} --steps 1.5", "invalid literal for int() with base 10: '1.5'"),
        ("figures.py value", "--state-dict"),
        ("benchmark.py part", "'parts'"),
    ],
)
def test_a_wrong_flag_is_named_or_the_one_that_is_meant(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, run: Run, command: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    status, output = run(command)
    assert (status, message in output) == (2, True), output
    assert not [*tmp_path.iterdir()]


def edit(**changes: object) -> Callable[[Path], object]:
    """Change values in config.json."""

    def attack(run: Path) -> None:
        file = run / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return attack


def write(text: str, *names: str) -> Callable[[Path], object]:
    return lambda run: [(run / name).write_text(text) for name in names]


def remove(*names: str) -> Callable[[Path], object]:
    def attack(run: Path) -> None:
        for name in names:
            (run / name).unlink()

    return attack


def change_checkpoint(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], object]:
    """Write the newest checkpoint again after a change; as another version, or another run, would have."""

    def attack(run: Path) -> None:
        checkpoints = CheckpointFile(run)
        state, _ = checkpoints.load()
        change(state)
        checkpoints.save(state)

    return attack


BOTH = ("checkpoint.pt", "checkpoint.previous.pt")
ATTACKS = [
    (remove("config.json"), 2, "but no config.json or checkpoint.pt of a run; restore them"),
    (
        edit(learning_rate=1.0),
        2,
        "run was started with --learning-rate 0.00025, not 1.0; to resume it, leave",
    ),
    (edit(game="Pong"), 2, "run was started with --game RoadRunner, not Pong"),
    (edit(num_envs=257), 2, "--num-envs must be at least 1 and at most 256, got 257"),
    (write('{"game": "Pong"}', "config.json"), 2, "unknown keys (actions, adam_eps"),
    (edit(teacher="me"), 2, "config.json has missing or unknown keys (teach"),
    (write("[" * 200_000, "config.json"), 2, "config.json is not a run's config"),
    (write("[]", "config.json"), 2, "config.json is not a run's config"),
    (change_checkpoint(lambda state: state["config"].update(seed=1)), 2, "run was started with --seed 1, not 0"),
    (change_checkpoint(lambda state: state["config"].update(teacher=1)), 1, "does not fit this version (TypeError("),
    (change_checkpoint(lambda state: state.pop("lengths")), 1, "does not fit this version (KeyError('lengths'))"),
    (
        change_checkpoint(lambda state: state["training"]["agent"].update(online=torch.zeros(9))),
        1,
        "does not fit this version",
    ),
    (
        change_checkpoint(lambda state: state["training"]["agent"]["online"].fill_(float("nan"))),
        1,
        "has weights that are NaN or infinite",
    ),
    (write("x", *BOTH), 1, "run has no usable checkpoint (checkpoint.pt: damaged;"),
    (remove(*BOTH), 2, "run holds best.pt but no config.json or checkpoint.pt"),
    (remove("games.csv"), 2, "games.csv has lost rows"),
    (write("game\n1\n", "games.csv"), 2, "games.csv has lost rows"),
]


@pytest.mark.parametrize(("attack", "status", "message"), ATTACKS)
def test_a_run_that_was_tampered_with_is_refused_and_stays_as_it_is(
    tmp_path: Path,
    finished: Path,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    attack: Callable[[Path], object],
    status: int,
    message: str,
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    attack(tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    before = versions(tmp_path)
    ended, output = run(f"{TRAIN} --run-dir run --steps 1600")
    *others, line = [line for line in output.splitlines() if line]
    assert all(other.startswith("Playing the action log") for other in others)
    assert line.startswith("error: ")
    assert message in line, output
    assert ended == status
    assert versions(tmp_path) == before


def test_what_may_change_changes(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, run: Run) -> None:
    """With other minutes, another spelling of the game and without TensorBoard's files it is the same run."""
    shutil.copytree(finished, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    edit(checkpoint_minutes=10, game="road_runner")(tmp_path / "run")
    for events in (tmp_path / "run").glob("events*"):
        events.unlink()
    status, output = run(f"{TRAIN} --run-dir run --steps 1280 --save-every-games 7")
    assert status == 0, output
    rows = [(folder / "games.csv").read_text().splitlines() for folder in (finished, tmp_path / "run")]
    assert rows[1][: len(rows[0])] == rows[0]
    assert len([*(tmp_path / "run").glob("events*")]) == 1


def test_a_notebook_is_told_the_same() -> None:
    for changes, message in (
        ({"steps": "100"}, "^--steps must be a whole number, got '100'$"),
        ({"deterministic": 1}, "^--deterministic must be True or False, got 1$"),
        ({"webhook": b"https://host/secret"}, "^--webhook must be text$"),
        ({"replay_size": 7, "num_envs": 1}, "--replay-size 7 is too small to sample from"),
    ):
        with pytest.raises(UsageError, match=message):
            q_agent_train.train(dataclasses.replace(SMALL, **changes))


def test_a_whole_number_may_be_typed_as_in_a_notebook() -> None:
    config = parse(q_agent_train.Config, arguments=["--steps", "1e6", "--learning-rate", "1e-5", "--seed", "3"])
    assert (config.steps, config.learning_rate, config.seed) == (1_000_000, 1e-5, 3)
    assert type(config.steps) is int


def test_help_has_every_flag_with_its_sentence() -> None:
    result = run_script("q_agent_train.py", "--help", COLUMNS="200")
    assert result.returncode == 0
    for field in dataclasses.fields(q_agent_train.Config):
        assert f"--{field.name.replace('_', '-')}" in result.stdout
    assert "Step size of the optimizer, constant in the paper" in result.stdout
    before = result.stdout[: result.stdout.index("--seed INT")]
    assert before.count("python q_agent_train.py") == 2
