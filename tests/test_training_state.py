"""What a checkpoint and the log hold of a training, and a training restored from it."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from soak import SMALL, hashed

from q_agent_train import set_up, step
from runtime.training_state import is_finite, log_values, restore, state_of
from training import Training

TINY = replace(SMALL, replay_size=320)


def new_training() -> Training:
    return set_up(TINY, torch.device("cpu"))


@pytest.fixture(scope="module")
def learning() -> Iterator[Training]:
    """A training that has begun to learn; tests only look at it."""
    training = new_training()
    training.begin()
    for _ in range(TINY.replay_start_size // TINY.num_envs + 20):
        step(training)
    yield training
    training.close()


def test_what_is_restored_goes_on_bit_for_bit(learning: Training) -> None:
    one, other, watched = new_training(), new_training(), list[int]()

    def watch(steps: int) -> bool:
        watched.append(steps)
        return True

    assert restore(one, state_of(learning), watch)
    assert watched == [TINY.num_envs] * (learning.agent_steps // TINY.num_envs)
    assert hashed(state_of(one)) == hashed(state_of(learning))
    assert np.array_equal(one.epsilon, learning.epsilon)
    assert one.mean_max_q() == learning.mean_max_q() is not None
    restore(other, state_of(learning))
    for _ in range(10):
        assert step(one) == step(other)
    assert hashed(state_of(one)) == hashed(state_of(other)) != hashed(state_of(learning))
    one.close()
    other.close()


def test_a_restoring_that_is_broken_off_sets_nothing_of_agent_or_clock(learning: Training) -> None:
    training, watched = new_training(), list[int]()
    training.set_clock(0)
    before, epsilon = state_of(training), training.epsilon

    def watch(steps: int) -> bool:
        watched.append(steps)
        return len(watched) < 5

    assert restore(training, state_of(learning), watch) is None
    assert len(watched) == 5
    after = state_of(training)
    changed = {name for name in before if hashed(before[name]) != hashed(after[name])}
    assert changed == {"action_log", "fingerprint"}
    assert {"agent", "generators", "agent_steps", "held_out_states"} <= {
        name for name in before if hashed(before[name]) != hashed(state_of(learning)[name])
    }
    assert np.array_equal(training.epsilon, epsilon)
    training.close()


def test_the_deviation_over_held_out_states_leaves_out_the_empty_frames_of_a_games_start() -> None:
    training = new_training()
    states = torch.randint(1, 256, (6, 4, 84, 84), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    states[0, :3] = 0  # a game's first state
    states[3, 0] = 0  # and its third
    training.held_out_states = states
    values, max_q = log_values(training), training.agent.max_q(states)
    assert values["mean_q_held_out"] == pytest.approx(max_q.mean().item())
    assert values["deviation_q_held_out"] == pytest.approx(max_q[[1, 2, 4, 5]].std(correction=0).item())
    assert values["deviation_q_held_out"] != pytest.approx(max_q.std(correction=0).item(), rel=0.1)
    training.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_weight_that_is_no_number_is_noticed(bad: float) -> None:
    training = new_training()
    assert is_finite(training)
    training.agent.optimizer.weights[500_000] = bad
    assert not is_finite(training)
    training.close()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_loss_that_is_no_number_is_noticed(bad: float) -> None:
    training, q_values = new_training(), torch.zeros(4)
    training.agent.means.add(torch.tensor(0.5), q_values)
    assert is_finite(training)
    training.agent.means.add(torch.tensor(bad), q_values)
    assert not is_finite(training)
    training.close()
