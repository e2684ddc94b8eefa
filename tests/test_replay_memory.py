"""The replay memory against a plain list of whole transitions."""

import numpy as np
import pytest
import torch
from naive_play import NaivePlay, assert_a_memory_is_the_list, assert_samples_are, frame_numbers, frame_of

from atari import Step
from replay_memory import Batch, ReplayMemory
from runtime.action_log import fingerprint
from runtime.devices import frames_device


@pytest.mark.parametrize("num_envs", [1, 3, 8])
def test_samples_are_the_whole_transitions_of_a_plain_list(num_envs: int) -> None:
    assert_a_memory_is_the_list(ReplayMemory(13 * num_envs, num_envs), NaivePlay(num_envs, 13, seed=num_envs))


def test_lost_life_has_its_true_next_state() -> None:
    memory = ReplayMemory(16, 1)
    memory.start(0, frame_of(1)[None])
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    memory.append(np.array([3]), Step(frame_of(2)[None], np.array([1.0]), yes, no, []))
    sampled = memory.sample(1, np.random.default_rng(0))
    assert frame_numbers(sampled.states).tolist() == [[0, 0, 0, 1]]
    assert frame_numbers(sampled.next_states).tolist() == [[0, 0, 1, 2]]
    assert not sampled.discounts.any()


def test_rewards_are_clipped_in_the_memory_alone() -> None:
    raw = np.array([-400.0, -1.0, -0.5, 0.0, 0.5, 1.0, 7.0], np.float32)
    memory, no = ReplayMemory(8 * 7, 7), np.zeros(7, np.bool_)
    memory.start(0, np.stack([frame_of(e) for e in range(7)]))
    step = Step(np.stack([frame_of(7 + e) for e in range(7)]), raw.copy(), no, no, [])
    memory.append(np.arange(7), step)
    sampled = memory.sample(200, np.random.default_rng(0))  # the action is the environment's number
    assert np.array_equal(sampled.rewards, np.array([-1, -1, -0.5, 0, 0.5, 1, 1], np.float32)[sampled.actions])
    assert set(sampled.actions.tolist()) == set(range(7))
    assert np.array_equal(step.rewards, raw)


def test_sampling_is_uniform_over_the_whole_transitions() -> None:
    num_envs, num_rows = 3, 40
    play, memory = NaivePlay(num_envs, num_rows, seed=4), ReplayMemory(num_rows * num_envs, num_envs)
    play.start(memory)
    for _ in range(90):
        play.step()
    whole = play.whole()
    assert len(whole) < (num_rows - 1) * num_envs  # some are broken: drawing again must not favour their neighbours
    draws = 400 * len(whole)
    newest = drawn_slots(memory, draws, seed=0)[:, 3]
    _, counts = np.unique(frame_numbers(memory.frames)[newest], return_counts=True)
    chi_square = ((counts - 400) ** 2 / 400).sum()
    freedom = len(whole) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5


def drawn_slots(memory: ReplayMemory, count: int, seed: int) -> np.ndarray:
    """Where the frames (count, 5) lie of a sample of this seed."""
    return memory.frame_indices(*memory.draw(count, np.random.default_rng(seed)))


def assert_equal(one: Batch, other: Batch) -> None:
    for name, array in vars(one).items():
        assert np.array_equal(array, getattr(other, name)), name


def test_same_generator_same_sample() -> None:
    play, memory = NaivePlay(3, 30, seed=2), ReplayMemory(90, 3)
    play.start(memory)
    for _ in range(50):
        play.step()
    first = memory.sample(64, np.random.default_rng(7))
    assert_equal(first, memory.sample(64, np.random.default_rng(7)))
    frames = memory.frames[torch.from_numpy(drawn_slots(memory, 64, seed=7))]
    assert torch.equal(first.states, frames[:, :4])
    assert torch.equal(first.next_states, frames[:, 1:])
    assert not torch.equal(first.states, memory.sample(64, np.random.default_rng(8)).states)


def test_smallest_memory_can_always_be_sampled() -> None:
    """Sampling never waits for ever, however unluckily games break off."""
    memory, play = ReplayMemory(8, 1), NaivePlay(1, 8, seed=0, ends=0.0)
    play.start(memory)
    for _ in range(60):
        play.step()
        assert_samples_are(memory, play.whole(), seed=0)
        if play.row % 8 == 0:  # training breaks games off no more often
            play.start()
            assert_samples_are(memory, play.whole(), seed=0)


def test_memory_started_at_a_later_row_equals_one_that_ran_from_the_start() -> None:
    num_envs, num_rows = 3, 25
    whole_run, resumed = (ReplayMemory(num_rows * num_envs, num_envs) for _ in range(2))
    play = NaivePlay(num_envs, num_rows, seed=3)
    play.start(whole_run)
    for _ in range(37):
        play.step()
    old = {frame for row in play.rows_held for frame in row}
    play.start(resumed)  # the games are reset from a seed: here a log of actions begins
    assert resumed.row == whole_run.row == 37
    for step in range(2 * num_rows):
        play.step()
        if step >= num_rows - 2:  # the ring holds nothing from before the reset any more
            assert fingerprint(resumed) == fingerprint(whole_run)
            assert resumed.oldest_row == whole_run.oldest_row
            assert_equal(*(memory.sample(50, np.random.default_rng(step)) for memory in (whole_run, resumed)))
            assert np.array_equal(drawn_slots(whole_run, 50, seed=step), drawn_slots(resumed, 50, seed=step))
            slots = np.unique(drawn_slots(whole_run, 2000, seed=0))
            assert np.array_equal(frame_numbers(resumed.frames)[slots], frame_numbers(whole_run.frames)[slots])
        else:
            newer = {key: t for key, t in play.whole().items() if key not in old}
            assert_samples_are(resumed, newer, seed=step)
        assert resumed.oldest_row == max(37, play.row - num_rows + 1)
        assert torch.equal(resumed.latest_states(), whole_run.latest_states())


def test_frames_for_mps_stay_on_the_host() -> None:
    assert frames_device(torch.device("mps")) == torch.device("cpu")
    assert frames_device(torch.device("cuda", 1)) == torch.device("cuda", 1)
