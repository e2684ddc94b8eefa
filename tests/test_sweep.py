"""What a sweep and a search are made of, without a cluster; on one they run in tests/test_cluster.py."""

import csv
import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, refused, save_network
from soak import SMALL

import figures
import search
import sweep
from cluster.board import Row
from cluster.jobs import Ended, Job
from cluster.runs import held
from machine.exits import UsageError
from machine.flags import parse
from machine.run_config import NOT_KEPT, RunConfig, words_of_file
from machine.tables import GAME_COLUMNS, TRAINING_COLUMNS
from q_agent_train import Config, train
from showing.figures_aggregate import read_sweep
from showing.figures_tables import read_bars
from sweep import Sweep, SweepConfig


def test_a_sweep_is_every_game_with_every_seed_and_value() -> None:
    config = SweepConfig(games=("Pong", "ms_pacman"), seeds=2, steps=70_000, discount=0.5)
    runs = config.runs()
    assert [*runs] == ["pong-seed0", "pong-seed1", "ms_pacman-seed0", "ms_pacman-seed1"]
    last, _ = runs["ms_pacman-seed1"]
    assert (last.rom, last.seed, last.steps, last.discount) == ("ms_pacman", 1, 70_000, 0.5)
    varied = replace(config, games=("Pong",), seeds=1, vary=("learning-rate", "0.0001", "1e-3")).runs()
    assert {name: (run.learning_rate, value) for name, (run, value) in varied.items()} == {
        "pong-seed0-learning-rate-0.0001": (1e-4, "0.0001"),
        "pong-seed0-learning-rate-1e-3": (1e-3, "1e-3"),
    }
    switched = replace(config, games=("Pong",), seeds=1, vary=("double", "true", "false")).runs()
    assert [run.double for run, _ in switched.values()] == [True, False]
    assert len(replace(config, games=("paper49",), seeds=1).runs()) == 49


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ("--run-dir x --seeds 2", "--games is missing"),
        ("--games Pong", "--run-dir is missing"),
        ("--run-dir x --games Pong Brekout", 'unknown game "Brekout"; did you mean Breakout?'),
        ("--run-dir x --games Pong pong", "--games: Pong comes twice"),
        ("--run-dir x --games Pong --seeds 0", "--seeds 0 cannot be"),
        ("--run-dir x --games Pong --vary learning-rate", "--vary needs a flag and two or more values"),
        ("--run-dir x --games Pong --vary learning-rate 1 1", "--vary needs a flag and two or more values"),
        ("--run-dir x --games Pong --vary seed 1 2", "--vary seed: runs of one sweep all have the same"),
        ("--run-dir x --games Pong --vary learnin-rate 1 2", "--vary: --learnin-rate is no flag here; did you mean"),
        ("--run-dir x --games Pong --vary learning-rate 1 x", "--vary: --learning-rate: 'x' is not a number"),
        ("--run-dir x --games Pong --vary discount 0.5 2", "--discount 2.0 cannot be"),
        ("--run-dir x --games Pong --steps 50000", "nothing would be learned"),
        ("--run-dir x --games Pong --config nosuch", "--config nosuch is neither a file nor"),
        ("--run-dir x --games Pong --cpus-per-run 0", "--cpus-per-run 0.0 cannot be"),
        ("--run-dir x --games Pong", "Ray is not installed: pip install -r requirements-cluster.txt"),
    ],
)
def test_what_cannot_be_swept_is_one_line(
    flags: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert words in refused(monkeypatch, capfd, sweep.main, *flags.split())


def test_without_its_packages_each_script_says_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for package in ("optuna", "rliable"):
        monkeypatch.setitem(sys.modules, package, None)
    flags = ("--games", "Pong", "--run-dir", str(tmp_path / "search"), "--over", "discount=0.9..0.99")
    assert "Optuna is not installed: pip install" in refused(monkeypatch, capfd, search.main, *flags)
    error = refused(monkeypatch, capfd, figures.main, "aggregate", str(tmp_path))
    assert "rliable is not installed: pip install -r requirements-cluster.txt" in error


OTHER: dict[str, Any] = {  # than every default
    **{"game": "Pong", "seed": 3, "num_envs": 8, "frames_per_step": 3, "actions": ("FIRE", "LEFT"), "double": True},
    **{"sticky_actions": 0.25, "network": "nips2013", "dueling": True, "separable": True, "initial_weights": "lecun"},
    **{"initial_state_dict": Path("a b/best.pt"), "replay_size": 800, "replay_start_size": 80, "prioritized": True},
    **{"priority_exponent": 0.5, "importance_exponent": 1e-7, "importance_steps": 9, "minibatch_size": 16},
    **{"update_frequency": 5, "updates_per_period": 2, "target_network": False, "target_update_frequency": 7},
    **{"reset_head_every": 11, "optimizer": "adam", "learning_rate": 1 / 3, "learning_rate_end": 1e-12},
    **{"learning_rate_steps": 13, "rmsprop_decay": 0.5, "rmsprop_minimum": 2.0, "discount": 0.1, "epsilon_start": 0.9},
    **{"epsilon_end": 0.2, "epsilon_decay_steps": 17, "evaluate_every": 0, "evaluation_games": 2, "games": 19},
    **{"deterministic": True, "steps": 10**7, "device": "cpu", "save_every_games": 0, "checkpoint_minutes": 0.1},
}


def test_the_words_of_a_config_and_its_yaml_mean_that_config(tmp_path: Path) -> None:
    config = RunConfig(**OTHER)
    changed = {field.name for field in fields(RunConfig) if getattr(config, field.name) != field.default}
    assert changed | {*NOT_KEPT} == {field.name for field in fields(RunConfig)}
    assert parse(RunConfig, words=config.words()) == config
    assert RunConfig("Pong").words() == ["--game", "Pong"]
    (tmp_path / "best.yaml").write_text("\n".join(config.yaml_lines()))
    run_only: dict[str, Any] = {
        "games": 15_000,
        "steps": 50_000_000,
        "device": "auto",
        "save_every_games": 50,
        "checkpoint_minutes": 5.0,
    }
    parsed = parse(RunConfig, words=["--game", "Pong", "--seed", "3", *words_of_file(str(tmp_path / "best.yaml"))])
    assert parsed == replace(config, **run_only)


def test_a_folder_belongs_to_one_sweep_and_one_process(tmp_path: Path) -> None:
    folder = tmp_path / "sweep"

    def hold(name: str = "sweep.json", where: Path = folder, **described: Any) -> None:
        with held(where, name, {"games": ["Pong"], "steps": 9, "device": "cpu"} | described, may_grow="steps"):
            assert json.loads((where / name).read_text())["steps"] == described.get("steps", 9)

    folder.mkdir()
    (folder / ".sweep.json.tmp").touch()  # killed while it began
    hold(steps=5)
    hold(device="cuda")
    with pytest.raises(UsageError, match=r"--steps 5 would shorten .*, begun with 9; it may grow"):
        hold(steps=5)
    with pytest.raises(UsageError, match=r"was begun with --games \['Pong'\], not \['Qbert'\]"):
        hold(games=["Qbert"])
    with pytest.raises(UsageError, match=r"is neither new nor empty, and holds no search\.json"):
        hold("search.json")
    with open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="in use by another process"):
            hold()
    for broken in ("{", "[]"):
        (folder / "sweep.json").write_text(broken)
        with pytest.raises(UsageError, match="cannot be used"):
            hold()
    with pytest.raises(UsageError, match="cannot be used"):
        hold(where=Path("/proc/sweep"))


def test_how_far_a_run_is_stands_at_the_end_of_its_tables(tmp_path: Path) -> None:
    row = Row("pong-seed0", "pong", 0, state="training")
    row.look(tmp_path, 30_000)
    assert (row.agent_steps, row.games, row.mean_of_100, row.steps_per_second) == (0, 0, None, None)
    with open(tmp_path / "games.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(GAME_COLUMNS)
        file.flush()
        row.look(tmp_path, 30_000)
        assert (row.agent_steps, row.mean_of_100) == (0, None)
        for number in range(1, 2_001):
            table.writerow((number, 10 * number, 40 * number, float(number), 10, 0.5, 1.5))
            file.flush()
            if number in (1, 99, 2_000):
                row.look(tmp_path, 30_000)
                assert (row.agent_steps, row.games) == (10 * number, number)
                assert row.mean_of_100 == (max(number - 99, 1) + number) / 2
    values = [22_000, *[""] * (len(TRAINING_COLUMNS) - 2), 40.0]  # no game has ended since 20,000
    (tmp_path / "training.csv").write_text(",".join(TRAINING_COLUMNS) + "\n" + ",".join(map(str, values)) + "\n")
    row.look(tmp_path, 30_000)
    assert (row.agent_steps, row.steps_per_second, row.seconds_left) == (22_000, 40.0, 200.0)


class Crew:
    """Stands in for the workers: takes jobs, and says that they have ended."""

    def __init__(self) -> None:
        self.jobs: list[Job] = []

    def add(self, job: Job, *, first: bool = False) -> None:
        self.jobs.insert(0 if first else len(self.jobs), job)


def test_a_run_is_trained_then_scored_and_not_again(tmp_path: Path) -> None:
    config = SweepConfig(games=("Pong",), seeds=2, steps=70_000)

    def begun(config: SweepConfig) -> tuple[Sweep, Any]:
        work, crew = Sweep(config, tmp_path, config.runs()), Crew()
        work.begin(crew)  # type: ignore[arg-type]
        return work, crew

    work, crew = begun(config)
    assert [(job.run, job.doing) for job in crew.jobs] == [("pong-seed0", "training"), ("pong-seed1", "training")]
    assert parse(RunConfig, words=crew.jobs[1].flags) == config.runs()["pong-seed1"][0].__class__(
        **{**vars(config.runs()["pong-seed1"][0]), "run_dir": tmp_path / "pong-seed1"}
    )
    run = tmp_path / "pong-seed0"
    run.mkdir()
    for name in ("best.pt", "model.pt"):
        save_network(run / name, "pong", 6)
    (run / "config.json").write_text(json.dumps({"steps": 70_000}))
    work.take(Ended(crew.jobs.pop(0), True), crew)
    work.take(Ended(crew.jobs.pop(1), False, "error: why"), crew)
    assert (work.rows["pong-seed1"].state, work.rows["pong-seed1"].message) == ("failed", "error: why")
    (job,) = crew.jobs
    assert (job.doing, job.flags[1:3]) == ("evaluating", [str(run / "best.pt"), str(run / "model.pt")])
    assert job.flags[-2:] == ["--games", str(config.evaluation_games)]
    scores = "".join(f"{run / name},pong,{mean}\n" for name, mean in (("best.pt", 3), ("model.pt", 2)))
    (tmp_path / "scores" / "pong-seed0.csv").write_text("state_dict,game,mean\n" + scores)
    work.take(Ended(job, True), crew)
    with open(tmp_path / "scores.csv", newline="") as file:
        rows = [(row["network"], row["seed"], row["mean"]) for row in csv.DictReader(file)]
    assert rows == [("best", "0", "3"), ("model", "0", "2")]
    again, crew = begun(config)
    assert again.rows["pong-seed0"].state == "finished"
    assert [job.run for job in crew.jobs] == ["pong-seed1"]  # what failed is tried again
    _, crew = begun(replace(config, steps=80_000))
    assert [job.run for job in crew.jobs] == ["pong-seed0", "pong-seed1"]
    assert not (tmp_path / "scores" / "pong-seed0.csv").exists()


def lives(process: int) -> bool:
    """Whether a process has not ended, waited for or not."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("obeys", [True, False])
def test_a_guarded_script_ends_soon_after_its_parent(tmp_path: Path, obeys: bool) -> None:
    script = tmp_path / "script.py"
    handled = "" if obeys else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script.write_text(
        f"import os, signal, sys, time\n{handled}open(sys.argv[1], 'w').write(str(os.getpid()))\ntime.sleep(60)\n"
    )
    start = "import subprocess, sys, os, time; subprocess.Popen([sys.executable, '-m', 'cluster.guarded', "
    start += f"str(os.getpid()), {str(script)!r}, {str(tmp_path / 'pid')!r}]); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT)
    end = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        assert time.monotonic() < end
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    time.sleep(1)
    assert lives(child)  # while its parent does
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    began = time.monotonic()
    while lives(child) and time.monotonic() - began < 10:
        time.sleep(0.1)
    assert (time.monotonic() - began < 4) == obeys
    assert time.monotonic() - began < 10


def test_no_state_dict_is_numbered_when_none_is_asked_for(tmp_path: Path) -> None:
    train(Config(**{**vars(SMALL), "steps": 1_000, "save_every_games": 0, "run_dir": tmp_path / "run"}))
    assert (tmp_path / "run" / "games.csv").read_text().count("\n") > 3
    assert not [*(tmp_path / "run" / "state_dicts").iterdir()]
    assert (tmp_path / "run" / "model.pt").exists()


def test_of_a_sweep_the_best_networks_are_drawn_else_the_newest_with_their_intervals(tmp_path: Path) -> None:
    rows = [("a/best.pt", "best", 10, 8, 13), ("a/model.pt", "model", 9, 9, 9), ("b/model.pt", "model", 5, 4, 6)]
    lines = ["state_dict,game,mean,network,interval_low,interval_high"]
    lines += [f"{path},breakout,{mean},{network},{low},{high}" for path, network, mean, low, high in rows]
    (tmp_path / "scores.csv").write_text("\n".join(lines) + "\n")
    ((bars,), _) = read_bars(tmp_path / "scores.csv")
    assert [bar.name for bar in bars.measured] == ["a/best.pt", "b/model.pt"]
    assert [tuple(round(100 / 30.1 * (score - 1.7)) for score in (10, 8, 13))] == [
        tuple(round(value) for value in bars.measured[0][1:])
    ]


@pytest.mark.cluster  # rliable
def test_runs_without_a_score_and_scores_of_other_games_than_the_papers_are_said(tmp_path: Path) -> None:
    asked = {"games": ["Pong"], "seeds": 2, "vary": ["learning-rate", "0.1", "0.2"]}
    (tmp_path / "sweep.json").write_text(json.dumps(asked))
    rows = []
    for run, seed, value in (("a", 0, "0.1"), ("b", 1, "0.1"), ("c", 0, "0.2")):
        rows.append(f"{tmp_path / run / 'model.pt'},pong,2,-20,model,{seed},{value}\n")
        (tmp_path / run).mkdir()
        (tmp_path / run / "config.json").write_text('{"game": "pong"}')
        (tmp_path / run / "games.csv").write_text(",".join(GAME_COLUMNS) + "\n1,900,3600,-21,900,1.0,2.5\n")
    (tmp_path / "scores.csv").write_text("state_dict,game,games,mean,network,seed,value\n" + "".join(rows))
    _, notes = read_sweep(tmp_path)
    assert f"{tmp_path}: without a score yet: Pong seed 1 0.2" in notes
    assert f"{tmp_path}: scores of 2 games; the paper's protocol has 30" in notes
