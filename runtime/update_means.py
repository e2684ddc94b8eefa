"""What the log reports of the updates since its last row."""

import torch
from torch import Tensor


class UpdateMeans:
    """Sums of losses and Q-values, kept on the device so that nothing waits for it."""

    def __init__(self, device: torch.device, minibatch_size: int):
        self.updates = 0
        self._minibatch_size = minibatch_size
        self._loss_sum = torch.zeros((), device=device)
        self._q_sums = torch.zeros(2, device=device)  # of the minibatches' means and standard deviations

    def add(self, loss: Tensor, q_taken: Tensor) -> None:
        """Add an update's loss () and the Q-values (count,) of the actions taken."""
        q_taken = q_taken.detach()
        self._loss_sum += loss.detach()
        self._q_sums += torch.stack(torch.std_mean(q_taken, correction=0)[::-1])

    def take(self) -> dict[str, float]:
        """Means of the updates since the last call, none when there were none: of the loss per transition, and of
        mean and standard deviation over each minibatch of the Q-values of the actions taken."""
        if not self.updates:
            return {}
        mean_q, deviation_q = (self._q_sums / self.updates).tolist()
        loss = self._loss_sum.item() / (self.updates * self._minibatch_size)
        self._loss_sum.zero_()
        self._q_sums.zero_()
        self.updates = 0
        return {"loss": loss, "mean_q": mean_q, "deviation_q": deviation_q}

    def is_finite(self) -> bool:
        """Whether the sum of the losses is finite; waits for the device."""
        return bool(torch.isfinite(self._loss_sum))

    def tensors(self) -> dict[str, Tensor]:
        """The sums, by name, where they lie."""
        return {"loss_sum": self._loss_sum, "q_sums": self._q_sums}
