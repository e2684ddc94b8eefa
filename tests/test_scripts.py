"""The training script as a user runs it: on the real Breakout, with every kind of bad input, and from a notebook."""

import csv
import datetime
import errno
import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import refused, run_script
from soak import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from q_agent_train import Config, main, train
from runtime.checkpoint import save_state_dict
from runtime.exits import RunError, UsageError
from runtime.networks import load_network
from runtime.run_folder import make_new_folder

SIZES = ("--replay-size", "1600", "--replay-start-size", "320", "--minibatch-size", "4", "--evaluate-every", "0")
FAST = ("--update-frequency", "16", "--epsilon-end", "1")


@pytest.fixture(scope="module")
def breakout(tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """A small run of the script with its own game, Breakout, in an empty folder."""
    folder = tmp_path_factory.mktemp("user")
    flags = ("--save-every-games", "5", "--games", "18", "--num-envs", "8")
    return run_script("q_agent_train.py", *SIZES, *FAST, *flags, cwd=folder), folder


def test_a_run_of_breakout_leaves_what_the_readme_says(
    breakout: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    result, folder = breakout
    assert result.returncode == 0, result.stderr
    (run_dir,) = (folder / "runs").iterdir()
    assert re.fullmatch(r"breakout-\d{8}-\d{6}-seed0", run_dir.name)
    assert json.loads((run_dir / "config.json").read_text())["replay_size"] == 1600
    with open(run_dir / "games.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert 18 <= len(rows) < 18 + 8
    assert [int(row["game"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(int(row["frames"]) == 4 * int(row["agent_step"]) for row in rows)
    assert all(100 < int(row["length_steps"]) < 1_000 for row in rows)
    assert 0.3 < sum(float(row["score"]) for row in rows) / len(rows) < 4  # the paper's random play: 1.7
    assert sorted(path.name for path in (run_dir / "state_dicts").iterdir()) == [
        f"game_{number:06d}.pt" for number in range(5, len(rows) + 1, 5)
    ]
    assert load_network(run_dir / "model.pt").game == "breakout"
    events = EventAccumulator(str(run_dir), size_guidance={"scalars": 0}).Reload()
    assert len(events.Scalars("score")) == len(rows)


def test_the_progress_line_and_the_end_say_what_a_user_needs(
    breakout: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    result, _ = breakout
    last = re.split(r"[\r\n]", result.stderr.strip())[-1]
    assert re.search(
        r"100%.*game \d\d, mean of last \d\d: \d\.\d, epsilon 1\.000, step [\d,]+, [\d,]+ steps/s, 0:00:00 left", last
    )
    command = re.search(r"python trained_model_video_generation.py --state-dict (\S+)", result.stdout)
    assert command is not None
    assert command[1].endswith("model.pt")


def test_tensorboard_gets_the_loss_and_the_held_out_states_value(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime.run.LOG_EVERY_STEPS", 500)
    train(replace(SMALL, steps=1_000, evaluate_every=0, run_dir=tmp_path / "run"))
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    for name in ("loss", "mean_q_held_out", "deviation_q_held_out", "steps_per_second"):
        assert [event.step for event in events.Scalars(name)] == [500, 1_000]
    assert all(event.value > 0 for event in events.Scalars("deviation_q_held_out"))


@pytest.mark.parametrize(
    ("num_envs", "steps", "save_every_games"), [(1, 600, 1), (3, 1_200, 1), (8, 1_800, 2), (32, 3_584, 1)]
)
def test_a_state_dict_is_saved_after_every_so_many_games(
    tmp_path: Path, num_envs: int, steps: int, save_every_games: int
) -> None:
    warm_up = min(480 * num_envs, steps - num_envs)
    config = replace(SMALL, num_envs=num_envs, replay_size=480 * num_envs, replay_start_size=warm_up, evaluate_every=0)
    config = replace(config, steps=steps, save_every_games=save_every_games, checkpoint_minutes=60)
    train(replace(config, run_dir=tmp_path / "run"))
    games = len((tmp_path / "run" / "games.csv").read_text().splitlines()) - 1
    assert games >= 2 * save_every_games
    assert sorted(path.name for path in (tmp_path / "run" / "state_dicts").iterdir()) == [
        f"game_{number:06d}.pt" for number in range(save_every_games, games + 1, save_every_games)
    ]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (("--game", "Breakuot"), "did you mean Breakout"),
        (("--game", "Breakuot", "--run-dir", "run", *SIZES), "did you mean Breakout"),
        (("--num-envs", "0"), "--num-envs 0"),
        (("--replay-size", "1601"), "not a multiple of --num-envs"),
        (("--replay-size", "32"), "too small to sample from"),
        (("--replay-size", "32000000000"), "GB free"),
        (("--learning-rate", "-1"), "--learning-rate -1"),
        (("--learning-rate", "nan"), "--learning-rate nan"),
        (("--checkpoint-minutes", "inf"), "--checkpoint-minutes inf"),
        (("--games", "0"), "--games 0"),
        (("--device", "abacus"), "--device abacus is not there"),
        (("--webhook", "nowhere", *SIZES), "--webhook is no https"),
        (("--run-dir", "/proc/run", *SIZES), "cannot be written"),
        (("--run-dir", "long" * 100, *SIZES), "cannot be written: File name too long"),
    ],
)
def test_bad_input_is_one_line_and_status_2_and_leaves_nothing(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    flags: tuple[str, ...],
    expected: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert expected in refused(monkeypatch, capfd, main, *flags)
    assert not list(tmp_path.iterdir())


def test_bad_input_as_a_user_meets_it(tmp_path: Path) -> None:
    result = run_script("q_agent_train.py", "--game", "Breakuot", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr == 'error: unknown game "Breakuot"; did you mean Breakout?\n'
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    result = run_script("q_agent_train.py", "--device", "cuda")
    assert result.returncode == 2
    assert "this machine has: " in result.stderr
    assert "cpu" in result.stderr


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_file(tmp_path: Path) -> None:
    config = replace(SMALL, learning_rate=1e30, evaluate_every=0, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"no finite number.*agent step [\d,]+.*checkpoint of agent step 0"):
        train(replace(config, checkpoint_minutes=60.0))
    assert load_network(tmp_path / "run" / "model.pt").hidden.weight.isfinite().all()


def test_a_network_that_has_died_is_said_once_and_one_that_lives_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("runtime.run.LOG_EVERY_STEPS", 200)
    config = replace(SMALL, steps=800, evaluate_every=0)
    train(replace(config, run_dir=tmp_path / "living"))
    assert "same value" not in capfd.readouterr().out
    weights = load_network(tmp_path / "living" / "model.pt").state_dict()
    weights["conv2.bias"].fill_(-1e3)  # no state lifts a unit above 0
    save_state_dict(weights, tmp_path / "dead.pt")
    train(replace(config, initial_state_dict=tmp_path / "dead.pt", run_dir=tmp_path / "run"))
    (line,) = [line for line in capfd.readouterr().out.splitlines() if "same value" in line]
    assert line.startswith("The network gives the same value to every state at agent step 400: ")


def test_games_that_no_checkpoint_knows_are_never_overwritten(tmp_path: Path) -> None:
    (tmp_path / "games.csv").write_text("mine\n")
    with pytest.raises(UsageError, match=r"holds games\.csv"):
        train(replace(SMALL, run_dir=tmp_path))
    assert (tmp_path / "games.csv").read_text() == "mine\n"


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("mount"), reason="needs the right to mount a small disk")
@pytest.mark.parametrize("kilobytes", [100, 8_000, 60_000])
def test_a_disk_that_is_full_at_the_start_or_later_is_one_clear_line(tmp_path: Path, kilobytes: int) -> None:
    """The smallest holds no network, the middle one no checkpoint, the largest no second one beside the first."""
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "none", str(tmp_path)]).returncode:
        pytest.skip("this machine does not let tests mount a disk")
    try:
        flags = ("--num-envs", "4", "--steps", "4000", "--checkpoint-minutes", "0.005")
        result = run_script("q_agent_train.py", "--run-dir", str(tmp_path / "run"), *SIZES, *flags)
        assert result.returncode == 1
        assert "No space left on device" in result.stderr
        assert "Traceback" not in result.stderr
        assert len([line for line in result.stderr.splitlines() if line.startswith("error:")]) == 1
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_a_run_that_nobody_named_never_takes_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As begun in the same second, or after the clock was set back; with other constants, and with the same."""
    monkeypatch.chdir(tmp_path)
    held = SimpleNamespace(now=lambda: datetime.datetime(2026, 11, 1, 2, 30))
    monkeypatch.setattr("runtime.run.datetime", SimpleNamespace(datetime=held, timedelta=datetime.timedelta))
    small = replace(SMALL, steps=300, evaluate_every=0)
    first, name = train(small), "road_runner-20261101-023000-seed0"
    begun = {path: path.read_bytes() for path in first.iterdir() if path.is_file()}
    others = [train(replace(small, steps=400, learning_rate=0.01)), train(small)]
    assert [str(path) for path in (first, *others)] == [f"runs/{name}", f"runs/{name}-2", f"runs/{name}-3"]
    assert {path: path.read_bytes() for path in begun} == begun
    assert [json.loads((path / "config.json").read_text())["steps"] for path in others] == [400, 300]
    assert train(replace(small, steps=340, run_dir=others[0].parent / f"{name}-3")) == others[1]  # by its name


def test_a_new_folder_is_claimed_by_one_alone(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = [*pool.map(lambda _: make_new_folder(tmp_path / "runs" / "a"), range(40))]
    assert {path.name for path in made} == {"a", *(f"a-{number}" for number in range(2, 41))}
    (tmp_path / "file").write_text("mine")
    for path in (tmp_path / "file" / "a", tmp_path / ("long" * 100)):
        with pytest.raises(UsageError, match="cannot be made"):
            make_new_folder(path)


@pytest.mark.parametrize(
    ("number", "room"), [(errno.ENOSPC, True), (errno.EDQUOT, True), (errno.EROFS, False), (errno.EIO, False)]
)
def test_a_disk_is_called_full_only_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, room: bool
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("runtime.run_folder.write_text", fail)
    with pytest.raises(UsageError, match=os.strerror(number)) as refusal:
        train(replace(SMALL, run_dir=tmp_path / "run"))
    assert ("make room" in str(refusal.value)) == room


def test_train_can_be_called_again_and_again_from_a_notebook(tmp_path: Path) -> None:
    config = Config(
        game="breakout",
        num_envs=2,
        replay_size=400,
        replay_start_size=40,
        minibatch_size=2,
        steps=200,
        evaluate_every=0,
        checkpoint_minutes=5,  # a float that is written without a point, and NumPy's numbers, are as good
        seed=np.int64(0),  # type: ignore[arg-type]
        run_dir=tmp_path / "run",
    )
    first = train(config)
    second = train(replace(config, run_dir=tmp_path / "again"))
    weights = [torch.load(run_dir / "model.pt", weights_only=True)["conv1.weight"] for run_dir in (first, second)]
    assert torch.equal(*weights)
    assert train(replace(config, steps=240)) == first
    assert train(replace(config, game="BreakoutNoFrameskip-v4", steps=260)) == first
