"""The agent: two networks, how actions are chosen and how the network learns."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from model import QNetwork
from optimizers import Optimizer, move_into_one_buffer
from replay_memory import Batch
from runtime.update_means import UpdateMeans


def draw_exploration(
    batch: int, num_actions: int, epsilon: np.ndarray | float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `batch` agents explore now, (batch,) bool, and a random action for each, (batch,) int64."""
    # Always the same amount is drawn, so that the generator's state depends on the number of steps alone.
    explore = generator.random(batch) < epsilon
    return explore, generator.integers(num_actions, size=batch)


def best_value(batch: Batch) -> Tensor:
    """What the next states are worth, (count,) float32: the largest Q-value of the target network (Algorithm 1)."""
    assert batch.next_outputs is not None
    return batch.next_outputs.amax(1)


class QAgent:
    """Acts and learns as NeuralQLearner.lua does.

    Ideas that are not the paper's (relatives/) put other functions in the place of `act`, `greedy_actions`,
    `target_pass`, `next_values`, `sum_losses`, `learn` and `learn_on_device`, or override `update`.
    """

    def __init__(self, network: QNetwork, optimizer: Optimizer, *, minibatch_size: int):
        """`optimizer` is that of the network's parameters, on the device where everything is computed."""
        self.device = optimizer.weights.device
        self.online_network = network
        self.target_network = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer
        self.minibatch_size = minibatch_size
        self.means = UpdateMeans(self.device, minibatch_size)  # for the log
        self._target_weights = move_into_one_buffer(list(self.target_network.parameters()))
        # The paper's rules; relatives/ put others in their places.
        self.target_pass: Callable[[Tensor], Tensor | None] = self.target_network
        self.next_values: Callable[[Batch], Tensor] = best_value
        self.sum_losses: Callable[[Tensor, Batch], Tensor] = lambda losses, _: losses.sum()

    def act(self, states: Tensor, epsilon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An epsilon-greedy action for each environment, (num_envs,) int64, in states (num_envs, 4, 84, 84) uint8.

        epsilon: (num_envs,). Random numbers are drawn on the host, the same amount each time.
        """
        explore, actions = draw_exploration(len(epsilon), self.online_network.num_actions, epsilon, generator)
        if explore.all():
            return actions
        greedy = self.greedy_actions(states.to(self.device))
        return np.where(explore, actions, greedy.cpu().numpy())

    @torch.no_grad()
    def greedy_actions(self, states: Tensor) -> Tensor:
        """The actions (count,) int64 with the largest Q-values."""
        return self.online_network(states).argmax(1)

    def learn(self, batch: Batch) -> Tensor:
        """One update per minibatch in `batch`, which holds one or more of them, in their order.

        Returns the TD errors (count,) float32, each as it was before its update. A CUDA graph overwrites them in the
        next call.
        """
        errors = self.learn_on_device(batch)
        self.means.updates += len(batch.actions) // self.minibatch_size
        return errors

    def learn_on_device(self, batch: Batch) -> Tensor:
        """What `learn` computes, apart from it, so that a CUDA graph can capture it."""
        with torch.no_grad():
            # The target network stands still between two copies: one pass gives its values for all these updates.
            batch = dataclasses.replace(batch, next_outputs=self.target_pass(batch.next_states))
        return torch.cat([self.update(minibatch) for minibatch in batch.split(self.minibatch_size)])

    def update(self, batch: Batch) -> Tensor:
        """One update from a minibatch; returns its TD errors (NeuralQLearner.lua: getQUpdate, qLearnMinibatch)."""
        with torch.no_grad():
            targets = batch.rewards + batch.discounts * self.next_values(batch)
        q_taken = self.online_network(batch.states).gather(1, batch.actions[:, None]).squeeze(1)
        # Its derivative by each q_taken is minus the TD error, clipped to [-1, 1]; summed, not averaged.
        loss = self.sum_losses(F.huber_loss(q_taken, targets, reduction="none", delta=1.0), batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.means.add(loss, q_taken)
        return targets - q_taken.detach()

    def online_outputs(self, states: Tensor) -> Tensor:
        """What the online network says of states, as `next_outputs` holds it."""
        return self.online_network(states)

    def copy_target(self) -> None:
        """Make the target network equal to the online network (NeuralQLearner.lua, perceive): one copy of a buffer."""
        self._target_weights.copy_(self.optimizer.weights)

    @torch.no_grad()
    def load_weights(self, network: QNetwork) -> None:
        """Begin with the weights of a network that has the same layers."""
        for parameter, other in zip(self.online_network.parameters(), network.parameters(), strict=True):
            parameter.copy_(other)
        self.copy_target()

    @torch.no_grad()
    def max_q(self, states: Tensor) -> Tensor:
        """The largest Q-value, (count,) float32, in each of the states (count, 4, 84, 84) uint8."""
        return self.online_network(states.to(self.device)).amax(1)

    def tensors(self) -> dict[str, Tensor]:
        """All that learning changes, by name, where it lies."""
        networks = {"online": self.optimizer.weights, "target": self._target_weights}
        return networks | self.optimizer.tensors() | self.means.tensors()

    def state_dict(self) -> dict[str, Any]:
        """All that learning depends on, on the CPU: both networks, the optimizer, the sums for the log."""
        state: dict[str, Any] = {name: tensor.cpu().clone() for name, tensor in self.tensors().items()}
        return state | {"updates_since_loss": self.means.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, tensor in self.tensors().items():
            tensor.copy_(state[name])
        self.means.updates = state["updates_since_loss"]
