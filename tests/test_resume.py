"""A run survives anything: killed, stopped, damaged, out of room, it continues as if nothing had happened."""

import csv
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, finish, wait_for
from soak import LOG_EVERY_STEPS, RESEED_STEPS, SMALL, differences, flags, hashed, start

from atari import FinishedGame, Step
from q_agent_train import train
from runtime.checkpoint import CheckpointFile
from runtime.exits import UsageError
from runtime.networks import load_network
from runtime.run_folder import RunFolder
from runtime.training_state import pack
from viewing.episodes import play_protocol
from wrappers import AtariGames


@pytest.fixture
def copied(tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run; in this process trainings have the fresh seeds of `soak.start`, too."""
    monkeypatch.setattr("training.RESEED_STEPS", RESEED_STEPS)
    monkeypatch.setattr("runtime.run.LOG_EVERY_STEPS", LOG_EVERY_STEPS)
    return Path(shutil.copytree(finished, tmp_path / "run"))


def rows_of(table: Path) -> list[dict[str, str]]:
    with open(table, newline="") as file:
        return [*csv.DictReader(file)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


OPTIONS: dict[str, Any] = {
    **{"prioritized": True, "importance_steps": 500, "reset_head_every": 150, "gradient_steps": 2, "num_envs": 5},
    **{"frames_per_step": 3, "sticky_actions": 0.25, "actions": ("UP", "FIRE"), "initial_weights": "lecun"},
    **{"network": "nips2013", "dueling": True, "separable": True, "double": True, "distributional": "c51"},
    **{"n_steps": 3, "optimizer": "adam", "learning_rate_end": 1e-4, "learning_rate_steps": 700, "steps": 1_000},
}


def test_killed_twice_a_run_with_every_option_ends_as_if_nothing_had_happened(tmp_path: Path) -> None:
    """Each kill comes when a checkpoint is there that is later than learning, a fresh head and changed priorities."""
    first = replace(TINY, **OPTIONS | {"reset_head_every": 0, "steps": 300, "run_dir": tmp_path / "first"})
    config = replace(SMALL, **OPTIONS, initial_state_dict=finish(first) / "model.pt", run_dir=tmp_path / "killed")
    whole = finish(replace(config, checkpoint_minutes=60.0, run_dir=tmp_path / "whole"))
    checkpoints = CheckpointFile(tmp_path / "killed")

    def past(agent_steps: int) -> bool:
        return checkpoints.exists() and checkpoints.load()[0]["training"]["agent_steps"] > agent_steps

    for agent_steps in (400, 800):  # learning starts at 240, the second fresh head comes at 300
        process = start(config)
        while not past(agent_steps):
            time.sleep(0.3)  # looking takes a while itself
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run ended"
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        priorities = hashed(checkpoints.load()[0]["training"]["priorities"])
        assert priorities != hashed(pack(np.ones((96, 5), np.float32)))
    finish(config)
    assert differences(whole, tmp_path / "killed") == []
    assert load_network(whole / "model.pt").rules.frames_per_step == 3
    rows = rows_of(whole / "training.csv")
    assert [int(row["agent_step"]) for row in rows] == list(range(100, 1_001, 100))
    assert len({row["learning_rate"] for row in rows[2:9]}) == 7


def test_a_lengthened_run_equals_one_that_was_long_from_the_start(tmp_path: Path, finished: Path) -> None:
    finish(replace(TINY, steps=700, run_dir=tmp_path / "run"))
    finish(replace(TINY, run_dir=tmp_path / "run"))
    assert differences(finished, tmp_path / "run") == []


def test_a_signal_saves_and_ends_and_the_same_command_resumes(tmp_path: Path, finished: Path) -> None:
    config = replace(TINY, run_dir=tmp_path / "run")
    command = [sys.executable, str(ROOT / "q_agent_train.py"), *flags(config)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    table = tmp_path / "run" / "games.csv"
    wait_for(lambda: table.exists() and len(rows_of(table)) > 1)
    process.send_signal(signal.SIGTERM)
    output = process.communicate(timeout=20)[0]
    assert process.returncode == 128 + signal.SIGTERM
    assert "Stopped after" in output
    state, fault = CheckpointFile(tmp_path / "run").load()
    assert fault is None
    assert 0 < state["training"]["agent_steps"] < TINY.steps
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["_extra_state"]["game"] == "road_runner"
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "Resuming at game" in result.stdout


def test_a_signal_while_the_action_log_plays_changes_nothing(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = contents(copied)
    receive, steps = AtariGames.receive, []

    def receive_and_interrupt(games: AtariGames) -> Step:
        steps.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return receive(games)

    monkeypatch.setattr(AtariGames, "receive", receive_and_interrupt)
    assert train(replace(TINY, steps=1_400, run_dir=copied)) == copied
    assert len(steps) == 1  # of many in the action log
    assert "Stopped while the action log was playing; nothing was changed." in capsys.readouterr().out
    assert contents(copied) == before


def test_an_evaluation_broken_off_at_the_very_end_is_made_up_for(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, copied: Path
) -> None:
    played: list[int] = []

    def play_and_interrupt(*arguments: Any, **options: Any) -> list[FinishedGame] | None:
        played.append(1)
        if len(played) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return play_protocol(*arguments, **options)

    monkeypatch.setattr("viewing.evaluator.play_protocol", play_and_interrupt)
    config = replace(TINY, run_dir=tmp_path / "anew")
    train(config)
    state, _ = CheckpointFile(tmp_path / "anew").load()
    assert (state["training"]["agent_steps"], state["training"]["evaluations"]) == (1_200, 1)
    train(config)
    train(config)  # now there is nothing left to do
    assert len(played) == 3
    shutil.copy(finished / "memory.sha256", tmp_path / "anew")  # which only a run of `start` writes
    assert differences(finished, tmp_path / "anew") == []


def test_one_process_at_a_time_holds_a_folder(tmp_path: Path) -> None:
    with RunFolder(tmp_path / "run"), pytest.raises(UsageError, match="in use by another process"):
        RunFolder(tmp_path / "run")
    with RunFolder(tmp_path / "run"):
        pass


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(
    copied: Path, finished: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.truncate(copied / "checkpoint.pt", 1_000)
    train(replace(TINY, run_dir=copied))
    assert "The newest checkpoint is not usable (checkpoint.pt: damaged)" in capsys.readouterr().out
    assert differences(finished, copied) == []


def test_another_emulator_is_noticed_when_the_action_log_plays_differently(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = CheckpointFile(copied)
    state, _ = checkpoints.load()
    state["training"]["action_log"]["seeds"] = [seed + 1 for seed in state["training"]["action_log"]["seeds"]]
    checkpoints.save(state)
    train(replace(TINY, steps=1_240, run_dir=copied))
    assert "not bit for bit" in capsys.readouterr().out


def test_a_run_resumes_with_as_many_threads_as_it_began_with_unless_told_otherwise(
    copied: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoints = CheckpointFile(copied)
    state, _ = checkpoints.load()
    state["machine"]["threads"] = 3  # not the number of cores of this machine, nor that of the tests
    checkpoints.save(state)
    before = torch.get_num_threads()
    for asked, threads, steps in ((None, 3, 1_240), ("1", 1, 1_280)):
        if asked:
            monkeypatch.setenv("OMP_NUM_THREADS", asked)
        else:
            monkeypatch.delenv("OMP_NUM_THREADS")
        train(replace(TINY, steps=steps, run_dir=copied))
        assert ("not bit for bit" in capsys.readouterr().out) == (asked is not None)
        assert checkpoints.load()[0]["machine"]["threads"] == threads
        assert torch.get_num_threads() == before  # for what comes after it in a notebook


@pytest.mark.parametrize(("limit_bytes", "resumed"), [(100_000, False), (4_000_000, True)])
def test_a_full_disk_is_one_clear_line_and_leaves_the_last_good_checkpoint(
    copied: Path, limit_bytes: int, resumed: bool
) -> None:
    """A limit on the size of files means the full disk: of no file at the start, of a checkpoint later."""
    if not resumed:
        shutil.rmtree(copied)
    good = contents(copied).get(copied / "checkpoint.pt")

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, str(ROOT / "q_agent_train.py"), *flags(replace(TINY, steps=1_400, run_dir=copied))]
    result = subprocess.run(command, capture_output=True, text=True, preexec_fn=limit)
    assert result.returncode == 1, result.stderr
    (error,) = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert f"last good checkpoint: {'agent step 1,200' if resumed else 'nothing yet'}; then resume: python" in error
    assert "Traceback" not in result.stderr
    assert contents(copied).get(copied / "checkpoint.pt") == good
    assert not list(copied.glob(".*.tmp"))
    if resumed:
        assert train(replace(TINY, steps=1_400, run_dir=copied)) == copied
