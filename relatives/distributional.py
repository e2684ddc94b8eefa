"""The return's distribution instead of its mean: C51 (Bellemare et al. 2017) and quantiles (Dabney et al. 2018)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATOMS = 51  # of both papers: Bellemare et al.'s best; Dabney et al. have 200
HIGHEST_RETURN = 10.0  # Bellemare et al., section 4.2; the lowest is as far below 0


class Categorical(nn.Module):
    """C51: probabilities of 51 returns from -10 to 10; an output is a probability's logarithm, but for a constant."""

    support: Tensor

    def __init__(self) -> None:
        super().__init__()
        # No part of the state dict: 16-bit files would round it.
        support = torch.linspace(-HIGHEST_RETURN, HIGHEST_RETURN, ATOMS)
        self.register_buffer("support", support, persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        """The means (...) of distributions given by outputs (..., 51)."""
        return outputs.softmax(-1) @ self.support

    def losses(self, outputs: Tensor, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """Cross entropies, (count,), of outputs (count, 51) with what rewards and next outputs make likely (eq. 7).

        rewards, discounts (count,) float32; next_outputs (count, 51) of the next states' greedy actions.
        """
        returns = rewards[:, None] + discounts[:, None] * self.support
        # Each return's probability goes to the two atoms beside it, the more to the nearer one.
        width = 2 * HIGHEST_RETURN / (ATOMS - 1)
        distances = (returns.clamp(-HIGHEST_RETURN, HIGHEST_RETURN)[:, :, None] - self.support).abs() / width
        shares = (1 - distances).clamp(min=0)
        targets = (next_outputs.softmax(-1)[:, None] @ shares).squeeze(1)
        return -(targets * outputs.log_softmax(-1)).sum(-1)


class Quantiles(nn.Module):
    """QR-DQN: an output is the return at the middle of one of 51 equally likely parts of the distribution."""

    levels: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("levels", (torch.arange(ATOMS) + 0.5) / ATOMS, persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        """The means (...) of distributions given by outputs (..., 51)."""
        return outputs.mean(-1)

    def losses(self, outputs: Tensor, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """Quantile Huber losses, (count,), of outputs (count, 51): of each, the mean over the targets (eq. 10).

        rewards, discounts (count,) float32; next_outputs (count, 51) of the next states' greedy actions.
        """
        targets = rewards[:, None] + discounts[:, None] * next_outputs
        errors = targets[:, None, :] - outputs[:, :, None]
        huber = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
        weights = (self.levels[:, None] - (errors.detach() < 0).float()).abs()
        return (weights * huber).mean(2).sum(1)


DISTRIBUTIONS: dict[str, type[Categorical | Quantiles]] = {"c51": Categorical, "qr": Quantiles}
