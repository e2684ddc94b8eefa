"""Sweeps and searches on a real Ray cluster of several nodes: make test-cluster, behind requirements-cluster.txt."""

import csv
import json
import os
import re
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, processes, run_script, start_script, wait_for
from soak import differences

from cluster.board import Board, Row, last_rows
from cluster.guarded import run_guarded
from cluster.jobs import Cluster, Crew
from machine.checkpoint import CheckpointFile
from machine.exits import RunError, UsageError
from machine.flags import parse
from machine.run_config import with_file
from q_agent_train import Config
from search import Search, SearchConfig, import_optuna, median_pruner, search
from sweep import SweepConfig, sweep

pytestmark = pytest.mark.cluster
SMALL = (
    *("--num-envs", "4", "--replay-size", "480", "--replay-start-size", "240", "--minibatch-size", "4"),
    *("--target-update-frequency", "300", "--epsilon-decay-steps", "1000", "--evaluate-every", "1000"),
    *("--evaluation-games", "2", "--save-every-games", "0", "--checkpoint-minutes", "0.02", "--device", "cpu"),
    *("--network", "nips2013"),  # it learns and is saved faster
)
# Ray's own 15 seconds until a silent node counts as lost are for networks.
LOST_AFTER = {
    "health_check_initial_delay_ms": 1_000,
    "health_check_period_ms": 1_000,
    "health_check_failure_threshold": 4,
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
            found |= {Path(word).name: process for word in words if word.startswith(f"{folder}/")}
    return found


def past_checkpoint(run: Path) -> bool:
    """Whether a run has saved behind its first game: a first checkpoint is of agent step 0."""
    return len(last_rows(run / "games.csv")) > 1 and (run / "checkpoint.previous.pt").exists()


def went_on_from(folder: Path, run: str) -> list[int]:
    """The agent steps at which a run went on."""
    text = (folder / "logs" / f"{run}.txt").read_text()
    return [int(step.replace(",", "")) for step in re.findall(r"Going on at game [\d,]+, agent step ([\d,]+)", text)]


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return [*csv.DictReader(file)]


def scored_in(folder: Path) -> list[tuple[str, str]]:
    """Run and network of each row of scores.csv."""
    return [(Path(row["state_dict"]).parent.name, row["network"]) for row in rows_of(folder / "scores.csv")]


def test_a_sweep_survives_the_loss_of_a_node_and_of_its_driver_bit_for_bit(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    folder, games = tmp_path / "sweep", ["RoadRunner", "Kangaroo"]  # without learning their games are the shortest
    flags = ["--games", *games, "--seeds", "2", "--run-dir", str(folder), "--steps", "3000", *SMALL]
    driver = start("sweep.py", *flags)

    def two() -> dict[str, int]:
        runs = training_in(folder)
        return runs if len(runs) == 2 and all(past_checkpoint(folder / run) for run in runs) else {}

    before = wait_for(two, 120)
    cluster.remove_node(cluster.nodes.pop(), allow_graceful=False)
    (of_node,) = wait_for(
        lambda: [run for run, process in before.items() if training_in(folder).get(run) != process], 10
    )
    cluster.nodes.append(cluster.add_node(num_cpus=1, memory=2 * 10**9))
    wait_for(lambda: (folder / "scores.csv").exists(), 180)  # a run is finished

    def with_work_to_lose() -> list[str]:
        # Saved, half of it still to do; and the node's run, whose checkpoint is an older one, has said that it goes on.
        runs = [run for run in training_in(folder) if past_checkpoint(folder / run)]
        runs = [run for run in runs if len(last_rows(folder / run / "evaluations.csv")) < 2]
        return [run for run in runs if run != of_node or went_on_from(folder, run)]

    of_driver = wait_for(with_work_to_lose, 120)
    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    wait_for(lambda: not training_in(folder), 10)
    times = {path: path.stat().st_mtime_ns for run, _ in scored_in(folder) for path in (folder / run).rglob("*")}
    assert times
    result = run_script("sweep.py", *flags, "--address", cluster.address, cwd=tmp_path, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {path: path.stat().st_mtime_ns for path in times} == times
    for run, losses in Counter([of_node, *of_driver]).items():
        went_on = went_on_from(folder, run)
        assert len(went_on) >= losses
        assert min(went_on) > 0, run
    runs = ["road_runner-seed0", "road_runner-seed1", "kangaroo-seed0", "kangaroo-seed1"]
    assert scored_in(folder) == [(run, network) for run in runs for network in ("best", "model")]
    assert {row["games"] for row in rows_of(folder / "scores.csv")} == {"2"}  # --evaluation-games
    for pair in (runs[:2], runs[2:]):  # as many at a time as there are cores
        made_alone = [start_script("q_agent_train.py", *flags_alone(run), cwd=tmp_path) for run in pair]
        assert [process.communicate(timeout=120) and process.returncode for process in made_alone] == [0, 0]
    for run in runs:
        for path in (tmp_path / run, folder / run):
            (path / "memory.sha256").write_text("not compared")
        assert differences(folder / run, tmp_path / run) == []


def flags_alone(run: str) -> list[str]:
    """The flags with which a run of the sweep above is made without it, in the folder where it is called."""
    game, seed = run.split("-seed")
    return ["--game", game, "--seed", seed, "--run-dir", run, "--games", "1000000", "--steps", "3000", *SMALL]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_when_the_driver_is_killed_or_stopped_its_run_saves_first(tmp_path: Path, number: int) -> None:
    run = tmp_path / "sweep" / "road_runner-seed0"
    rarely = ("--checkpoint-minutes", "60")
    flags = ["--games", "RoadRunner", "--run-dir", str(run.parent), "--steps", "1000000", *SMALL, *rarely]
    driver = start_script("sweep.py", *flags, cwd=tmp_path)
    try:
        wait_for(lambda: len(last_rows(run / "games.csv")) > 1, 120)
        played = int(last_rows(run / "games.csv")[-1][1])
    finally:
        driver.send_signal(number)  # with it ends what it has begun
    wait_for(lambda: not training_in(run.parent), 10)
    output = driver.communicate()
    if number == signal.SIGINT:
        assert (driver.returncode, "every run has saved" in output[1]) == (130, True)
    assert CheckpointFile(run).load()[0]["training"]["agent_steps"] >= played


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_runs_that_fail_are_tried_twice_more_and_the_others_go_on(
    cluster: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cluster.jobs.PAUSES_SECONDS", (0.5, 0.5))  # nothing of the try before is left here
    folder = tmp_path / "sweep"
    flags = ["--games", "RoadRunner", "--seeds", "3", "--run-dir", str(folder), "--steps", "1000", *SMALL]
    config = parse(SweepConfig, words=[*flags, "--address", cluster.address])
    folder.mkdir()
    (folder / "sweep.json").write_text(json.dumps(config.described()))  # it has begun nothing yet
    occupied, full, good = (folder / f"road_runner-seed{seed}" for seed in range(3))
    occupied.mkdir()
    (occupied / "letter.txt").write_text("not a run's")
    full.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", str(full)], capture_output=True).returncode:
        pytest.skip("no disk can be mounted here")
    try:
        with pytest.raises(RunError) as failed:
            sweep(config)
    finally:
        subprocess.run(["umount", "-l", str(full)], check=True)
    assert str(failed.value).startswith("2 of 3 runs failed: road_runner-seed0 (error: ")
    assert re.search(r"road_runner-seed1 \(error: cannot write .* No space left on device", str(failed.value))
    assert (folder / "logs" / "road_runner-seed0.txt").read_text().count("letter.txt") == 3
    assert (folder / "logs" / "road_runner-seed1.txt").read_text().count("No space left on device") == 3
    assert scored_in(folder) == [(good.name, "best"), (good.name, "model")]
    (occupied / "letter.txt").unlink()
    sweep(config)  # mended, the same command makes what failed
    assert scored_in(folder) == [(run.name, network) for run in (occupied, full, good) for network in ("best", "model")]


def test_a_search_goes_on_after_it_was_killed_and_ends_with_a_config(
    cluster: Any, start: Callable[..., subprocess.Popen[str]], tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    folder = tmp_path / "search"
    over = ["--over", "learning-rate=0.0001..0.01", "optimizer=rmsprop,adam", "update-frequency=2..8"]
    late = {"480": "2000", "240": "1900"}  # the first three fifths lie in the warm-up
    small = [late.get(word, word) for word in SMALL]
    flags = ["--games", "RoadRunner", *over, "--trials", "2", "--run-dir", str(folder), "--steps", "3000", *small]
    driver = start("search.py", *flags)

    def in_the_last_fifth() -> bool:
        runs = training_in(folder)
        return any(int((last_rows(folder / run / "games.csv") or [["0", "0"]])[-1][1]) > 2_500 for run in runs)

    wait_for(in_the_last_fifth, 600)  # 77 s with the test alone on two cores, more than 180 on half of one
    driver.send_signal(signal.SIGKILL)
    driver.wait(10)
    wait_for(lambda: not training_in(folder), 10)
    search(parse(SearchConfig, words=[*flags, "--address", cluster.address]))
    trials = rows_of(folder / "trials.csv")
    assert [trial["trial"] for trial in trials] == ["0", "1"]
    assert all(trial[f"fifth_{fifth}"] for trial in trials for fifth in (1, 2, 3))  # never given up in the warm-up
    assert {trial["state"] for trial in trials} <= {"complete", "pruned"}
    assert all(trial["fifth_5"] for trial in trials if trial["state"] == "complete")
    assert all(1e-4 <= float(trial["learning-rate"]) <= 1e-2 for trial in trials)
    best = max((t for t in trials if t["state"] == "complete"), key=lambda trial: float(trial["fifth_5"]))
    (scored,) = rows_of(folder / "scores" / f"trial{int(best['trial']):03}-road_runner-5.csv")
    assert float(best["fifth_5"]) == float(scored["mean"])  # of one game it is the score itself
    lines = (folder / "best.yaml").read_text().splitlines()
    assert f"learning-rate: {best['learning-rate']}" in lines
    runs = [f"trial{number:03}-road_runner" for number in range(2)]
    assert all((folder / "logs" / f"{run}.txt").read_text().count("Training on ") == 1 for run in runs)
    # Where it was not killed, a trial goes on from the end of a fifth, the last begins at 2,400.
    assert any(step > 2_400 for run in runs for step in went_on_from(folder, run))
    assert (folder / "history.png").stat().st_size > 1_000
    assert not [warning for warning in recwarn if "experimental" in str(warning.message)]
    assert with_file(Config(config=str(folder / "best.yaml"))).learning_rate == float(best["learning-rate"])


def test_runs_share_a_gpu_as_far_as_its_memory_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster as Nodes

    nodes: Any = Nodes(initialize_head=True, head_node_args=HEAD)
    sizes = {"replay_bytes": 7 * 10**9, "process_bytes": 10**9}

    def crew(asked: float | None, device: str = "auto") -> Crew:
        return Crew(Cluster(address=nodes.address, gpus_per_run=asked), device=device, **sizes)

    try:
        nodes.add_node(num_cpus=16, num_gpus=2, memory=48 * 10**9)  # Ray takes our word for the GPUs
        with pytest.raises(
            UsageError, match=r"a node does not say how large its GPUs are .*--gpus-per-run 1 asks none"
        ):
            crew(0.5)
        # Three times what a run needs with its reserve.
        monkeypatch.setattr(Crew, "_smallest_gpu_bytes", lambda _crew: 24 * 10**9)
        expected = [(None, 2, "GPUs"), (0.4, 4, "GPUs"), (0.1, 6, "GPU memory"), (2, 1, "GPUs"), (0, 6, "memory")]
        for asked, room, limit in expected:
            with crew(asked) as counted:
                assert (asked, counted.room(), counted.limits()) == (asked, room, limit)
                assert (asked, counted.bytes_per_run) == (asked, 8 * 10**9 if asked == 0 else 2 * 10**9)
        refusals = [
            (1.5, "auto", "a whole number or below 1"),
            (0.5, "cpu", "does nothing"),
            (0, "cuda", "no run is given"),
        ]
        for asked, device, words in refusals:
            with pytest.raises(UsageError, match=words):
                crew(asked, device)
        monkeypatch.setattr(Crew, "_smallest_gpu_bytes", lambda _crew: 7 * 10**9)
        with pytest.raises(UsageError, match=r"a run needs 8.0 GB of a GPU, and one has 7.0 GB"):
            crew(0.5)
    finally:
        nodes.shutdown()


def test_a_run_without_a_gpu_does_not_see_one_and_one_with_it_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "look.py"
    script.write_text("import os\nprint(os.environ.get('CUDA_VISIBLE_DEVICES'))\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    for gpu in (False, True):
        assert run_guarded([str(script)], str(tmp_path / "log"), str(ROOT), 1, gpu) == 0
    assert (tmp_path / "log").read_text().split("\n")[:2] == ["", "7"]


@pytest.mark.parametrize("answers", [False, True])
def test_a_cluster_that_is_not_there_is_a_line_within_seconds(tmp_path: Path, answers: bool) -> None:
    began = time.monotonic()
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:  # something that is not Ray, as its dashboard
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"127.0.0.1:{server.server_port if answers else 9}"
        flags = ("--games", "Pong", "--run-dir", str(tmp_path / "sweep"), "--address", address, *SMALL)
        result = run_script("sweep.py", *flags, "--steps", "1000", cwd=tmp_path)
        server.shutdown()
    assert result.returncode == 2
    assert len(result.stderr.splitlines()) == 1
    assert f"--address {address}: no Ray cluster answers there" in result.stderr
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(
    ("over", "words"),
    [
        ([], "--over wants a range or choices"),
        (["learning-rate"], "'learning-rate' has neither"),
        (["learning-rat=1..2"], "--learning-rat cannot be searched"),
        (["steps=1..2"], "--steps cannot be searched"),
        (["discount=0.5..1.5"], "no run can have --discount 1.5: --discount 1.5 cannot be: it must be from 0 to 1"),
        (["optimizer=rmsprop,adam", "rmsprop-minimum=0.001..0.1"], "--rmsprop-minimum does nothing without"),
        (["optimizer=rmsprop..adam"], "is no range of numbers"),
        (["double=true..false"], "is no range of numbers"),
        (["initial-state-dict=a.pt,b.pt"], "--initial-state-dict cannot be searched"),
        (["learning-rate=x..1"], "'x' is not a number"),
        (["minibatch-size=8..4"], "the lower end comes first"),
        (["optimizer=rmsprop,sgd"], "'sgd' cannot be chosen"),
        (["optimizer=adam"], "has fewer than two"),
        (["double=true,false", "double=true,false"], "--double comes twice"),
    ],
)
def test_what_cannot_be_searched_is_refused(tmp_path: Path, over: list[str], words: str) -> None:
    with pytest.raises(UsageError) as refusal:
        search(SearchConfig(games=("Pong",), over=tuple(over), run_dir=tmp_path / "search"))
    assert words in str(refusal.value)
    assert not (tmp_path / "search").exists()


def test_ranges_are_whole_numbers_or_logarithmic_where_they_should_be() -> None:
    over = ("update-frequency=2..8", "learning-rate=1e-5..1e-2", "discount=0.9..0.99", "double=true,false")
    spaces = SearchConfig(games=("Pong",), over=over).spaces()
    numbers = [(type(space).__name__, getattr(space, "log", None)) for space in spaces.values()]
    assert numbers == [
        ("IntDistribution", False),
        ("FloatDistribution", True),
        ("FloatDistribution", False),
        ("CategoricalDistribution", None),
    ]


def test_a_trial_is_not_given_up_before_its_third_fifth() -> None:
    study = import_optuna().create_study(direction="maximize", pruner=median_pruner())
    for _ in range(5):
        good = study.ask()
        for fifth in range(1, 6):
            good.report(10.0, fifth)
        study.tell(good, 10.0)
    bad = study.ask()
    given_up = []
    for fifth in range(1, 4):
        bad.report(1.0, fifth)
        given_up.append(bad.should_prune())
    assert given_up == [False, False, True]


def test_no_trial_is_given_up_in_its_warm_up(tmp_path: Path) -> None:
    over, study = ("learning-rate=0.1..0.2",), import_optuna().create_study()
    config = SearchConfig(games=("Pong",), over=over, steps=1_000, replay_start_size=700)
    work = Search(config, tmp_path, study, config.spaces())
    jobs: list[Any] = []
    trial = study.ask(work.spaces)
    crew: Any = SimpleNamespace(add=lambda job, first: jobs.append(job))
    trial.should_prune = lambda: True  # it is worse than the others
    for fifth in range(3):
        work._go_from(trial, fifth, 0.0, crew)
    work._go_from(trial, 3, 0.0, crew)
    # The first three fifths end with the warm-up and a first update.
    assert [parse(Config, words=job.flags).steps for job in jobs] == [701, 701, 701, 800]
    work._go_from(trial, 4, 0.0, crew)
    assert [trial.state.name for trial in study.trials] == ["PRUNED"]


def test_the_table_of_a_sweep_has_a_column_for_game_and_seed_in_80_characters(tmp_path: Path) -> None:
    from rich.console import Console

    row = Row("montezuma_revenge-seed104", "montezuma_revenge", 104, "", "training", 49_999_999, 9_999)
    row.mean_of_100, row.steps_per_second, row.seconds_left = 2_012.5, 246.0, 86_399.0
    board = Board({row.run: row}, tmp_path / "sweep.csv", ("game", "seed"))
    with (console := Console(width=80)).capture() as shown:
        console.print(board._table())
    headings, cells = (re.split(r"  +", line.strip()) for line in shown.get().splitlines())
    assert headings == ["game", "seed", "agent steps", "mean of 100", "steps/s", "time left", "state"]
    assert cells == ["montezuma_revenge", "104", "49,999,999", "2,012.5", "246", "23:59:59", "training"]


def test_aggregates_are_those_computed_by_hand() -> None:
    from atari import paper_table
    from showing.figures_aggregate import Scored, aggregates, estimate, improvement, table_rows

    scores = np.array([[0.0, 1.0, 2.0, 0.4], [0.2, 1.2, 4.0, 0.6]])  # seeds, games
    median, iqm, mean, gap = aggregates(scores)
    assert median == pytest.approx(0.8)  # of the games' means .1, 1.1, 3, .5
    assert iqm == pytest.approx((0.4 + 0.6 + 1.0 + 1.2) / 4)  # the middle half of all eight
    assert mean == pytest.approx(9.4 / 8)
    assert gap == pytest.approx((1.0 + 0.8 + 0.6 + 0.4) / 8)  # what lacks to 1
    points, (low, high) = estimate(scores, aggregates)
    np.testing.assert_allclose(points, [median, iqm, mean, gap])
    assert (low <= points).all()
    assert (high >= points).all()
    uneven = np.random.default_rng(0).normal(size=(5, 7))
    np.testing.assert_array_equal(estimate(uneven, aggregates)[1], estimate(uneven, aggregates)[1])
    games = [*paper_table().values()][:4]
    one, other = (
        Scored(name, games, values, {paper.game: 7.0 for paper in games}, np.zeros(0), None)
        for name, values in (("one", scores), ("other", scores[::-1] - [0.1, 0.1, 3.0, -1.0]))
    )
    # Of the four pairs of runs one scores higher in 3, 3, 4 and 0, game by game.
    assert improvement(one, other)[0] == pytest.approx((3 + 3 + 4 + 0) / 16)
    order = [row["dqn_normalised"] for row in table_rows(one)]
    assert order == sorted(order, reverse=True)
