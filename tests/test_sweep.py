"""What a sweep and a search are made of, without a cluster; on one they run in tests/test_cluster.py."""

import csv
import fcntl
import os
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT, refused
from soak import SMALL

import figures
import search
import sweep
from cluster.runs import held, progress_of
from config import NOT_KEPT, RunConfig, words_of_file
from machine.exits import UsageError
from machine.flags import parse
from machine.tables import GAME_COLUMNS
from q_agent_train import Config, train
from showing.figures_tables import read_bars
from sweep import SweepConfig


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
        ("--run-dir x --games Pong Brekout", "unknown game 'Brekout': did you mean Breakout"),
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
    with held(folder, "sweep.json", {"games": ["Pong"], "steps": 5}, ("steps",)):
        pass
    with held(folder, "sweep.json", {"games": ["Pong"], "steps": 9}, ("steps",)):
        pass
    with pytest.raises(UsageError, match=r"was begun with --games \['Pong'\], not --games \['Qbert'\]"):
        held(folder, "sweep.json", {"games": ["Qbert"], "steps": 9}, ("steps",)).__enter__()
    with pytest.raises(UsageError, match=r"is neither new nor empty, and holds no search\.json"):
        held(folder, "search.json", {}, ()).__enter__()
    with open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="in use by another process"):
            held(folder, "sweep.json", {"games": ["Pong"], "steps": 9}, ("steps",)).__enter__()
    (folder / "sweep.json").write_text("{")
    with pytest.raises(UsageError, match="cannot be used"):
        held(folder, "sweep.json", {"games": ["Pong"], "steps": 9}, ("steps",)).__enter__()
    with pytest.raises(UsageError, match="cannot be used"):
        held(Path("/proc/sweep"), "sweep.json", {}, ()).__enter__()


def test_how_far_a_run_is_stands_at_the_end_of_its_table(tmp_path: Path) -> None:
    assert progress_of(tmp_path) == (0, 0, None)
    with open(tmp_path / "games.csv", "w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(GAME_COLUMNS)
        file.flush()
        assert progress_of(tmp_path) == (0, 0, None)
        for number in range(1, 2_001):
            table.writerow((number, 10 * number, 40 * number, float(number), 10, 0.5, 1.5))
            file.flush()
            if number in (1, 99, 2_000):
                first = max(number - 99, 1)
                assert progress_of(tmp_path) == (10 * number, number, (first + number) / 2)


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
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()):
        time.sleep(0.05)
    child = int((tmp_path / "pid").read_text())
    time.sleep(1)
    os.kill(child, 0)  # while its parent lives, so does it
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    began = time.monotonic()
    while Path(f"/proc/{child}").exists() and time.monotonic() - began < 10:
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
