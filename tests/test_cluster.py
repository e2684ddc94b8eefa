"""Sweeps and searches on a real Ray cluster of three nodes: make test-cluster, with requirements-cluster.txt."""

import csv
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import processes, run_script, start_script, wait_for
from soak import differences

import search
from cluster.settings import locked
from q_agent_train import Config
from runtime.checkpoint import CheckpointFile
from runtime.exits import UsageError
from runtime.flags import parse
from runtime.memory_size import BYTES_PER_TRANSITION
from runtime.run_config import with_file
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
NODE = {"num_cpus": 4, "memory": 10**9}
HEAD = {"num_cpus": 0, "include_dashboard": False, "_system_config": LOST_AFTER}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A head without cores, and two nodes, each with the cores for four runs and the memory for one."""
    from ray.cluster_utils import Cluster

    cluster: Any = Cluster(initialize_head=True, head_node_args=HEAD)
    cluster.nodes = [cluster.add_node(**NODE) for _ in range(2)]
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
    for process, arguments in processes():
        if any(each.endswith("q_agent_train.py") for each in arguments):
            runs = [Path(each) for each in arguments if each.startswith(f"{folder}/")]
            found |= {run.name: process for run in runs if "seed" in run.name or run.name.startswith("trial")}
    return {run: process for run, process in found.items() if not run.endswith(".json")}


def saved(run: Path) -> bool:
    """Whether a run has saved after its first step: its first checkpoint is of agent step 0."""
    return (run / "checkpoint.previous.pt").exists()


def resumed(folder: Path, run: str) -> int:
    return (folder / "logs" / f"{run}.txt").read_text().count("Resuming at game")


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
        assert len(runs) <= 2  # as memory allows; there are cores for all four
        return runs if len(runs) == 2 and all(saved(folder / run) for run in runs) else {}

    before = wait_for(two, 240)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    (lost,) = wait_for(lambda: [run for run in before if training_in(folder).get(run) != before[run]], 30)
    cluster.nodes.append(cluster.add_node(**NODE))
    wait_for(lambda: resumed(folder, lost), 600)
    scores = folder / "scores"
    wait_for(lambda: [*scores.glob("*.csv")] and [run for run in training_in(folder) if saved(folder / run)], 600)
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


def test_a_search_resumes_after_it_was_killed_and_ends_with_a_config(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    import optuna

    folder, over = tmp_path / "search", ("learning-rate=0.0001..0.01", "optimizer=rmsprop,adam", "double=true,false")
    flags = ["--games", "RoadRunner", "--over", *over, "--trials", "2", "--run-dir", str(folder), "--steps", "600"]
    flags += [*SMALL, "--evaluate-every", "0"]
    driver = start("search.py", *flags)
    wait_for(lambda: [*(folder / "scores").glob("*-3.csv")], 600)
    wait_for(lambda: training_in(folder), 60)
    kill(driver, folder)
    done = {path: path.stat().st_mtime_ns for path in (folder / "scores").iterdir()}
    result = run_script("search.py", *flags, "--address", cluster.address, cwd=tmp_path, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in done} == done
    assert len([*(folder / "scores").iterdir()]) == 10  # of two trials, as many as there were
    study = optuna.load_study(study_name="search", storage=f"sqlite:///{folder / 'study.db'}")
    assert [trial.state.name for trial in study.trials] == ["COMPLETE"] * 2
    for trial in study.trials:
        assert [*trial.intermediate_values] == [1, 2, 3, 4, 5]
        assert 1e-4 <= trial.params["learning_rate"] <= 1e-2
    best = with_file(Config(config=str(folder / "best.yaml")))
    values = best.learning_rate, best.optimizer, str(best.double).lower()
    assert values in [tuple(trial.params[name] for name in trial.params) for trial in study.trials]
    assert {"slice.png", "optimization_history.png"} <= {path.name for path in folder.iterdir()}


def test_wrong_use_of_a_cluster_is_a_line_within_seconds(cluster: Any, tmp_path: Path) -> None:
    flags = ("--games", "Pong", "--run-dir", str(tmp_path / "sweep"), "--steps", "1000", *SMALL)
    larger = ("--replay-size", "1000000", "--address", cluster.address)
    for more, message in (
        (("--address", "127.0.0.1:9"), "no Ray cluster answers at --address 127.0.0.1:9 within 20 seconds"),
        (larger, "no node has room for a run, which needs 1 cores, 0 GPUs and 7.8 GB of memory"),
    ):
        began = time.monotonic()
        folder = ("--run-dir", str(tmp_path / more[0][2:]))
        result = run_script("sweep.py", *flags, *folder, *more, cwd=tmp_path)
        assert (result.returncode, len(result.stderr.splitlines())) == (2, 1), result.stderr
        assert message in result.stderr
        assert time.monotonic() - began < 60  # much of it to load


@pytest.mark.parametrize(
    ("over", "message"),
    [
        ([], "--over needs a range or choices"),
        (["learning-rat=1..2"], "or its flag is there twice or is not a hyperparameter"),
        (["double=true,false", "double=true,false"], "or its flag is there twice or is not a hyperparameter"),
        (["optimizer=adam"], "got 'optimizer=adam'"),
        (["discount=0.5..1.5"], "--discount must be at least 0 and at most 1, got 1.5"),
        (["optimizer=rmsprop,adam", "min-squared-gradient=0.001..0.1"], "--min-squared-gradient needs"),
        (["minibatch-size=8..4"], "a range goes from a number to a larger one"),
        (["learning-rate=x..1"], "--over is wrong as shown above"),
    ],
)
def test_a_wrong_search_is_refused(tmp_path: Path, over: list[str], message: str) -> None:
    with pytest.raises(UsageError) as refusal:
        search.search(SearchConfig(games=("Pong",), over=tuple(over), run_dir=tmp_path / "search"))
    assert message in str(refusal.value)
    assert not (tmp_path / "search").exists()


def test_ranges_are_whole_numbers_or_logarithmic_where_they_should_be() -> None:
    over = ("update-frequency=2..8", "learning-rate=1e-5..1e-2", "discount=0.9..0.99", "double=true,false")
    domains, corners = SearchConfig(games=("Pong",), over=over).spaces()
    kinds = [f"{type(domain).__name__} {type(domain.sampler).__name__}" for domain in domains.values()]
    assert kinds == ["Integer _Uniform", "Float _LogUniform", "Float _Uniform", "Categorical _Uniform"]
    assert {run.update_frequency for run in corners} == {2, 8}
    assert {domains["update_frequency"].sample() for _ in range(200)} == {*range(2, 9)}


def test_a_trial_is_given_up_from_its_third_fifth_on(tmp_path: Path) -> None:
    from cluster.tuning import search_tools

    rule = search_tools(tmp_path, 0, 3)["scheduler"]
    rule.set_search_properties("score", "max")

    def decisions(name: str, score: float) -> list[str]:
        trial = type("Trial", (), {"trial_id": name})()
        found: list[str] = []
        while len(found) < 5 and "STOP" not in found:  # a trial that was stopped reports nothing more
            found.append(rule.on_trial_result(None, trial, {"training_iteration": len(found) + 1, "score": score}))
        return found

    for number in range(5):
        assert decisions(f"good {number}", 10.0) == ["CONTINUE"] * 5
    assert decisions("bad", 1.0) == ["CONTINUE", "CONTINUE", "STOP"]


def test_a_run_asks_for_its_share_of_cores_gpus_and_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    from cluster.tuning import resources

    with_gpus = {"CPU": 16.0, "GPU": 2.0, "memory": 4e9}
    for device, asked, there, needs in (
        ("auto", None, with_gpus, {"CPU": 2.0, "GPU": 1.0, "memory": 1.4e9}),
        ("auto", 0.5, with_gpus, {"CPU": 2.0, "GPU": 0.5, "memory": 1.4e9}),
        ("cpu", None, with_gpus, {"CPU": 2.0, "GPU": 0.0, "memory": 0.7e9 + 100_000 * BYTES_PER_TRANSITION}),
        ("auto", None, {"CPU": 2.0, "memory": 4e9}, {"CPU": 2.0, "GPU": 0.0}),
        ("auto", 1.5, with_gpus, None),
        ("cuda", 1, {"CPU": 16.0, "memory": 4e9}, None),
        ("auto", None, {"CPU": 1.0, "memory": 4e9}, None),
    ):
        monkeypatch.setattr("ray.nodes", lambda there=there: [{"Alive": True, "Resources": there}])
        config = SweepConfig(device=device, gpus_per_run=asked, cpus_per_run=2.0)
        if needs is None:
            with pytest.raises(UsageError, match="no node has room for a run, which needs 2 cores"):
                resources(config, 100_000)
        else:
            assert resources(config, 100_000).items() >= needs.items()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_a_run_that_fails_is_tried_twice_more_and_the_other_continues(cluster: Any, tmp_path: Path) -> None:
    folder = tmp_path / "sweep"
    full, good = (folder / f"road_runner-seed{seed}" for seed in range(2))
    flags = ["--games", "RoadRunner", "--seeds", "2", "--run-dir", str(folder), "--steps", "700", *SMALL]
    flags += ["--address", cluster.address]
    with locked(parse(SweepConfig, arguments=flags), "sweep.json"):
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
