"""Prioritized replay (Schaul et al. 2016): transitions with large TD errors are drawn more often and count for less."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from relatives.multi_step import MultiStepMemory
from replay_memory import Batch
from runtime.devices import upload

LEAST_PRIORITY = 2e-6  # GamePlay's
CANDIDATES, LEAST_CANDIDATES = 8, 1_024  # drawn at once for each transition that is wanted, and at least


@dataclass
class WeightedBatch(Batch):
    """A batch with importance weights (count,) float32, the largest of each minibatch 1 (Schaul et al., 3.4)."""

    weights: Tensor | None = None


def weighted_sum(losses: Tensor, batch: Batch) -> Tensor:
    """The loss of a minibatch, each transition's weighted."""
    assert isinstance(batch, WeightedBatch)
    assert batch.weights is not None
    return losses @ batch.weights


class PrioritizedMemory(MultiStepMemory):
    """Draws a transition in proportion to its priority, which is its last TD error's size, to a power.

    `probabilities`, (rows, num_envs) float32: priority to that power, how likely each is kept when it was drawn
    uniformly. No priority exceeds 1, so that this is exact, without a tree.
    """

    def __init__(
        self,
        size: int,
        num_envs: int,
        device: torch.device | str = "cpu",
        *,
        discount: float = 0.99,
        n_steps: int = 1,
        minibatch_size: int = 32,
        priority_exponent: float,
    ):
        super().__init__(size, num_envs, device, discount=discount, n_steps=n_steps)
        self.probabilities = np.ones((self.num_rows, num_envs), np.float32)
        self.importance_exponent = 0.0  # set before each vector step
        self._priority_exponent = priority_exponent
        self._minibatch_size = minibatch_size
        self._drawn = np.zeros(0, np.int64)  # where the last sample's transitions lie in the ring

    def _write_row(self, frames: np.ndarray, ages: np.ndarray) -> None:
        super()._write_row(frames, ages)
        self.probabilities[self.row % self.num_rows] = 1  # the largest: what is new is soon learned from

    def sample(self, count: int, generator: np.random.Generator) -> WeightedBatch:
        """Draw by priority; the weights are those of minibatches in the order in which they are learned from."""
        rows, environments = self._draw_by_priority(count, generator)
        self._drawn = self._indices(rows, environments)
        weights = self.probabilities.flat[self._drawn] ** -self.importance_exponent
        begins = np.arange(0, count, self._minibatch_size)
        largest = np.maximum.reduceat(weights, begins).repeat(self._minibatch_size)[:count]
        tensors = upload(self.device, weights=(weights / largest).astype(np.float32))
        return WeightedBatch(**vars(self.batch(rows, environments)), **tensors)

    def _draw_by_priority(self, count: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        kept: list[tuple[np.ndarray, np.ndarray]] = []
        missing = count
        while missing > 0:
            candidates = max(CANDIDATES * missing, LEAST_CANDIDATES)
            rows, environments = self.draw(candidates, generator)
            keep = generator.random(candidates) < self.probabilities.flat[self._indices(rows, environments)]
            kept.append((rows[keep], environments[keep]))
            missing -= int(keep.sum())
        rows, environments = map(np.concatenate, zip(*kept, strict=True))
        return rows[:count], environments[:count]

    def set_priorities(self, td_errors: np.ndarray) -> None:
        """Give the last sample's transitions the priority min(|TD error| + 2e-6, 1), as GamePlay does.

        td_errors: (count,) float32. Of a transition that was drawn twice the later error counts.
        """
        priorities = np.minimum(np.abs(td_errors) + LEAST_PRIORITY, 1)
        self.probabilities.flat[self._drawn] = priorities**self._priority_exponent

    def learning_by(self, learn: Callable[[Batch], Tensor]) -> Callable[[Batch], Tensor]:
        """The agent's `learn`, after which the TD errors become the priorities."""

        def learn_and_set_priorities(batch: Batch) -> Tensor:
            errors = learn(batch)
            self.set_priorities(errors.cpu().numpy())
            return errors

        return learn_and_set_priorities
