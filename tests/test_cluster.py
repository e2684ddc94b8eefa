"""Sweeps and searches on a real Ray cluster of three nodes: make test-cluster, behind requirements-cluster.txt."""

import csv
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import processes, refused, run_script, start_script, wait_for
from soak import differences

import search
from cluster.settings import locked
from config import with_file
from machine.checkpoint import CheckpointFile
from machine.exits import UsageError
from machine.flags import parse
from q_agent_train import Config
from search import SearchConfig
from sweep import SweepConfig

pytestmark = pytest.mark.cluster
SMALL = (
    *("--num-envs", "4", "--replay-size", "480", "--replay-start-size", "240", "--minibatch-size", "4"),
    *("--target-update-frequency", "300", "--epsilon-decay-steps", "1000", "--evaluate-every", "600"),
    *("--evaluation-games", "2", "--save-every-games", "0", "--checkpoint-minutes", "0.02", "--device", "cpu"),
    *("--network", "nips2013"),  # it learns and is saved faster
)
# Ray's own 15 seconds until a silent node counts as lost are for networks.
LOST_AFTER = {
    "health_check_initial_delay_ms": 1_000,
    "health_check_period_ms": 1_000,
    "health_check_failure_threshold": 8,
}
HEAD = {"num_cpus": 0, "include_dashboard": False, "_system_config": LOST_AFTER}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two nodes of one core each."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args=HEAD)
    cluster.nodes = [cluster.add_node(num_cpus=1, memory=2 * 10**9) for _ in range(2)]
    yield cluster
    cluster.shutdown()


@pytest.fixture
def start(cluster: Any, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start a driver on the cluster; what is left of it at the end is killed."""
    drivers: list[subprocess.Popen[str]] = []

    def start_driver(script: str, *flags: str) -> subprocess.Popen[str]:
        drivers.append(start_script(script, *flags, "--address", cluster.address, cwd=tmp_path))
        return drivers[-1]

    yield start_driver
    for driver in drivers:
        driver.kill()
        driver.communicate()


def training_in(folder: Path) -> dict[str, int]:
    """The runs in a folder that are trained at this moment, and the process that does it."""
    found: dict[str, int] = {}
    for process, words in processes():
        if any(word.endswith("q_agent_train.py") for word in words):
            found |= {Path(word).name: process for word in words if word.startswith(f"{folder}/") and "seed" in word}
            found |= {Path(word).name: process for word in words if word.startswith(f"{folder}/trial")}
    return {run: process for run, process in found.items() if not run.endswith(".json")}


def saved(run: Path) -> bool:
    """Whether a run has saved after its first step: its first checkpoint is of agent step 0."""
    return (run / "checkpoint.previous.pt").exists()


def resumed(folder: Path, run: str) -> int:
    return (folder / "logs" / f"{run}.txt").read_text().count("Going on at game")


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def scored_in(folder: Path) -> set[tuple[str, str]]:
    """Run and network of each row of scores.csv."""
    return {(Path(row["state_dict"]).parent.name, row["network"]) for row in rows_of(folder / "scores.csv")}


def kill(driver: subprocess.Popen[str], folder: Path) -> None:
    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    wait_for(lambda: not training_in(folder), 30)


def test_a_sweep_survives_the_loss_of_a_node_and_of_its_driver_bit_for_bit(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder = tmp_path / "sweep"
    flags = ["--games", "RoadRunner", "Kangaroo", "--seeds", "2", "--run-dir", str(folder), "--steps", "1500", *SMALL]
    driver = start("sweep.py", *flags)

    def two() -> dict[str, int]:
        runs = training_in(folder)
        return runs if len(runs) == 2 and all(saved(folder / run) for run in runs) else {}

    before = wait_for(two, 240)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    (lost,) = wait_for(lambda: [run for run in before if training_in(folder).get(run) != before[run]], 30)
    cluster.nodes.append(cluster.add_node(num_cpus=1, memory=2 * 10**9))
    wait_for(lambda: resumed(folder, lost), 240)
    scores = folder / "scores"
    wait_for(lambda: [*scores.glob("*.csv")] and [run for run in training_in(folder) if saved(folder / run)], 240)
    kill(driver, folder)
    finished = [file.stem for file in scores.glob("*.csv")]
    times = {path: path.stat().st_mtime_ns for run in finished for path in (folder / run).rglob("*")}
    result = run_script("sweep.py", *flags, "--address", cluster.address, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert times
    assert {path: path.stat().st_mtime_ns for path in times} == times
    runs = [f"{game}-seed{seed}" for game in ("road_runner", "kangaroo") for seed in range(2)]
    assert scored_in(folder) == {(run, network) for run in runs for network in ("best", "model")}
    assert {row["games"] for row in rows_of(folder / "scores.csv")} == {"2"}  # --evaluation-games
    alone = ["--games", "1000000", "--steps", "1500", *SMALL]
    for run in dict.fromkeys([lost, *(run for run in runs if resumed(folder, run))]):
        game, seed = run.split("-seed")
        result = run_script("q_agent_train.py", "--game", game, "--seed", seed, "--run-dir", run, *alone, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        for path in (tmp_path / run, folder / run):
            (path / "memory.sha256").write_text("not compared")
        assert differences(folder / run, tmp_path / run) == []


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_driver_is_killed_or_stopped_its_run_saves_first(tmp_path: Path, number: int) -> None:
    run = tmp_path / "sweep" / "road_runner-seed0"
    flags = ["--games", "RoadRunner", "--run-dir", str(run.parent), "--steps", "1000000", *SMALL]
    driver = start_script("sweep.py", *flags, "--checkpoint-minutes", "60", cwd=tmp_path)
    try:
        wait_for(lambda: (run / "games.csv").exists() and (run / "games.csv").read_text().count("\n") > 2, 240)
        played = int(rows_of(run / "games.csv")[0]["agent_step"])
    finally:
        driver.send_signal(number)
    wait_for(lambda: not training_in(run.parent), 30)
    _, errors = driver.communicate()
    if number == signal.SIGINT:
        assert (driver.returncode, "the same command resumes them" in errors) == (130, True)
    assert CheckpointFile(run).load()[0]["training"]["agent_steps"] >= played


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_run_that_fails_is_tried_twice_more_and_the_other_goes_on(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    full, good = (folder / f"road_runner-seed{seed}" for seed in range(2))
    flags = ["--games", "RoadRunner", "--seeds", "2", "--run-dir", str(folder), "--steps", "700", *SMALL]
    flags += ["--address", cluster.address]
    with locked(parse(SweepConfig, words=flags), "sweep.json"):
        full.mkdir()  # it has begun nothing yet
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(full)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        result = run_script("sweep.py", *flags, cwd=tmp_path, timeout=600)
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)
    assert result.returncode == 1
    assert "error: 1 of 2 failed: road_runner-seed0 (error: cannot write" in result.stderr
    assert (folder / "logs" / "road_runner-seed0.txt").read_text().count("No space left on device") == 3
    assert scored_in(folder) == {(good.name, "best"), (good.name, "model")}
    result = run_script("sweep.py", *flags, cwd=tmp_path, timeout=600)  # mended, the same command makes what failed
    assert result.returncode == 0, result.stdout + result.stderr
    assert scored_in(folder) == {(run.name, network) for run in (full, good) for network in ("best", "model")}
