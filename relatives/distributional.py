"""The return's distribution instead of its mean: C51 (Bellemare et al. 2017) and quantiles (Dabney et al. 2018)."""

from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from model import QNetwork
from optimizers import Optimizer
from q_agent import QAgent
from relatives.double import of_actions
from replay_memory import Batch

ATOMS = 51  # Bellemare et al.'s best; Dabney et al. have 200
HIGHEST_RETURN = 10.0  # Bellemare et al., section 4.2; the lowest is as far below 0


class Distributional(QNetwork):
    """A network whose outputs are a distribution for each action; its Q-values are their means."""

    @property
    def num_outputs(self) -> int:
        return self.num_actions * ATOMS

    def shaped(self, outputs: Tensor) -> Tensor:
        """Outputs by action, (batch, 1 or num_actions, 51)."""
        return outputs.unflatten(1, (-1, ATOMS))

    def head(self, features: Tensor) -> Tensor:
        outputs = super().head(features)
        return outputs if outputs.dim() == 3 else self.shaped(outputs)  # a dueling one has shaped them

    def outputs(self, states: Tensor) -> Tensor:
        """The distributions, (batch, num_actions, 51) float32, in states (batch, 4, 84, 84) uint8."""
        return self.head(self.features(states))

    def forward(self, states: Tensor) -> Tensor:
        return self.mean(self.outputs(states))

    @abstractmethod
    def mean(self, outputs: Tensor) -> Tensor:
        """The means (...) of distributions given by outputs (..., 51)."""

    @abstractmethod
    def losses(self, outputs: Tensor, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """The losses (count,) of outputs (count, 51) of the actions taken.

        rewards, discounts (count,) float32; next_outputs (count, 51) of the next states' greedy actions.
        """


class Categorical(Distributional):
    """C51: probabilities of 51 returns from -10 to 10; an output is a probability's logarithm, but for a constant."""

    support: Tensor

    def add_head(self, num_features: int) -> None:
        super().add_head(num_features)
        # No part of the state dict: 16-bit files would round it.
        support = torch.linspace(-HIGHEST_RETURN, HIGHEST_RETURN, ATOMS)
        self.register_buffer("support", support, persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.softmax(-1) @ self.support

    def losses(self, outputs: Tensor, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """Cross entropies with what rewards and next outputs make likely (eq. 7)."""
        returns = rewards[:, None] + discounts[:, None] * self.support
        # Each return's probability goes to the two atoms beside it, the more to the nearer one.
        width = 2 * HIGHEST_RETURN / (ATOMS - 1)
        distances = (returns.clamp(-HIGHEST_RETURN, HIGHEST_RETURN)[:, :, None] - self.support).abs() / width
        shares = (1 - distances).clamp(min=0)
        targets = (next_outputs.softmax(-1)[:, None] @ shares).squeeze(1)
        return -(targets * outputs.log_softmax(-1)).sum(-1)


class Quantiles(Distributional):
    """QR-DQN: an output is the return at the middle of one of 51 equally likely parts of the distribution."""

    levels: Tensor

    def add_head(self, num_features: int) -> None:
        super().add_head(num_features)
        self.register_buffer("levels", (torch.arange(ATOMS) + 0.5) / ATOMS, persistent=False)

    def mean(self, outputs: Tensor) -> Tensor:
        return outputs.mean(-1)

    def losses(self, outputs: Tensor, rewards: Tensor, discounts: Tensor, next_outputs: Tensor) -> Tensor:
        """Quantile Huber losses: of each output the mean over the targets, summed (eq. 10)."""
        targets = rewards[:, None] + discounts[:, None] * next_outputs
        errors = targets[:, None, :] - outputs[:, :, None]
        huber = F.huber_loss(errors, torch.zeros_like(errors), reduction="none")
        weights = (self.levels[:, None] - (errors.detach() < 0).float()).abs()
        return (weights * huber).mean(2).sum(1)


DISTRIBUTIONS: dict[str, type[Distributional]] = {"c51": Categorical, "qr": Quantiles}


class DistributionalAgent(QAgent):
    """Learns distributions; the TD errors are differences of means."""

    online_network: Distributional
    target_network: Distributional

    def __init__(self, network: Distributional, optimizer: Optimizer, *, minibatch_size: int):
        super().__init__(network, optimizer, minibatch_size=minibatch_size)
        self.target_pass = self.target_network.outputs
        self.next_values = self.of_greedy_actions

    def online_outputs(self, states: Tensor) -> Tensor:
        return self.online_network.outputs(states)

    def of_greedy_actions(self, batch: Batch) -> Tensor:
        """The distributions (count, 51) of the next states' greedy actions."""
        assert batch.next_outputs is not None
        return of_actions(batch.next_outputs, self.online_network.mean(batch.next_outputs).argmax(1))

    def update(self, batch: Batch) -> Tensor:
        """One update from a minibatch; returns its TD errors (count,) float32, of the means."""
        with torch.no_grad():
            next_outputs = self.next_values(batch)
            targets = batch.rewards + batch.discounts * self.online_network.mean(next_outputs)
        outputs = of_actions(self.online_outputs(batch.states), batch.actions)
        losses = self.online_network.losses(outputs, batch.rewards, batch.discounts, next_outputs)
        loss = self.sum_losses(losses, batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        q_taken = self.online_network.mean(outputs).detach()
        self.means.add(loss, q_taken)
        return targets - q_taken
