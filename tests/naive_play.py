"""Random play kept as a plain list of whole transitions, against which memories are compared."""

from collections import deque
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
import torch

from atari import Step
from replay_memory import Batch, ReplayMemory

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
        self.n_steps = n_steps
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
            while steps < self.n_steps and not last.terminal and last.next_state:
                if (after := following.get(last.next_state[-1])) is None:
                    break
                last, reward, steps = after, reward + DISCOUNT**steps * after.reward, steps + 1
            done = last.terminal or (steps == self.n_steps and last.next_state)
            if done and held.issuperset(first.state) and (last.terminal or held.issuperset(last.next_state or ())):
                found[first.state[-1]] = Transition(first.state, first.action, reward, last.terminal, last.next_state)
        return found

    def _new_frames(self) -> list[int]:
        self._count += self.num_envs
        return list(range(self._count - self.num_envs + 1, self._count + 1))

    def _pixels(self, frames: list[int]) -> np.ndarray:
        return np.stack([frame_of(frame) for frame in frames])


def assert_samples_are(memory: ReplayMemory, whole: dict[int, Transition], seed: int, n_steps: int = 1) -> None:
    """Everything sampled is in `whole` and equal, and everything in `whole` is sampled."""
    drawn = np.unique(np.stack(memory.draw(60 * max(len(whole), 8), np.random.default_rng(seed))), axis=1)
    with patch.object(memory, "draw", return_value=drawn):  # each once: a sample copies every frame
        each = memory.sample(drawn.shape[1], np.random.default_rng(seed))
    assert set(frame_numbers(each.states)[:, 3].tolist()) == whole.keys()
    assert_equals_the_list(each, whole, n_steps)
    assert_equals_the_list(memory.sample(20, np.random.default_rng(seed)), whole, n_steps)


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


def assert_a_memory_is_the_list(memory: ReplayMemory, play: NaivePlay) -> None:
    """Play on, past the ring's end many times; now and then everything that can be sampled is compared."""
    num_rows = memory.num_rows
    breaks = np.random.default_rng(play.num_envs)
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
            assert_samples_are(memory, whole, seed=step, n_steps=play.n_steps)
        seen["lost life"] += any(t.terminal and t.next_state for t in whole.values())
        seen["game over"] += any(t.terminal and not t.next_state for t in whole.values())
        seen["start"] += any(NO_FRAME in t.state for t in whole.values())
        newest = play.transitions[-play.num_envs * (num_rows - 4) :]
        seen["cut"] += any(not t.terminal and not t.next_state for t in newest)
        seen["broken"] += any(t.next_state and not t.terminal and t.state[-1] not in whole for t in newest)
    assert min(seen.values()) > 3, seen
