"""The replay memory against a plain list of whole transitions."""

import copy
import re
from collections import deque
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import psutil
import pytest
import torch

from atari import Step
from machine.exits import UsageError
from replay_memory import Batch, ReplayMemory, frames_device

NO_FRAME = 0
DISCOUNT = 0.99
DIGITS = 250  # a frame's number is written all over it in three bytes, none of them zero


def frame_of(number: int) -> np.ndarray:
    digits = [number % DIGITS + 1, number // DIGITS % DIGITS + 1, number // DIGITS**2 + 1]
    return np.resize(np.array(digits, np.uint8), (84, 84))


def frame_numbers(frames: torch.Tensor) -> np.ndarray:
    """The number of each frame (..., 84, 84); every byte of every frame is checked."""
    pixels = frames.numpy().reshape(-1, 84 * 84)
    assert np.array_equal(pixels, np.tile(pixels[:, :3], pixels.shape[1] // 3))
    low, middle, high = pixels[:, :3].astype(np.int64).T
    numbers = np.where(low == 0, NO_FRAME, low - 1 + (middle - 1) * DIGITS + (high - 1) * DIGITS**2)
    assert not pixels[numbers == NO_FRAME].any()
    return numbers.reshape(frames.shape[:-2])


@dataclass
class Transition:
    """One step; frames are numbers, `next_state` is None where a game's end or a break took it away."""

    state: tuple[int, ...]
    action: int
    reward: float
    terminal: bool
    next_state: tuple[int, ...] | None


class NaivePlay:
    """Random play, put into memories and kept as whole transitions in a plain list.

    Games end, lives are lost, games are cut without an end, and all of them are broken off now and then.
    """

    def __init__(self, num_envs: int, num_rows: int, seed: int, ends: float = 0.06, n_steps: int = 1):
        self.num_envs = num_envs
        self.memories: list[ReplayMemory] = []
        self.row = 0
        self.transitions: list[Transition] = []
        self.rows_held: deque[list[int]] = deque(maxlen=num_rows)
        self._generator = np.random.default_rng(seed)
        self._ends = ends
        self._n_steps = n_steps
        self._count = 0

    def start(self, *memories: ReplayMemory) -> None:
        frames = self._new_frames()
        for memory in memories:
            memory.start(self.row, self._pixels(frames))
        for memory in self.memories:
            memory.restart_games(self._pixels(frames))
        if self.memories:
            self.rows_held.pop()  # the broken games' newest frames are gone
        self.memories += memories
        self.rows_held.append(frames)
        self.states = [(NO_FRAME,) * 3 + (frame,) for frame in frames]

    def step(self) -> None:
        draw = self._generator.random(self.num_envs)
        over, cut = draw < self._ends, (draw >= self._ends) & (draw < 1.5 * self._ends)
        life_lost = self._generator.random(self.num_envs) < 2 * self._ends
        terminals, game_starts = over | (life_lost & ~cut), over | cut
        actions = self._generator.integers(18, size=self.num_envs)
        rewards = self._generator.integers(-3, 4, size=self.num_envs).astype(np.float32)
        frames = self._new_frames()
        for memory in self.memories:
            memory.append(actions, Step(self._pixels(frames), rewards, terminals, game_starts, []))
        self.row += 1
        self.rows_held.append(frames)
        for e, state in enumerate(self.states):
            ended = bool(game_starts[e])
            next_state = ((NO_FRAME,) * 3 if ended else state[1:]) + (frames[e],)
            reward = max(-1.0, min(1.0, float(rewards[e])))
            self.transitions.append(
                Transition(state, int(actions[e]), reward, bool(terminals[e]), None if ended else next_state)
            )
            self.states[e] = next_state

    def whole(self) -> dict[int, Transition]:
        """What can be drawn, by the number of its state's newest frame: n steps, or as many as there are up to a
        terminal, in one transition, whose frames are all still held. The reward is their discounted sum."""
        held = {NO_FRAME}.union(*self.rows_held)
        following, found = {t.state[-1]: t for t in self.transitions}, {}
        for first in self.transitions:
            last, reward, steps = first, first.reward, 1
            while steps < self._n_steps and not last.terminal and last.next_state:
                if (after := following.get(last.next_state[-1])) is None:
                    break
                last, reward, steps = after, reward + DISCOUNT**steps * after.reward, steps + 1
            done = last.terminal or (steps == self._n_steps and last.next_state)
            if done and held.issuperset(first.state) and (last.terminal or held.issuperset(last.next_state or ())):
                found[first.state[-1]] = Transition(first.state, first.action, reward, last.terminal, last.next_state)
        return found

    def _new_frames(self) -> list[int]:
        self._count += self.num_envs
        return list(range(self._count - self.num_envs + 1, self._count + 1))

    def _pixels(self, frames: list[int]) -> np.ndarray:
        return np.stack([frame_of(frame) for frame in frames])


def assert_samples_are(memory: ReplayMemory, whole: dict[int, Transition], seed: int) -> None:
    """Everything sampled is in `whole` and equal, and everything in `whole` is sampled."""
    drawn = np.unique(np.stack(memory.draw(60 * max(len(whole), 8), np.random.default_rng(seed))), axis=1)
    with patch.object(memory, "draw", return_value=drawn):  # each once: a sample copies every frame
        each = memory.sample(drawn.shape[1], np.random.default_rng(seed))
    assert set(frame_numbers(each.states)[:, 3].tolist()) == whole.keys()
    assert_equals_the_list(each, whole, memory.n_steps)
    assert_equals_the_list(memory.sample(20, np.random.default_rng(seed)), whole, memory.n_steps)


def assert_equals_the_list(sampled: Batch, whole: dict[int, Transition], n_steps: int = 1) -> None:
    states, next_states = frame_numbers(sampled.states), frame_numbers(sampled.next_states)
    columns = (states, next_states, sampled.actions, sampled.rewards, sampled.discounts)
    for *frames, action, reward, discount in np.unique(np.column_stack(columns), axis=0).tolist():
        state, next_state, expected = tuple(frames[:4]), tuple(frames[4:]), whole[int(frames[3])]
        assert state == expected.state
        assert action == expected.action
        assert reward == np.float32(expected.reward) or abs(reward - expected.reward) < 1e-6
        assert discount == (0 if expected.terminal else np.float32(DISCOUNT**n_steps))
        if not expected.terminal or (n_steps == 1 and NO_FRAME not in next_state):
            assert next_state == expected.next_state  # a break may have taken a lost life's next frame
        elif expected.next_state is None and n_steps == 1:
            assert next_state[-1] == NO_FRAME


@pytest.mark.parametrize(("num_envs", "n_steps"), [(1, 1), (3, 1), (8, 1), (3, 2), (1, 3), (3, 3), (3, 7)])
def test_samples_are_the_whole_transitions_of_a_plain_list(num_envs: int, n_steps: int) -> None:
    num_rows = 13 if n_steps == 1 else 24
    memory = ReplayMemory(num_rows * num_envs, num_envs, n_steps=n_steps)
    play = NaivePlay(num_envs, num_rows, seed=num_envs, n_steps=n_steps)
    breaks = np.random.default_rng(num_envs)
    play.start(memory)
    seen = dict.fromkeys(("lost life", "game over", "cut", "broken", "start"), 0)
    for step in range(300):
        play.step()
        if breaks.random() < 0.04:
            play.start()
        if step % 7 and step >= 30:
            continue
        assert frame_numbers(memory.frames)[-1] == NO_FRAME
        latest = [tuple(state) for state in frame_numbers(memory.latest_states()).tolist()]
        assert latest == play.states
        whole = play.whole()
        if whole:
            assert_samples_are(memory, whole, seed=step)
        seen["lost life"] += any(t.terminal and t.next_state for t in whole.values())
        seen["game over"] += any(t.terminal and not t.next_state for t in whole.values())
        seen["start"] += any(NO_FRAME in t.state for t in whole.values())
        newest = play.transitions[-num_envs * (num_rows - 4) :]
        seen["cut"] += any(not t.terminal and not t.next_state for t in newest)
        seen["broken"] += any(t.next_state and not t.terminal and t.state[-1] not in whole for t in newest)
    assert min(seen.values()) > 3, seen


def test_lost_life_has_its_true_next_state() -> None:
    memory = ReplayMemory(16, 1)
    memory.start(0, frame_of(1)[None])
    yes, no = np.ones(1, np.bool_), np.zeros(1, np.bool_)
    memory.append(np.array([3]), Step(frame_of(2)[None], np.array([1.0]), yes, no, []))
    sampled = memory.sample(1, np.random.default_rng(0))
    assert frame_numbers(sampled.windows).tolist() == [[0, 0, 0, 1, 2]]
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


def test_sampled_arrays_have_the_documented_types() -> None:
    play, memory = NaivePlay(3, 20, seed=0), ReplayMemory(60, 3)
    play.start(memory)
    for _ in range(15):
        play.step()
    sampled = memory.sample(7, np.random.default_rng(0))
    *arrays, chances = vars(sampled).values()
    assert [array.shape for array in arrays] == [(7, 5, 84, 84), (7,), (7,), (7,), (7,)]
    assert [array.dtype for array in arrays] == [torch.uint8, torch.int64, torch.float32, torch.float32, np.int64]
    assert chances is None
    assert (memory.latest_states().shape, memory.latest_states().dtype) == ((3, 4, 84, 84), torch.uint8)
    drawn = memory.draw(7, np.random.default_rng(0))
    for array, shape in (*((array, (7,)) for array in drawn), (memory.frame_indices(*drawn), (7, 5))):
        assert array.shape == shape
        assert array.dtype == np.int64


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
    assert torch.equal(first.windows, memory.frames[torch.from_numpy(drawn_slots(memory, 64, seed=7))])
    assert not torch.equal(first.windows, memory.sample(64, np.random.default_rng(8)).windows)


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
    play.start(resumed)  # the games are reset from a seed: here a tape begins
    assert resumed.row == whole_run.row == 37
    for step in range(2 * num_rows):
        play.step()
        if step >= num_rows - 2:  # the ring holds nothing from before the reset any more
            assert resumed.fingerprint() == whole_run.fingerprint()
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
    fingerprint = filled(800, 600).fingerprint()
    assert fingerprint == filled(800, 600).fingerprint()
    assert fingerprint != filled(800, 599).fingerprint()
    for recent in (599, 598, 400, 101):
        assert fingerprint != filled(800, 600, change=(recent, what)).fingerprint(), recent
    for old in (90, 0):  # more than 1,000 frames ago
        assert fingerprint == filled(800, 600, change=(old, what)).fingerprint(), old


def test_fingerprint_is_a_function_of_what_the_ring_holds() -> None:
    fingerprint = filled(50, 160).fingerprint()
    assert fingerprint == filled(50, 160, change=(100, "frames")).fingerprint()  # overwritten since
    assert fingerprint != filled(50, 160, change=(111, "frames")).fingerprint()
    memory = filled(50, 160)
    memory.sample(100, np.random.default_rng(0))
    memory.latest_states()
    assert fingerprint == memory.fingerprint()
    assert fingerprint == copy.deepcopy(memory).fingerprint()


def test_a_transition_takes_little_more_than_one_frame() -> None:
    memory = ReplayMemory(10_000, 4)
    arrays = [value for value in vars(memory).values() if isinstance(value, np.ndarray | torch.Tensor)]
    assert len(arrays) >= 5
    assert sum(array.nbytes for array in arrays) / 10_000 <= 7_200


def test_size_that_is_no_multiple_names_one_that_is() -> None:
    for size, num_envs in ((100, 3), (1_000_001, 32), (5, 3), (31, 32)):
        with pytest.raises(UsageError, match="--replay-size") as error:
            ReplayMemory(size, num_envs)
        nearest = int(re.findall(r"[\d,]+$", str(error.value))[0].replace(",", ""))
        assert ReplayMemory(nearest, num_envs).num_rows >= 8


@pytest.mark.parametrize("num_envs", [1, 3, 32])
def test_size_too_small_to_sample_from_names_the_smallest(num_envs: int) -> None:
    for size in (-num_envs, 0, num_envs, 7 * num_envs):
        with pytest.raises(UsageError, match=f"at least {8 * num_envs:,}"):
            ReplayMemory(size, num_envs)
    ReplayMemory(8 * num_envs, num_envs)


def test_size_too_large_for_the_machine_names_what_fits() -> None:
    total, available = psutil.virtual_memory()[:2]
    with pytest.raises(UsageError, match="GB") as error:
        ReplayMemory(total // 7_000 // 7 * 7 * 2, 7)
    fits = int(re.findall(r"--replay-size (\d+) fits", str(error.value))[0])
    assert fits % 7 == 0
    # A whole GB is kept back; half of it is left here for what other processes do meanwhile.
    assert 0 < fits * 7_063 < available - 0.5e9


def test_frames_for_mps_stay_on_the_host() -> None:
    assert frames_device(torch.device("mps")) == torch.device("cpu")
    assert frames_device(torch.device("cuda", 1)) == torch.device("cuda", 1)


def prioritized_play(exponent: float) -> tuple[NaivePlay, ReplayMemory]:
    """Random play past the ring's end, with priorities set on the way and a break of the games."""
    play, memory = NaivePlay(3, 40, seed=4), ReplayMemory(120, 3, priority_exponent=exponent)
    play.start(memory)
    generator = np.random.default_rng(1)
    for step in range(90):
        play.step()
        if step == 70:
            play.start()
        if step > 5:
            memory.set_priorities(memory.sample(24, generator), 0.1 + generator.random(24).astype(np.float32) ** 2)
    return play, memory


def test_transitions_are_drawn_in_proportion_to_their_priority() -> None:
    """Against a list of the whole transitions with their priorities; weights as Schaul et al. 2016, 3.4, have them."""
    play, memory = prioritized_play(0.6)
    assert memory.chances is not None
    whole = sorted(play.whole())
    draws = 100 * len(whole)
    sampled = memory.sample(draws, np.random.default_rng(0))
    assert sampled.chances is not None
    numbers = frame_numbers(sampled.windows)[:, 3]
    priorities = dict(
        zip(numbers.tolist(), (memory.chances ** (1 / 0.6)).flatten()[sampled.places].tolist(), strict=True)
    )
    assert sorted(priorities) == whole
    assert len(set(priorities.values())) > 30
    assert max(priorities.values()) == 1
    total = sum(priority**0.6 for priority in priorities.values())
    expected = np.array([draws * priorities[number] ** 0.6 / total for number in whole])
    counts = np.array([np.sum(numbers == number) for number in whole])
    chi_square, freedom = ((counts - expected) ** 2 / expected).sum(), len(whole) - 1
    assert abs(chi_square - freedom) < 4 * (2 * freedom) ** 0.5
    naive = [(len(whole) * priorities[number] ** 0.6 / total) ** -0.4 for number in numbers[:32].tolist()]
    weights = sampled.chances[:32] ** -0.4
    np.testing.assert_allclose(weights / weights.max(), np.array(naive) / max(naive), rtol=1e-5)


def test_priorities_are_those_of_the_last_error_and_1_for_what_is_new() -> None:
    play, memory = NaivePlay(2, 10, seed=0, ends=0.0), ReplayMemory(20, 2, priority_exponent=1.0)
    play.start(memory)
    for _ in range(4):
        play.step()
    assert memory.chances is not None
    assert np.array_equal(memory.chances, np.ones((10, 2), np.float32))
    drawn = memory.sample(3, np.random.default_rng(0))
    drawn.places[:] = 1, 4, 1  # one of them twice: the later error counts
    memory.set_priorities(drawn, np.array([0.3, -5.0, -0.2], np.float32))
    expected = np.ones(20, np.float32)
    expected[1] = np.float32(0.2) + np.float32(2e-6)  # GamePlay's constants
    assert np.array_equal(memory.chances.flatten(), expected)
    memory.set_priorities(drawn, np.zeros(3, np.float32))
    assert memory.chances.flatten()[4] == np.float32(2e-6)
    for _ in range(7):
        play.step()  # over what stood there
    assert np.array_equal(memory.chances[:2], np.ones((2, 2), np.float32))


def test_without_priorities_nothing_is_drawn_by_them() -> None:
    play, memory = NaivePlay(2, 10, seed=0), ReplayMemory(20, 2)
    play.start(memory)
    for _ in range(5):
        play.step()
    drawn = memory.sample(4, np.random.default_rng(0))
    memory.set_priorities(drawn, None)
    assert memory.chances is drawn.chances is None
