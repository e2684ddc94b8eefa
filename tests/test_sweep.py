"""What a sweep and a search are made of, without a cluster; on one they run in tests/test_cluster.py."""

import fcntl
import json
import signal
import subprocess
import sys
import time
from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import ROOT, refused, wait_for

import figures
import search
import sweep
from cluster.settings import locked
from runtime.exits import UsageError
from runtime.run_config import NOT_KEPT, RunConfig, with_file
from sweep import SweepConfig
from viewing.figures_tables import read_bars


def test_a_sweep_is_every_game_with_every_value() -> None:
    config = SweepConfig(games=("Pong", "ms_pacman", "pong"), seeds=2, steps=70_000, discount=0.5)
    assert [(run.rom, run.steps, run.discount) for run in config.settings()] == [
        ("pong", 70_000, 0.5),
        ("ms_pacman", 70_000, 0.5),
    ]
    assert config.name(SimpleNamespace(config={"game": "pong", "seed": 1, "stages": 1})) == "pong-seed1"
    varied = replace(config, games=("Pong",), vary=("--learning-rate", "0.0001", "1e-3"))
    assert [run.learning_rate for run in varied.settings()] == [1e-4, 1e-3]
    trial = SimpleNamespace(config={"game": "pong", "seed": 0, "learning_rate": "1e-3"})
    assert varied.name(trial) == "pong-seed0-learning-rate-1e-3"
    assert [run.double for run in replace(varied, vary=("double", "true", "false")).settings()] == [True, False]
    assert len(replace(config, games=("paper49",)).roms) == 49


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--run-dir x --seeds 2", "--games is missing"),
        ("--games Pong", "--run-dir is missing"),
        ("--run-dir x --games Pong Brekout", 'unknown game "Brekout"; did you mean Breakout?'),
        ("--run-dir x --games Pong --seeds 0", "--seeds must be at least 1 and at most 1000, got 0"),
        ("--run-dir x --games Pong --vary learning-rate 1 1", "--vary needs a flag and two or more values"),
        ("--run-dir x --games Pong --vary seed 1 2", "--vary seed is the same for all runs of a sweep"),
        ("--run-dir x --games Pong --vary discount 0.5 2", "--discount must be at least 0 and at most 1, got 2.0"),
        ("--run-dir x --games Pong --steps 50000", "or nothing is learned"),
        ("--run-dir x --games Pong --config nosuch", "--config must be a file or one of"),
        ("--run-dir x --games Pong --cpus-per-run 0", "--cpus-per-run must be above 0"),
        ("--run-dir x --games Pong", "Ray is not installed: pip install -r requirements-cluster.txt"),
    ],
)
def test_a_wrong_sweep_is_one_line(
    flags: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "ray", None)
    assert message in refused(monkeypatch, capfd, sweep.main, *flags.split())
    assert not [*tmp_path.iterdir()]


def test_without_its_packages_each_script_says_how_to_install_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for package in ("ray", "rliable"):
        monkeypatch.setitem(sys.modules, package, None)
    flags = ("--games", "Pong", "--run-dir", str(tmp_path / "search"), "--over", "discount=0.9..0.99")
    assert "Ray is not installed: pip install" in refused(monkeypatch, capfd, search.main, *flags)
    error = refused(monkeypatch, capfd, figures.main, "aggregate", str(tmp_path))
    assert "rliable is not installed: pip install -r requirements-cluster.txt" in error


OTHER: dict[str, Any] = {  # than every default
    **{"game": "Pong", "seed": 3, "num_envs": 8, "frames_per_step": 3, "actions": ("FIRE", "LEFT"), "double": True},
    **{"sticky_actions": 0.25, "network": "nips2013", "dueling": True, "separable": True, "initial_weights": "lecun"},
    **{"initial_state_dict": Path("a b/best.pt"), "replay_size": 800, "replay_start_size": 80, "prioritized": True},
    **{"priority_exponent": 0.5, "importance_exponent": 1e-7, "importance_steps": 9, "minibatch_size": 16},
    **{"update_frequency": 5, "gradient_steps": 2, "target_network": False, "target_update_frequency": 7},
    **{"n_steps": 3, "n_steps_end": 2, "n_steps_steps": 21, "distributional": "qr", "precision": "bfloat16"},
    **{"adam_epsilon": 0.001, "reset_head_every": 11, "optimizer": "adam", "learning_rate": 1 / 3, "discount": 0.1},
    **{"learning_rate_end": 1e-12, "learning_rate_steps": 13, "rmsprop_decay": 0.5, "min_squared_gradient": 2.0},
    **{"epsilon_start": 0.9, "epsilon_end": 0.2, "epsilon_decay_steps": 17, "evaluate_every": 0, "evaluation_games": 2},
    "deterministic": True,
}
OF_RUN: dict[str, Any] = {"games": 9, "steps": 70, "device": "cpu", "save_every_games": 0, "checkpoint_minutes": 0.1}


def test_the_files_of_a_config_mean_that_config(tmp_path: Path) -> None:
    config = RunConfig(**OTHER, **OF_RUN)
    changed = {field.name for field in fields(RunConfig) if getattr(config, field.name) != field.default}
    assert changed | {*NOT_KEPT} == {field.name for field in fields(RunConfig)}
    (tmp_path / "run.json").write_text(json.dumps(config.as_json()))
    assert with_file(RunConfig("", config=str(tmp_path / "run.json"))) == config
    (tmp_path / "best.yaml").write_text("\n".join(config.yaml_lines()))
    parsed = with_file(RunConfig("Pong", seed=3, config=str(tmp_path / "best.yaml")))
    assert parsed == RunConfig(**OTHER)


def test_a_folder_belongs_to_one_sweep_and_one_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.settings.require", lambda *_: None)
    folder = tmp_path / "sweep"

    def lock(name: str = "sweep.json", where: Path = folder, **flags: Any) -> None:
        usual: dict[str, Any] = {"games": ("Pong",), "steps": 9, "device": "cpu", "run_dir": where}
        with locked(SweepConfig(**usual | flags), name):
            assert json.loads((where / name).read_text())["run"]["device"] == flags.get("device", "cpu")

    folder.mkdir()
    (folder / ".sweep.json.tmp").touch()  # killed while it began
    lock()
    lock(device="cuda", address="auto")
    with pytest.raises(UsageError, match=r"was started with --cpus-per-run 1\.0, not 2\.0"):
        lock(cpus_per_run=2.0)
    with pytest.raises(UsageError, match=r"was started with --steps 9, not 5; type that"):
        lock(steps=5)
    with pytest.raises(UsageError, match=r"was started with --games \['Pong'\], not \['Qbert'\]"):
        lock(games=("Qbert",))
    with pytest.raises(UsageError, match=r"holds other files and no search\.json"):
        lock("search.json")
    with open(folder / "lock") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="in use by another process"):
            lock()
    for broken in ("{", "[]", "{}"):
        (folder / "sweep.json").write_text(broken)
        with pytest.raises(UsageError, match="is not usable"):
            lock()
    with pytest.raises(UsageError, match="is not usable"):
        lock(where=Path("/proc/sweep"))


def lives(process: int) -> bool:
    """Whether a process has not ended, waited for or not."""
    try:
        return " Z " not in Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return False


@pytest.mark.parametrize("obeys", [True, False])
def test_a_supervised_script_ends_soon_after_its_parent(tmp_path: Path, obeys: bool) -> None:
    script, pid = tmp_path / "script.py", tmp_path / "pid"
    handled = "" if obeys else "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    script.write_text(f"import os, signal, sys, time\n{handled}open(sys.argv[1], 'w').write(str(os.getpid()))\n")
    script.write_text(script.read_text() + "time.sleep(60)\n")
    start = "import subprocess, sys, os, time; subprocess.Popen([sys.executable, '-m', 'cluster.supervised', "
    start += f"str(os.getpid()), {str(script)!r}, {str(pid)!r}]); time.sleep(60)"
    parent = subprocess.Popen([sys.executable, "-c", start], cwd=ROOT)
    child = int(wait_for(lambda: pid.exists() and pid.read_text()))
    time.sleep(1)
    assert lives(child)  # while its parent does
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    began = time.monotonic()
    wait_for(lambda: not lives(child), 30)
    assert (time.monotonic() - began < 5) == obeys


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
