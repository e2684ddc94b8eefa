"""The training script as a user runs it: on the real Breakout, and from a notebook."""

import csv
import datetime
import json
import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import run_script
from soak import SMALL
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from q_agent_train import Config, train
from runtime.exits import RunError
from runtime.networks import load_network
from runtime.run import prepare

SIZES = ("--replay-size", "1600", "--replay-start-size", "320", "--minibatch-size", "4", "--evaluate-every", "0")
FAST = ("--update-frequency", "16", "--epsilon-end", "1")


def test_a_run_of_breakout_leaves_what_the_readme_promises(tmp_path: Path) -> None:
    flags = ("--save-every-games", "5", "--games", "18", "--num-envs", "8")
    result = run_script("q_agent_train.py", *SIZES, *FAST, *flags, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    (run_dir,) = (tmp_path / "runs").iterdir()
    assert re.fullmatch(r"breakout-\d{8}-\d{6}-seed0", run_dir.name)
    assert json.loads((run_dir / "config.json").read_text())["replay_size"] == 1600
    with open(run_dir / "games.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert 18 <= len(rows) < 18 + 8
    assert [int(row["game"]) for row in rows] == list(range(1, len(rows) + 1))
    assert all(int(row["frames"]) == 4 * int(row["agent_step"]) for row in rows)
    assert all(100 < int(row["length_steps"]) < 1_000 for row in rows)
    assert 0.3 < sum(float(row["score"]) for row in rows) / len(rows) < 4  # the paper's random agent: 1.7
    assert sorted(path.name for path in (run_dir / "state_dicts").iterdir()) == [
        f"game_{number:06d}.pt" for number in range(5, len(rows) + 1, 5)
    ]
    assert load_network(run_dir / "model.pt").game == "breakout"
    last = re.split(r"[\r\n]", result.stderr.strip())[-1]
    assert re.search(
        r"100%.*game \d\d, mean of last \d\d: \d\.\d, epsilon 1\.000, step [\d,]+, [\d,]+ steps/s, 0:00:00 left", last
    )
    command = re.search(r"python trained_model_video_generation.py --state-dict (\S+)", result.stdout)
    assert command is not None
    assert command[1].endswith("model.pt")


def test_tensorboard_gets_every_score_and_the_values_of_the_log(finished: Path) -> None:
    events = EventAccumulator(str(finished), size_guidance={"scalars": 0}).Reload()
    assert len(events.Scalars("score")) == (finished / "games.csv").read_text().count("\n") - 1
    for name, first in (("steps_per_second", 100), ("loss", 300), ("mean_q_held_out", 300), ("deviation_q", 300)):
        assert [event.step for event in events.Scalars(name)] == [*range(first, 1_201, 100)]
    assert all(event.value > 0 for event in events.Scalars("deviation_q_held_out"))


def test_a_loss_that_is_not_finite_stops_the_run_and_names_the_last_good_file(tmp_path: Path) -> None:
    config = replace(SMALL, learning_rate=1e30, evaluate_every=0, save_every_games=0, run_dir=tmp_path / "run")
    with pytest.raises(RunError, match=r"NaN or infinite at agent step [\d,]+.*checkpoint of agent step 0"):
        train(replace(config, checkpoint_minutes=60.0))
    assert load_network(tmp_path / "run" / "model.pt").hidden.weight.isfinite().all()
    assert not [*(tmp_path / "run" / "state_dicts").iterdir()]  # --save-every-games 0


def test_a_run_that_nobody_named_never_takes_over_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As begun in the same second, or after the clock was set back."""
    monkeypatch.chdir(tmp_path)
    held = SimpleNamespace(datetime=SimpleNamespace(now=lambda: datetime.datetime(2026, 11, 1, 2, 30)))
    monkeypatch.setattr("runtime.run.datetime", held)
    name = "runs/road_runner-20261101-023000-seed0"
    assert [str(prepare(SMALL)[1]) for _ in range(3)] == [name, f"{name}-2", f"{name}-3"]


def test_train_can_be_called_again_and_again_from_a_notebook(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
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
        run_dir=str(tmp_path / "run"),  # type: ignore[arg-type]
    )
    first = train(config)
    assert "paper's constants" not in capsys.readouterr().out
    monkeypatch.setattr(Config, "yaml_lines", lambda _: [])  # as where every flag has its default
    second = train(replace(config, run_dir=tmp_path / "again"))
    assert "These are the paper's constants: " in capsys.readouterr().out
    weights = [torch.load(run_dir / "model.pt", weights_only=True)["conv1.weight"] for run_dir in (first, second)]
    assert torch.equal(*weights)
    assert train(replace(config, game="BreakoutNoFrameskip-v4", steps=240)) == first
