"""What happens at which agent step: exploration, updates, target copies and games, against the Lua clock."""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from conftest import begun

from config import Hyperparameters
from model import QNetwork
from q_agent import QAgent
from q_agent_train import step
from relatives.head_reset import head_of, reset_head
from relatives.networks import build_network
from runtime.exits import UsageError
from training import Training, multiples_crossed

CPU = torch.device("cpu")


def lua_clock(steps: int, parameters: Hyperparameters) -> tuple[list[int], list[int]]:
    """Updates and target copies made after each of `steps` agent steps, counted one by one as perceive does."""
    updates, copies = [0], [0]
    for num_steps in range(1, steps + 1):
        learns = num_steps > parameters.replay_start_size and num_steps % parameters.update_frequency == 0
        updates.append(updates[-1] + learns)
        num_steps += 1
        copies.append(copies[-1] + (num_steps % parameters.target_update_frequency == 1))
    return updates, copies


def test_epsilon_at_every_knee() -> None:
    paper = Hyperparameters("pong")
    expected = {
        0: 1.0,
        49_999: 1.0,
        50_000: 1.0,
        50_001: 1 - 0.9e-6,
        550_000: 0.55,
        1_049_999: 0.1 + 0.9e-6,
        1_050_000: 0.1,
        1_050_001: 0.1,
        50_000_000: 0.1,
    }
    epsilon = paper.epsilon(np.array(list(expected)))
    assert epsilon.dtype == np.float64
    np.testing.assert_allclose(epsilon, list(expected.values()), rtol=1e-12)
    assert paper.epsilon(np.array([0, 50_000]))[1] == 1.0
    assert paper.epsilon(np.array([1_050_000]))[0] == 0.1


def test_epsilon_follows_its_flags() -> None:
    parameters = Hyperparameters(
        "pong", replay_start_size=100, epsilon_start=0.8, epsilon_end=0.2, epsilon_decay_steps=60
    )
    steps = np.arange(300)
    lua = [0.2 + max(0, (0.8 - 0.2) * (60 - max(0, step - 100)) / 60) for step in range(300)]
    np.testing.assert_allclose(parameters.epsilon(steps), lua, rtol=1e-12)


@pytest.mark.parametrize(("start", "frequency"), [(50_000, 4), (100, 4), (101, 4), (103, 4), (7, 3), (1, 1), (10, 32)])
def test_updates_are_those_of_the_lua_clock(start: int, frequency: int) -> None:
    parameters = Hyperparameters("pong", replay_start_size=start, update_frequency=frequency)
    updates, _ = lua_clock(start + 300, parameters)
    assert [parameters.updates_until(step) for step in range(start + 301)] == updates
    assert updates[-1] > 5


def test_the_paper_makes_12_and_a_half_million_updates_less_the_warm_up() -> None:
    assert Hyperparameters("pong").updates_until(50_000_000) == 12_500_000 - 12_500


@pytest.mark.parametrize("num_envs", [1, 3, 8, 32])
@pytest.mark.parametrize("period", [5, 24, 100])
def test_target_copies_are_those_of_the_lua_clock(num_envs: int, period: int) -> None:
    parameters = Hyperparameters("pong", target_update_frequency=period)
    _, copies = lua_clock(100 * num_envs, parameters)
    for before, after in pairwise(range(0, 100 * num_envs + 1, num_envs)):
        assert multiples_crossed(before, after, period) == copies[after] - copies[before]
    assert multiples_crossed(0, 100 * num_envs, period) == copies[-1] > 0


def tiny(num_envs: int, **changes: Any) -> Hyperparameters:
    settings: dict[str, Any] = {
        "game": "breakout",
        "num_envs": num_envs,
        "replay_size": 400 * num_envs,
        "minibatch_size": 2,
        "target_update_frequency": 40,
        "epsilon_decay_steps": 200,
    }
    parameters = Hyperparameters(**{**settings, **changes})
    parameters.check()
    return parameters


def assert_step_keeps_the_clock(training: Training, updates: list[int], copies: list[int]) -> None:
    """One step; what it learned and copied is what the Lua clock says."""
    before, steps = training.agent.state_dict(), training.agent_steps
    step(training)
    after, now = training.agent.state_dict(), training.agent_steps
    assert now == steps + training.parameters.num_envs
    assert after["updates_since_loss"] == updates[now]
    learned = updates[now] > updates[steps]
    assert learned == (not torch.equal(before["online"], after["online"]))
    copied = copies[now] > copies[steps]
    assert torch.equal(after["target"], after["online"] if copied else before["target"])


@pytest.mark.parametrize(("num_envs", "steps"), [(3, 50), (32, 5)])
def test_heads_are_drawn_anew_and_updates_made_as_often_as_asked(
    num_envs: int, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fresh head in each step that crosses a multiple of the period, never otherwise; N updates for one."""
    parameters = tiny(num_envs, replay_start_size=70, reset_head_every=45, gradient_steps=3, initial_weights="lecun")
    updates, _ = lua_clock(steps * num_envs, parameters)
    training, seeds = begun(parameters), list[int]()

    def note(agent: QAgent, build: Callable[[], QNetwork], seed: int) -> None:
        assert agent is training.agent
        seeds.append(seed)
        reset_head(agent, build, seed)

    monkeypatch.setattr("relatives.chosen.reset_head", note)
    for _ in range(steps):
        before, known = training.agent_steps, len(seeds)
        step(training)
        assert len(seeds) - known == (training.agent_steps // 45 > before // 45)
        if len(seeds) > known:
            torch.manual_seed(seeds[-1])
            fresh = build_network("breakout", 4, initial_weights="lecun")
            for network in (training.agent.online_network, training.agent.target_network):
                for own, drawn in zip(head_of(network), head_of(fresh), strict=True):
                    assert torch.equal(own, drawn)
        assert training.agent.state_dict()["updates_since_loss"] == 3 * updates[training.agent_steps]
    assert len(set(seeds)) == len(seeds) == steps * num_envs // 45


@pytest.mark.parametrize(("num_envs", "steps"), [(1, 130), (3, 50), (32, 4)])
def test_training_keeps_the_clock(num_envs: int, steps: int) -> None:
    parameters = tiny(num_envs, replay_start_size=70)
    updates, copies = lua_clock(steps * num_envs, parameters)
    training = begun(parameters)
    for _ in range(steps):
        assert_step_keeps_the_clock(training, updates, copies)
        learning = training.agent_steps - num_envs >= parameters.replay_start_size
        assert (training.held_out_states is not None) == learning
    assert updates[-1] == steps * num_envs // 4 - 17  # one per 4 agent steps, none in the first 70
    assert training.held_out_states is not None
    assert training.held_out_states.shape == (500, 4, 84, 84)
    assert training.memory.row == steps
    training.close()


def test_exploration_is_random_until_learning_starts_and_greedy_where_epsilon_ends_at_zero() -> None:
    training = begun(tiny(1, replay_start_size=40, epsilon_end=0.0, epsilon_decay_steps=1, update_frequency=1000))
    greedy = []
    for _ in range(80):
        with torch.no_grad():
            greedy.append(int(training.agent.online_network(training.memory.latest_states()).argmax()))
        step(training)
    ((_, _, actions),) = training.action_log.segments()
    agrees = actions[:, 0] == np.array(greedy)
    assert agrees[41:].all()
    assert agrees[:40].mean() < 0.6
    training.close()


def learned_weights(seed: int) -> torch.Tensor:
    training = begun(tiny(2, game="pong", seed=seed, replay_start_size=16, epsilon_decay_steps=20))
    for _ in range(40):
        step(training)
    weights: torch.Tensor = training.agent.state_dict()["online"]
    training.close()
    return weights


def test_same_seed_same_weights() -> None:
    first = learned_weights(seed=5)
    assert torch.equal(first, learned_weights(seed=5))
    assert not torch.equal(first, learned_weights(seed=6))


def test_games_are_reseeded_at_each_multiple_once_whatever_the_evaluations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.RESEED_STEPS", 16)
    training = begun(tiny(1, game="pong", replay_start_size=1000, evaluate_every=20))
    due, evaluation_seeds = [], []
    for _ in range(50):
        step(training)
        if training.evaluation_is_due:
            due.append(training.agent_steps)
            evaluation_seeds.append(training.evaluation_seed())
            training.evaluations += 1
        assert not training.evaluation_is_due
        training.reseed_when_due()
        training.reseed_when_due()
    assert due == [20, 40]
    segments = list(training.action_log.segments())
    assert [(row, len(actions)) for _, row, actions in segments] == [(0, 16), (16, 16), (32, 16), (48, 2)]
    assert len({seed for seed, _, _ in segments} | set(evaluation_seeds)) == 6
    training.close()


BAD: dict[str, tuple[Any, ...]] = {
    "num_envs": (0, -1, 257),
    "replay_start_size": (0, -1, 31),
    "minibatch_size": (0, -32),
    "update_frequency": (0, -4),
    "target_update_frequency": (0, -1),
    "learning_rate": (0.0, -0.1, math.nan, math.inf),
    "rmsprop_decay": (-0.1, 1.0, math.nan, math.inf),
    "min_squared_gradient": (0.0, -0.01, math.nan, math.inf),
    "discount": (-0.1, 1.1, math.nan, math.inf),
    "epsilon_start": (-0.1, 1.1, math.nan, math.inf),
    "epsilon_end": (-0.1, 1.1, math.nan, -math.inf),
    "epsilon_decay_steps": (0, -1),
    "sticky_actions": (-0.1, 1.1, math.nan, math.inf),
    "evaluate_every": (-1, -250_000),
    "evaluation_games": (0, -1, 257),
    "seed": (-1, 2**32),
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_a_value_out_of_its_bounds_is_refused_by_its_flag(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} ") as error:
        Hyperparameters("pong", **{name: value}).check()
    assert "\n" not in str(error.value)
    assert f", got {value}" in str(error.value)


def test_the_papers_values_and_the_limits_are_accepted() -> None:
    Hyperparameters("pong").check()
    Hyperparameters("pong", num_envs=256, evaluation_games=256).check()
    Hyperparameters("pong", num_envs=1, discount=0.0, epsilon_start=0.0, epsilon_end=0.0, evaluate_every=0).check()
    Hyperparameters(
        "pong", discount=1.0, epsilon_end=1.0, sticky_actions=1.0, rmsprop_decay=0.0, seed=2**32 - 1
    ).check()
