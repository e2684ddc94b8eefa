"""Flags in files and what belongs together: configs/, a run's own config.json."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import ROOT, save_network
from soak import SMALL

from config import Hyperparameters
from q_agent_train import Config, train
from runtime.exits import UsageError
from runtime.networks import load_network
from runtime.run import command_line


def typed(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> Config:
    """The config that a command line means."""
    monkeypatch.setattr(sys, "argv", ["q_agent_train.py", *arguments])
    return command_line(Config)[0]


@pytest.mark.parametrize("name", sorted(file.stem for file in (ROOT / "configs").glob("*.yaml")))
def test_each_config_can_be_run_and_gives_every_value_its_source(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = typed(monkeypatch, "--config", name)
    config.check()
    assert config.replay_size % config.num_envs == 0
    lines = (ROOT / "configs" / f"{name}.yaml").read_text().splitlines()
    keys = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[a-z-]+: \S+ +# .+", line) for line in keys)
    for line in keys:
        key, value = line.split(":")[0].replace("-", "_"), line.split()[1]
        meant = getattr(config, key)
        assert value == (str(meant).lower() if isinstance(meant, bool | str) else value)
        assert isinstance(meant, bool | str) or float(value) == meant


def test_what_is_typed_counts_more_than_the_file_and_the_file_more_than_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine.yaml").write_text(
        "learning-rate: 1e-10\nminibatch_size: 64\nactions: [FIRE, LEFT]\ndouble: true\n"
    )
    config = typed(monkeypatch, "--config", str(tmp_path / "mine.yaml"), "--minibatch-size", "8", "--game", "Pong")
    assert (config.learning_rate, config.minibatch_size, config.actions) == (1e-10, 8, ("FIRE", "LEFT"))
    assert (config.double, config.game, config.discount) == (True, "Pong", 0.99)
    (tmp_path / "config.json").write_text(json.dumps(config.as_json(), indent=2))
    again = typed(monkeypatch, "--config", str(tmp_path / "config.json"))
    assert again.as_json() == config.as_json()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning-rat: 1\n", "is wrong as shown above; correct it"),
        ("seed: [1\n", "cannot read --config "),
        ("- seed\n", "holds no flags"),
        ("double: 3\n", "is wrong as shown above"),
        ("network: alexnet\n", "is wrong as shown above"),
        ("run-dir: here\n", "may not hold run-dir; type it"),
    ],
)
def test_a_wrong_file_is_refused_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, message: str
) -> None:
    (tmp_path / "odd.yaml").write_text(content)
    with pytest.raises(UsageError) as error:
        typed(monkeypatch, "--config", str(tmp_path / "odd.yaml"))
    assert message in str(error.value)
    assert "odd.yaml" in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"initial_state_dict": 5}, "--initial-state-dict must be a path, got 5"),
        ({"priority_exponent": 0.5}, "--priority-exponent needs --prioritized"),
        ({"optimizer": "adam", "rmsprop_decay": 0.9}, "--rmsprop-decay needs --optimizer rmsprop"),
        ({"adam_epsilon": 0.1}, "--adam-epsilon needs --optimizer adam"),
        ({"n_steps": 0}, "--n-steps must be at least 1"),
        ({"n_steps": 3, "n_steps_end": 1}, "--n-steps-end and --n-steps-steps need each other"),
        ({"n_steps": 3, "n_steps_end": 4, "n_steps_steps": 9}, "--n-steps-end must be below --n-steps 3, got 4"),
        ({"n_steps": 2000}, "must be at least 64000, --n-steps 2000 of each environment, got 50000"),
        ({"target_network": False, "double": True}, "--double needs --target-network"),
        ({"target_network": False, "target_update_frequency": 5}, "--target-update-frequency needs"),
        ({"learning_rate_end": 1e-5}, "--learning-rate-end and --learning-rate-steps need each other"),
        ({"actions": ("FIRE", "JUMP")}, "--actions: JUMP is no action of Pong; there are NOOP, FIRE, RIGHT, LEFT"),
        ({"actions": ("FIRE", "FIRE")}, "--actions: FIRE comes twice"),
        ({"initial_weights": "he"}, "--initial-weights must be one of torch7, lecun, xavier, got 'he'"),
        ({"learning_rate_end": 0.0, "learning_rate_steps": 5}, "--learning-rate-end must be above 0"),
    ],
)
def test_values_that_are_wrong_alone_or_with_others_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError) as error:
        Hyperparameters("pong", **changes).check()
    assert message in str(error.value)


def test_weights_to_begin_with_are_taken_over_and_refused_where_they_do_not_fit(tmp_path: Path) -> None:
    begun = save_network(tmp_path / "begun.pt", "pong", 6, seed=3)
    config = replace(
        SMALL, game="pong", network="nature", initial_state_dict=begun, steps=300, run_dir=tmp_path / "run"
    )
    expected = config.initial_network
    assert expected is not None
    reordered = ("NOOP", "FIRE", "LEFT", "RIGHT", "RIGHTFIRE", "LEFTFIRE")
    for changes in ({"dueling": True}, {"game": "breakout"}, {"actions": reordered}):
        with pytest.raises(UsageError, match="does not fit: it is for "):
            replace(config, **changes).check_new()
    train(replace(config, learning_rate=1e-30))
    begun.unlink()  # a run that is resumed does not need it
    train(replace(config, learning_rate=1e-30, steps=320))
    ended = load_network(tmp_path / "run" / "model.pt")
    for name, parameter in ended.named_parameters():
        assert np.array_equal(parameter.detach().numpy(), expected.get_parameter(name).detach().numpy())


def test_the_learning_rate_reaches_its_end_in_a_straight_line_and_stays() -> None:
    parameters = Hyperparameters("pong", replay_start_size=70, learning_rate_end=1e-5, learning_rate_steps=90)
    rates = [parameters.learning_rate_at(agent_steps) for agent_steps in (0, 70, 100, 115, 160, 161, 1_000)]
    assert rates == pytest.approx([0.00025, 0.00025, 0.00017, 0.00013, 1e-5, 1e-5, 1e-5])
    assert Hyperparameters("pong").learning_rate_at(10**6) == 0.00025


def test_the_importance_exponent_rises_to_1() -> None:
    parameters = Hyperparameters("pong", replay_start_size=70, prioritized=True, importance_steps=60)
    exponents = [parameters.importance_exponent_at(step) for step in (0, 70, 100, 130, 10_000)]
    assert exponents == pytest.approx([0.4, 0.4, 0.7, 1.0, 1.0])


def test_a_notebook_names_the_flags_of_a_file_itself() -> None:
    with pytest.raises(UsageError, match="--config is for the command line"):
        train(Config(config="d3qn"))
