"""Multi-step returns (Sutton 1988): a transition spans N agent steps, its reward is the sum of N discounted ones."""

import numpy as np
import torch

from atari import HISTORY_FRAMES
from replay_memory import ReplayMemory

STATE = np.arange(-(HISTORY_FRAMES - 1), 1)  # where a state's frames lie, counted from its newest


class MultiStepMemory(ReplayMemory):
    """Its transitions span `n_steps` agent steps, or as many as there are up to a terminal, which ends the sum.

    Those whose steps reach across a cut, or have not all been played yet, are never drawn. With 1 it is the paper's.
    """

    def __init__(
        self, size: int, num_envs: int, device: torch.device | str = "cpu", *, discount: float = 0.99, n_steps: int
    ):
        super().__init__(size, num_envs, device, discount=discount)
        self.n_steps = n_steps

    def is_whole(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        history_is_there = rows - self.ages[rows % self.num_rows, environments] >= self.oldest_row
        going, ended = np.ones(len(rows), np.bool_), np.zeros(len(rows), np.bool_)
        for row in (rows + k for k in range(self.n_steps)):
            going &= row < self.row  # what is newer has not been played yet
            terminal = self.terminals[row % self.num_rows, environments]
            ended |= going & terminal
            going &= ~terminal & (self.ages[(row + 1) % self.num_rows, environments] > 0)
        return history_is_there & (going | ended)

    def returns(self, rows: np.ndarray, environments: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rewards, discounts = np.zeros(len(rows)), np.ones(len(rows))
        for indices in (self._indices(rows + k, environments) for k in range(self.n_steps)):
            rewards += discounts * self.rewards.flat[indices]
            discounts *= self.discount * ~self.terminals.flat[indices]
        return rewards.astype(np.float32), discounts.astype(np.float32)

    def frame_indices(self, rows: np.ndarray, environments: np.ndarray) -> np.ndarray:
        offsets = np.unique([STATE, STATE + self.n_steps])
        indices = self._indices(rows[:, None] + offsets, environments[:, None])
        outside = self.ages[rows % self.num_rows, environments][:, None] < -offsets
        going = np.ones(len(rows), np.bool_)
        for k in range(1, self.n_steps + 1):
            # What another game, or nobody yet, has played.
            going &= (self.ages[(rows + k) % self.num_rows, environments] > 0) & (rows + k <= self.row)
            outside |= ~going[:, None] & (offsets == k)
        return np.where(outside, self._zero_slot, indices)
