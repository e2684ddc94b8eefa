"""The replay memory: every frame once, stacked into states when transitions (s, a, r, s') are sampled."""

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import torch
from torch import Tensor

from atari import FRAME_SIZE, HISTORY_FRAMES, Step
from runtime.devices import frames_device, upload

# A transition's frames, counted from its state's newest: the four of the state and the one after it.
WINDOW = np.arange(-(HISTORY_FRAMES - 1), 2)


@dataclass
class Batch:
    """Transitions to learn from; tensors (count, ...) on the device of the agent.

    states, next_states (count, 4, 84, 84) uint8, oldest frame first; actions (count,) int64; rewards (count,) float32,
    clipped; discounts (count,) float32, 0 where the transition ended in a terminal: its next state is worth nothing.
    next_outputs: what the target network says of the next states; None until the agent has asked it.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    discounts: Tensor
    next_states: Tensor
    next_outputs: Tensor | None = None

    def split(self, size: int) -> Iterator[Self]:
        """Minibatches of `size` transitions, in their order."""
        tensors = {name: tensor for name, tensor in vars(self).items() if tensor is not None}
        for begin in range(0, len(self.actions), size):
            part = slice(begin, begin + size)
            yield dataclasses.replace(self, **{name: tensor[part] for name, tensor in tensors.items()})


class ReplayMemory:
    """A ring of rows, one row per vector step and one column per environment (TransitionTable.lua).

    Row t of environment e holds the frame o_t and, once the step is done, the action, the clipped reward and whether
    the step was terminal. A transition is whole, and may be drawn, where the frames of its state are still held, and
    either a terminal ended it or its successor belongs to the same game. `ages` counts how many frames of the same game
    lie before a frame, up to 3: in a state, what lies before a game's start is zeros. Frames live on `device` (for MPS
    on the host, see `frames_device`), everything else on the host.
    docs/fidelity.md says where it differs from the released code's.
    """

    def __init__(self, size: int, num_envs: int, device: torch.device | str = "cpu", *, discount: float = 0.99):
        """Allocate `size` transitions, a multiple of `num_envs`."""
        self.num_envs = num_envs
        self.num_rows = size // num_envs
        self.device = torch.device(device)
        self.discount = discount
        self._zero_slot = size  # behind the last frame: a frame of zeros
        shape = (size + 1, FRAME_SIZE, FRAME_SIZE)
        if frames_device(self.device).type == "cpu":
            # NumPy's zeros take memory only as it is written, PyTorch's at once.
            self.frames = torch.from_numpy(np.zeros(shape, np.uint8))
        else:
            self.frames = torch.zeros(shape, dtype=torch.uint8, device=self.device)
        self.actions = np.zeros((self.num_rows, num_envs), np.uint8)
        self.rewards = np.zeros((self.num_rows, num_envs), np.float32)
        self.terminals = np.zeros((self.num_rows, num_envs), np.bool_)
        self.ages = np.zeros((self.num_rows, num_envs), np.uint8)
        self._environments = np.arange(num_envs)
        self.first_row = 0  # the first row ever written
        self.row = 0  # the newest row: its frame is known, its action not yet

    @property
    def oldest_row(self) -> int:
        """The oldest row whose frames are still there."""
        return max(self.first_row, self.row - self.num_rows + 1)

    def start(self, row: int, frames: np.ndarray) -> None:
        """Begin an empty memory at `row` (0, or where a log of actions starts) with games' first frames."""
        self.first_row = self.row = row
        self.restart_games(frames)

    def restart_games(self, frames: np.ndarray) -> None:
        """Put the first frames (num_envs, 84, 84) uint8 of new games in place of the newest row's.

        The games before them break off: their last transitions have lost their successors and are never sampled.
        """
        self._write_row(frames, np.zeros(self.num_envs, np.uint8))

    def append(self, actions: np.ndarray, step: Step) -> None:
        """Complete the newest row with the actions (num_envs,) and what came of them, and begin the next.

        The frames' rewards were summed by the emulator; they are clipped here (perceive), scores stay raw.
        """
        ring_row = self.row % self.num_rows
        self.actions[ring_row] = actions
        self.rewards[ring_row] = np.clip(step.rewards, -1, 1)
        self.terminals[ring_row] = step.terminals
        ages = np.where(step.game_starts, 0, np.minimum(self.ages[ring_row] + 1, HISTORY_FRAMES - 1))
        self.row += 1
        self._write_row(step.frames, ages.astype(np.uint8))

    def _write_row(self, frames: np.ndarray, ages: np.ndarray) -> None:
        ring_row = self.row % self.num_rows
        begin = ring_row * self.num_envs
        self.frames[begin : begin + self.num_envs] = upload(self.frames.device, frames=frames)["frames"]
        self.ages[ring_row] = ages
        # What stood here before is forgotten, so that the memory's bytes are a function of the rows it holds.
        self.actions[ring_row] = self.rewards[ring_row] = self.terminals[ring_row] = 0

    def latest_states(self) -> Tensor:
        """The states (num_envs, 4, 84, 84) uint8, on the memory's device, in which the agent is to act now."""
        rows = np.full(self.num_envs, self.row)
        indices = self.frame_indices(rows, self._environments)[:, :HISTORY_FRAMES]
        return self._gather(upload(self.frames.device, indices=indices)["indices"])

    def sample(self, count: int, generator: np.random.Generator) -> Batch:
        """Draw `count` transitions uniformly, with replacement, from those that are whole; needs at least one."""
        return self.batch(*self.draw(count, generator))

    def draw(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Rows and environments, (count,) int64 each, of transitions drawn uniformly from all that are whole."""
        rows, environments, broken = np.zeros(count, np.int64), np.zeros(count, np.int64), np.arange(count)
        while broken.size:
            rows[broken] = generator.integers(self.oldest_row, self.row, size=broken.size)
            environments[broken] = generator.integers(self.num_envs, size=broken.size)
            (broken,) = np.nonzero(~self.is_whole(rows, environments))
        return rows, environments

    def is_whole(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Whether the history is still held, and the successor, where one is needed, belongs to the same game."""
        history_is_there = rows - self.ages[rows % self.num_rows, environments] >= self.oldest_row
        next_starts_game = self.ages[(rows + 1) % self.num_rows, environments] == 0
        return history_is_there & (~next_starts_game | self.terminals[rows % self.num_rows, environments])

    def batch(self, rows: np.ndarray, environments: np.ndarray) -> Batch:
        """The transitions that begin in these rows of these environments."""
        rewards, discounts = self.returns(rows, environments)
        on_device = upload(  # in one transfer
            self.frames.device,
            indices=self.frame_indices(rows, environments),
            actions=self.actions[rows % self.num_rows, environments].astype(np.int64),
            rewards=rewards,
            discounts=discounts,
        )
        frames = self._gather(on_device.pop("indices"))
        tensors = {name: values.to(self.device) for name, values in on_device.items()}
        return Batch(frames[:, :HISTORY_FRAMES], next_states=frames[:, -HISTORY_FRAMES:], **tensors)

    def returns(self, rows: np.ndarray, environments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The rewards, and the discounts of the values of the next states; (count,) float32 each."""
        ring_rows = rows % self.num_rows
        terminals = self.terminals[ring_rows, environments]
        return self.rewards[ring_rows, environments], (self.discount * ~terminals).astype(np.float32)

    def frame_indices(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        """Where the frames lie, (count, 5) int64: three before, the row's own, the one after; or the slot of zeros."""
        indices = self._indices(rows[:, None] + WINDOW, environments[:, None])
        # WINDOW is -3 to 1: at age 1 the frame one before is of this game, those two and three before are not.
        outside = self.ages[rows % self.num_rows, environments][:, None] < -WINDOW
        outside[:, -1] = self.ages[(rows + 1) % self.num_rows, environments] == 0
        return np.where(outside, self._zero_slot, indices)

    def _indices(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        return rows % self.num_rows * self.num_envs + environments

    def _gather(self, frame_indices: Tensor) -> Tensor:
        frames = self.frames.index_select(0, frame_indices.flatten())
        return frames.view(*frame_indices.shape, FRAME_SIZE, FRAME_SIZE).to(self.device)
