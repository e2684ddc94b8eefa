"""A run survives anything: killed, stopped, damaged, out of room, it goes on as if nothing had happened."""

import csv
import os
import resource
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from conftest import ROOT, wait_for
from soak import LOG_EVERY_STEPS, RESEED_STEPS, SMALL, differences, flags, hashed, interrupt, start
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from atari import FinishedGame, Step
from q_agent_train import Config, train
from runtime.checkpoint import CheckpointFile
from runtime.networks import load_network
from runtime.training_state import pack
from viewing.episodes import play_protocol
from wrappers import AtariGames

TINY = replace(SMALL, steps=1_200, replay_size=320)
# The script, but with the fresh seeds of `start`.
SCRIPT = f"""
import runtime.run, training
training.RESEED_STEPS = {RESEED_STEPS}
runtime.run.LOG_EVERY_STEPS = {LOG_EVERY_STEPS}
from runtime.exits import exit_with
from q_agent_train import main
exit_with(main)
"""


def run(*arguments: str, limit_bytes: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the training script as a user does, where wanted with a limit on the size of the files it writes."""

    def limit() -> None:
        if limit_bytes is not None:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    command = [sys.executable, "-c", SCRIPT, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, preexec_fn=limit, timeout=120)


def finish(config: Config) -> Path:
    """Run to the end in a child process."""
    assert os.waitpid(start(config), 0)[1] == 0
    assert config.run_dir
    return config.run_dir


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny run, finished; tests that change it copy it."""
    return finish(replace(TINY, run_dir=tmp_path_factory.mktemp("finished") / "run"))


@pytest.mark.parametrize(
    ("num_envs", "kills", "network", "steps"), [(1, 2, "nips2013", 2_000), (4, 2, "nature", 1_300)]
)
def test_killed_again_and_again_a_run_ends_as_if_nothing_had_happened(
    tmp_path: Path, num_envs: int, kills: int, network: Literal["nips2013", "nature"], steps: int
) -> None:
    """Past the memory's wrap-around and across evaluations; half of the kills inside the writing of a checkpoint."""
    small = replace(SMALL, num_envs=num_envs, network=network, steps=steps)
    whole = finish(replace(small, run_dir=tmp_path / "whole"))
    config = replace(small, run_dir=tmp_path / "killed")
    assert interrupt(config, kills, np.random.default_rng(num_envs), longest_seconds=4.0) >= 1
    assert differences(whole, tmp_path / "killed") == []
    with open(whole / "evaluations.csv", newline="") as file:
        assert [int(row["agent_step"]) for row in csv.DictReader(file)] == [*range(600, steps, 600)]


EVERYTHING: dict[str, dict[str, Any]] = {
    "nature": {
        "dueling": True,
        "separable": True,
        "double": True,
        "learning_rate_end": 1e-5,
        "actions": ("UP", "FIRE"),
    },
    "nips2013": {
        "optimizer": "adam",
        "target_network": False,
        "target_update_frequency": 10_000,
        "n_steps": 3,
        "distributional": "c51",
    },
}


@pytest.mark.parametrize("network", EVERYTHING)
def test_killed_five_times_a_run_with_every_option_ends_as_if_nothing_had_happened(
    tmp_path: Path, network: Any
) -> None:
    """Each kill comes when a checkpoint is there that is later than learning, a fresh head and changed priorities."""
    options: dict[str, Any] = {
        "prioritized": True,
        "importance_steps": 500,
        "reset_head_every": 150,
        "gradient_steps": 2,
    }
    options |= {"frames_per_step": 3, "sticky_actions": 0.25, "initial_weights": "lecun", "network": network}
    options |= {"learning_rate_end": 1e-4, "learning_rate_steps": 700, "num_envs": 5, "steps": 1_000} | EVERYTHING[
        network
    ]
    first = replace(SMALL, **{**options, "reset_head_every": 0, "steps": 300, "run_dir": tmp_path / "first"})
    begun = finish(first) / "model.pt"
    config = replace(SMALL, **options, initial_state_dict=begun, run_dir=tmp_path / "killed")
    whole = finish(replace(config, run_dir=tmp_path / "whole"))
    checkpoints = CheckpointFile(tmp_path / "killed")

    def past(agent_steps: int) -> bool:
        return checkpoints.exists() and checkpoints.load()[0]["training"]["agent_steps"] > agent_steps

    for agent_steps in (400, 500, 600, 700, 800):  # learning starts at 240, the second fresh head comes at 300
        process = start(config)
        while not past(agent_steps):
            time.sleep(0.3)  # looking takes a while itself
            assert os.waitpid(process, os.WNOHANG) == (0, 0), "the run ended"
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        assert past(agent_steps)
        (priorities,) = {hashed(checkpoints.load()[0]["training"]["priorities"])}
        assert priorities != hashed(pack(np.ones((96, 5), np.float32)))
    finish(config)
    assert differences(whole, tmp_path / "killed") == []
    assert load_network(whole / "model.pt").rules.frames_per_step == 3
    with open(whole / "training.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["agent_step"]) for row in rows] == list(range(100, 1_001, 100))
    assert len({row["learning_rate"] for row in rows[2:9]}) == 7


def test_tensorboard_and_games_csv_hold_each_game_once_after_interruptions(tmp_path: Path) -> None:
    config = replace(TINY, run_dir=tmp_path / "run")
    interrupt(config, 3, np.random.default_rng(0), longest_seconds=4.0)
    with open(tmp_path / "run" / "games.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["game"]) for row in rows] == list(range(1, len(rows) + 1))
    seconds = [float(row["seconds"]) for row in rows]
    assert seconds == sorted(seconds)
    events = EventAccumulator(str(tmp_path / "run"), size_guidance={"scalars": 0}).Reload()
    logged = Counter((event.step, event.value) for event in events.Scalars("score"))
    assert logged == Counter((int(row["agent_step"]), float(row["score"])) for row in rows)


def test_a_lengthened_run_equals_one_that_was_long_from_the_start(tmp_path: Path, finished: Path) -> None:
    finish(replace(TINY, steps=700, run_dir=tmp_path / "run"))
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1200")
    assert result.returncode == 0, result.stderr
    assert "Playing the action log" in result.stderr
    (tmp_path / "run" / "memory.sha256").write_text((finished / "memory.sha256").read_text())
    assert differences(finished, tmp_path / "run") == []


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_run(source: Path, target: Path) -> None:
    subprocess.run(["cp", "-r", str(source), str(target)], check=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_saves_and_leaves_and_the_same_command_goes_on(tmp_path: Path, finished: Path, number: int) -> None:
    config = replace(TINY, run_dir=tmp_path / "run", checkpoint_minutes=60.0)
    command = [sys.executable, "-c", SCRIPT, *flags(config)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    table = tmp_path / "run" / "games.csv"
    wait_for(lambda: table.exists() and len(table.read_text().splitlines()) > 1)
    process.send_signal(number)
    began = time.monotonic()
    output = process.communicate()[0]
    assert time.monotonic() - began < 10
    assert process.returncode == 128 + number
    assert "Stopped after" in output
    state, fault = CheckpointFile(tmp_path / "run").load()
    assert fault is None
    assert 0 < state["training"]["agent_steps"] < TINY.steps
    assert torch.load(tmp_path / "run" / "model.pt", weights_only=True)["_extra_state"]["game"] == "road_runner"
    result = run(*flags(config))
    assert result.returncode == 0, result.stderr
    assert "Resuming at game" in result.stdout
    (tmp_path / "run" / "memory.sha256").write_text((finished / "memory.sha256").read_text())
    assert differences(finished, tmp_path / "run") == []


def test_a_signal_while_the_tape_plays_changes_nothing(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_run(finished, tmp_path / "run")
    before = contents(tmp_path / "run")
    receive, steps = AtariGames.receive, []

    def receive_and_interrupt(games: AtariGames) -> Step:
        steps.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return receive(games)

    monkeypatch.setattr(AtariGames, "receive", receive_and_interrupt)
    assert train(replace(TINY, steps=1_400, run_dir=tmp_path / "run")) == tmp_path / "run"
    assert len(steps) == 1  # of many in the action log
    assert "Stopped while the action log was playing; nothing was changed." in capsys.readouterr().out
    assert contents(tmp_path / "run") == before


def test_an_evaluation_broken_off_at_the_very_end_is_made_up_for(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    played: list[int] = []

    def play_and_interrupt(*arguments: Any, **options: Any) -> list[FinishedGame] | None:
        played.append(1)
        if len(played) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return play_protocol(*arguments, **options)

    monkeypatch.setattr("viewing.evaluator.play_protocol", play_and_interrupt)
    monkeypatch.setattr("training.RESEED_STEPS", RESEED_STEPS)
    monkeypatch.setattr("runtime.run.LOG_EVERY_STEPS", LOG_EVERY_STEPS)
    config = replace(TINY, run_dir=tmp_path / "run")
    train(config)
    state, _ = CheckpointFile(tmp_path / "run").load()
    assert (state["training"]["agent_steps"], state["training"]["evaluations"]) == (1_200, 1)
    train(config)
    train(config)  # now there is nothing left to do
    assert len(played) == 3
    (tmp_path / "run" / "memory.sha256").write_text((finished / "memory.sha256").read_text())
    assert differences(finished, tmp_path / "run") == []


def test_contradicting_flags_name_both_values_and_change_nothing(tmp_path: Path, finished: Path) -> None:
    copy_run(finished, tmp_path / "run")
    before = {path: path.read_bytes() for path in (tmp_path / "run").glob("*") if path.is_file()}
    for contradiction, expected in (
        (("--num-envs", "8"), ("--num-envs 8", "4")),
        (("--learning-rate", "0.1"), ("--learning-rate 0.1", "0.00025")),
        (("--steps", "100"), ("--steps 100", "1200")),
    ):
        result = run("--run-dir", str(tmp_path / "run"), *contradiction)
        assert result.returncode == 2
        assert len(result.stderr.splitlines()) == 1
        assert all(value in result.stderr for value in expected)
    assert {path: path.read_bytes() for path in before} == before


def test_a_second_process_on_one_folder_is_refused(tmp_path: Path) -> None:
    config = replace(TINY, run_dir=tmp_path / "run")
    process = start(config)
    try:
        wait_for((tmp_path / "run" / "games.csv").exists)
        result = run(*flags(config))
        assert result.returncode == 2
        assert "in use by another process" in result.stderr
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_it_used(tmp_path: Path, finished: Path) -> None:
    copy_run(finished, tmp_path / "run")
    os.truncate(tmp_path / "run" / "checkpoint.pt", 1_000)
    result = run("--run-dir", str(tmp_path / "run"))
    assert result.returncode == 0, result.stderr
    assert "checkpoint.pt: damaged" in result.stdout
    assert differences(finished, tmp_path / "run") == []


def test_two_damaged_checkpoints_are_an_error_and_nothing_is_overwritten(tmp_path: Path, finished: Path) -> None:
    copy_run(finished, tmp_path / "run")
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        os.truncate(tmp_path / "run" / name, 0)
    before = contents(tmp_path / "run")
    result = run("--run-dir", str(tmp_path / "run"))
    assert result.returncode == 1
    assert "no checkpoint in" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert contents(tmp_path / "run") == before


def test_another_emulator_is_noticed_when_the_tape_plays_differently(tmp_path: Path, finished: Path) -> None:
    copy_run(finished, tmp_path / "run")
    checkpoints = CheckpointFile(tmp_path / "run")
    state, _ = checkpoints.load()
    state["training"]["action_log"]["seeds"] = [seed + 1 for seed in state["training"]["action_log"]["seeds"]]
    checkpoints.save(state)
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1240")
    assert result.returncode == 0, result.stderr
    assert "not bit for bit" in result.stdout


def test_a_run_goes_on_with_as_many_threads_as_it_began_with_unless_told_otherwise(
    tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_run(finished, tmp_path / "run")
    checkpoints = CheckpointFile(tmp_path / "run")
    state, _ = checkpoints.load()
    state["machine"][3] = 3  # not the number of cores of this machine, nor that of the tests
    checkpoints.save(state)
    monkeypatch.delenv("OMP_NUM_THREADS")
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1240")
    assert "not bit for bit" not in result.stdout
    assert checkpoints.load()[0]["machine"][3] == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1280")
    assert "not bit for bit" in result.stdout
    assert checkpoints.load()[0]["machine"][3] == 2


def test_a_full_disk_while_running_leaves_the_last_good_checkpoint_untouched(tmp_path: Path, finished: Path) -> None:
    copy_run(finished, tmp_path / "run")
    good = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    # A limit on the size of a file stands for the disk that is full: model.pt still fits, a checkpoint does not.
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1400", limit_bytes=10_000_000)
    assert result.returncode == 1
    assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    assert "Last good checkpoint: agent step 1,200" in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == good
    assert not list((tmp_path / "run").glob(".*.tmp"))
    result = run("--run-dir", str(tmp_path / "run"), "--steps", "1400")
    assert result.returncode == 0, result.stderr
