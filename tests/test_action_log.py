"""The log of actions, and the fingerprint that says whether they led to the same play."""

import copy

import numpy as np
import pytest

from atari import Step
from replay_memory import ReplayMemory
from runtime.action_log import ActionLog, fingerprint


def test_the_log_forgets_only_what_the_memory_has_lost() -> None:
    log = ActionLog(2)
    for seed, row in ((11, 0), (22, 3), (33, 6)):
        log.start_segment(seed, row)
        for step in range(3):
            log.record(np.array([row + step, 100 + row + step]))
    log.forget_before(2)
    assert [seed for seed, _, _ in log.segments()] == [11, 22, 33]
    log.forget_before(3)
    assert [(seed, row) for seed, row, _ in log.segments()] == [(22, 3), (33, 6)]
    other = ActionLog(2)
    other.load_state_dict(log.state_dict())
    for (seed, row, actions), (seed2, row2, actions2) in zip(log.segments(), other.segments(), strict=True):
        assert (seed, row) == (seed2, row2)
        assert np.array_equal(actions, actions2)
    assert actions.tolist() == [[6, 106], [7, 107], [8, 108]]
    log.forget_before(1_000)
    assert [seed for seed, _, _ in log.segments()] == [33]


def filled(num_rows: int, steps: int, change: tuple[int, str] | None = None) -> ReplayMemory:
    """A memory of 2 environments after `steps` of fixed play, with one thing changed in one step."""
    memory, generator = ReplayMemory(2 * num_rows, 2), np.random.default_rng(0)
    memory.start(0, generator.integers(0, 256, (2, 84, 84), dtype=np.uint8))
    for step in range(steps):
        row: dict[str, np.ndarray] = {
            "actions": generator.integers(4, size=2),
            "rewards": generator.integers(-1, 2, size=2).astype(np.float32),
            "terminals": generator.random(2) < 0.1,
            "game_starts": generator.random(2) < 0.02,
            "frames": generator.integers(0, 256, (2, 84, 84), dtype=np.uint8),
        }
        if change and change[0] == step:
            last = row[change[1]].reshape(-1)
            last[-1] = not last[-1]
        memory.append(row.pop("actions"), Step(**row, finished=[]))
    return memory


@pytest.mark.parametrize("what", ["actions", "rewards", "terminals", "game_starts", "frames"])
def test_fingerprint_is_of_the_newest_frames(what: str) -> None:
    expected = fingerprint(filled(800, 600))
    assert expected == fingerprint(filled(800, 600))
    assert expected != fingerprint(filled(800, 599))
    for recent in (599, 598, 400, 101):
        assert expected != fingerprint(filled(800, 600, change=(recent, what))), recent
    for old in (90, 0):  # more than 1,000 frames ago
        assert expected == fingerprint(filled(800, 600, change=(old, what))), old


def test_fingerprint_is_a_function_of_what_the_ring_holds() -> None:
    expected = fingerprint(filled(50, 160))
    assert expected == fingerprint(filled(50, 160, change=(100, "frames")))  # overwritten since
    assert expected != fingerprint(filled(50, 160, change=(111, "frames")))
    memory = filled(50, 160)
    memory.sample(100, np.random.default_rng(0))
    memory.latest_states()
    assert expected == fingerprint(memory)
    assert expected == fingerprint(copy.deepcopy(memory))
