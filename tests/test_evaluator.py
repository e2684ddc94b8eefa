"""Evaluations in the background, as on a GPU: the same scores, whatever happens to either process."""

import os
import re
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from conftest import ROOT, save_network, wait_for
from soak import SMALL, differences, flags, start

from atari import FinishedGame
from q_agent_train import train
from runtime.checkpoint import CheckpointFile
from runtime.devices import choose_device
from runtime.networks import load_network
from viewing.evaluator import BackgroundEvaluator, Evaluator

# With a checkpoint behind nearly every step, so that most evaluations are in one.
CONFIG = replace(SMALL, steps=860, evaluate_every=300, evaluation_games=2, checkpoint_minutes=0.1 / 60)


@pytest.fixture
def in_background(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime.run.BACKGROUND_ON", ("cpu",))


def pending(run_dir: Path) -> int:
    """The agent steps of the evaluation that is unfinished in the newest checkpoint; 0 for none."""
    checkpoints = CheckpointFile(run_dir)
    evaluation = checkpoints.load()[0]["evaluation"] if checkpoints.exists() else None
    return int(evaluation["agent_steps"]) if evaluation else 0


def evaluators_of(training: int) -> set[int]:
    """The processes that evaluate for this training."""
    return {child.pid for child in psutil.Process(training).children() if "--multiprocessing-fork" in child.cmdline()}


def test_a_run_killed_during_evaluations_in_the_background_ends_as_with_them_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    in_place, killed = (replace(CONFIG, run_dir=tmp_path / name) for name in ("in place", "killed"))
    assert os.waitpid(start(in_place), 0)[1] == 0
    monkeypatch.setattr("runtime.run.BACKGROUND_ON", ("cpu",))
    for steps in (300, 600):
        process = start(killed)
        wait_for(lambda: pending(tmp_path / "killed") >= steps, 120)  # noqa: B023
        (evaluator,) = evaluators_of(process)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        wait_for(lambda: not psutil.pid_exists(evaluator), 120)  # noqa: B023  # none outlives its training
    assert os.waitpid(start(killed), 0)[1] == 0
    assert differences(tmp_path / "in place", tmp_path / "killed") == []
    assert pending(tmp_path / "killed") == 0
    assert not (tmp_path / "killed" / "evaluated.pt").exists()


@pytest.mark.usefixtures("in_background")
def test_a_signal_that_comes_while_the_last_evaluation_is_waited_for_is_heard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[int] = []
    ended = BackgroundEvaluator.ended

    def ended_and_interrupt(evaluator: BackgroundEvaluator, seconds: float) -> bool:
        if seconds and not asked:  # it is waited for
            asked.append(1)
            os.kill(os.getpid(), signal.SIGINT)
            return False
        return ended(evaluator, seconds)

    monkeypatch.setattr(BackgroundEvaluator, "ended", ended_and_interrupt)
    config = replace(CONFIG, steps=400, run_dir=tmp_path / "run")
    train(config)
    assert "Stopped after" in capsys.readouterr().out
    assert pending(tmp_path / "run") == 300
    assert not (tmp_path / "run" / "best.pt").exists()
    train(config)
    assert "Finished after" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.usefixtures("in_background")
def test_an_evaluation_whose_process_dies_is_played_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    begin = BackgroundEvaluator.begin

    def begin_and_kill(evaluator: BackgroundEvaluator, state_dict: Path, seed: int) -> None:
        begin(evaluator, state_dict, seed)
        evaluator._process.kill()

    monkeypatch.setattr(BackgroundEvaluator, "begin", begin_and_kill)
    train(replace(CONFIG, steps=400, run_dir=tmp_path / "run"))
    assert "failed (its process ended)" in capsys.readouterr().out
    assert (tmp_path / "run" / "best.pt").exists()


@pytest.mark.usefixtures("in_background")
def test_an_evaluation_begun_in_the_background_is_played_where_the_run_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, moved = (replace(CONFIG, run_dir=tmp_path / name) for name in ("whole", "moved"))
    train(whole)
    process = start(moved)
    wait_for(lambda: pending(tmp_path / "moved") == 300, 120)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    monkeypatch.setattr("runtime.run.BACKGROUND_ON", ())
    train(moved)
    for name in ("evaluations.csv", "best.pt", "model.pt"):
        assert (tmp_path / "moved" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_ctrl_c_in_a_terminal_reaches_the_training_alone(tmp_path: Path) -> None:
    script = (
        "import runtime.run, q_agent_train as q; runtime.run.BACKGROUND_ON = ('cpu',); "
        "from runtime.exits import exit_with; exit_with(q.main)"
    )
    command = [sys.executable, "-c", script, *flags(replace(CONFIG, steps=20_000, run_dir=tmp_path / "run"))]
    quiet = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "cwd": ROOT, "start_new_session": True}
    process = subprocess.Popen(command, **quiet)  # type: ignore[call-overload]
    wait_for(lambda: pending(tmp_path / "run"), 120)
    os.killpg(process.pid, signal.SIGINT)
    output, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert b"Stopped after" in output
    assert b"Traceback" not in errors


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_the_background_plays_what_is_played_in_place_and_says_what_fails(tmp_path: Path, device: str) -> None:
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    files = [save_network(tmp_path / f"{seed}.pt", "road_runner", 18, seed=seed) for seed in range(2)]
    in_place, played = Evaluator(2), []
    background = BackgroundEvaluator(2, device=device, deterministic=False)
    try:
        for file in files:
            background.begin(file, 7)
            played.append(background.take())
        expected = [in_place.play(load_network(file, choose_device(device)), 7, lambda _: True) for file in files]
        assert [*map(described, played)] == [*map(described, expected)]
        background.begin(tmp_path / "missing.pt", 7)
        assert re.match(r"UsageError: .*missing.pt is not there", str(background.take()))
    finally:
        in_place.close()
        background.close()


def described(games: list[FinishedGame] | str | None) -> list[Any]:
    assert isinstance(games, list)
    return [vars(game) for game in games]
