"""Evaluations beside a training, as on a GPU: the same scores, whatever happens to either process."""

import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import save_network
from soak import SMALL, differences, start

from atari import FinishedGame
from machine.checkpoint import CheckpointFile
from machine.exits import RunError
from model import load_network
from q_agent_train import train
from showing.evaluator import Evaluator, EvaluatorBeside

# With a checkpoint behind nearly every step, so that most evaluations are in one.
CONFIG = replace(SMALL, steps=860, evaluate_every=300, evaluation_games=2, checkpoint_minutes=0.1 / 60)


@pytest.fixture
def beside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("q_agent_train.BESIDE_ON", ("cpu",))


def wait_for(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < deadline, "it did not happen within two minutes"
        time.sleep(0.02)


def pending(run_dir: Path) -> int:
    """The agent steps of the evaluation that the newest checkpoint says goes on; 0 for none."""
    checkpoints = CheckpointFile(run_dir)
    evaluation = checkpoints.load()[0]["evaluation"] if checkpoints.exists() else None
    return int(evaluation["agent_steps"]) if evaluation else 0


def evaluators() -> set[int]:
    """Processes that were spawned and still run."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if b"multiprocessing.spawn" in words and b"\n" not in words:
            found.add(int(process.name))
    return found


def test_killed_while_evaluations_go_on_beside_it_a_run_ends_as_with_them_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place, killed = (replace(CONFIG, run_dir=tmp_path / name) for name in ("in place", "killed"))
    assert os.waitpid(start(in_place), 0)[1] == 0
    monkeypatch.setattr("q_agent_train.BESIDE_ON", ("cpu",))
    before = evaluators()
    for steps in (300, 600):
        process = start(killed)
        wait_for(lambda: pending(tmp_path / "killed") >= steps)  # noqa: B023
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert os.waitpid(start(killed), 0)[1] == 0
    assert differences(tmp_path / "in place", tmp_path / "killed") == []
    assert pending(tmp_path / "killed") == 0
    assert not (tmp_path / "killed" / "evaluated.pt").exists()
    wait_for(lambda: evaluators() <= before)  # none outlives its training


@pytest.mark.usefixtures("beside")
def test_a_signal_that_comes_while_the_last_evaluation_is_waited_for_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    ended = EvaluatorBeside.ended

    def ended_and_interrupt(evaluator: EvaluatorBeside, seconds: float) -> bool:
        if seconds and not asked:  # it is waited for
            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            return False
        return ended(evaluator, seconds)

    monkeypatch.setattr(EvaluatorBeside, "ended", ended_and_interrupt)
    config = replace(CONFIG, steps=400, run_dir=tmp_path / "run")
    train(config)
    assert "Stopped after" in capsys.readouterr().out
    assert pending(tmp_path / "run") == 300
    assert not (tmp_path / "run" / "best.pt").exists()
    train(config)
    assert "Finished after" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.usefixtures("beside")
def test_an_evaluation_whose_process_dies_ends_the_run_with_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begin = EvaluatorBeside.begin

    def begin_and_kill(evaluator: EvaluatorBeside, state_dict: Path, seed: int) -> None:
        begin(evaluator, state_dict, seed)
        evaluator._process.kill()

    monkeypatch.setattr(EvaluatorBeside, "begin", begin_and_kill)
    with pytest.raises(RunError, match="the evaluation beside the training failed: its process was killed"):
        train(replace(CONFIG, run_dir=tmp_path / "run"))


def test_the_process_beside_plays_what_is_played_in_place_and_says_what_it_cannot(tmp_path: Path) -> None:
    files = [save_network(tmp_path / f"{seed}.pt", "road_runner", 18, seed=seed) for seed in range(2)]
    in_place, played = Evaluator(2), []
    beside = EvaluatorBeside(2, device="cpu", deterministic=False)
    try:
        for file in files:
            beside.begin(file, 7)
            played.append(beside.take())
        expected = [in_place.play(load_network(file), 7, lambda _: True) for file in files]
        assert [*map(described, played)] == [*map(described, expected)]
        beside.begin(tmp_path / "missing.pt", 7)
        with pytest.raises(RunError, match=r"failed: UsageError: .*missing.pt is not there"):
            beside.take()
    finally:
        in_place.close()
        beside.close()


def described(games: list[FinishedGame] | None) -> list[Any]:
    assert games
    return [vars(game) for game in games]
