"""The agent: two networks, the paper's RMSProp (or Adam), how actions are chosen and how the network learns."""

import copy
import gc
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atari import HISTORY_FRAMES
from machine.devices import upload
from model import QNetwork
from relatives import bfloat16
from replay_memory import Transitions


class Optimizer(ABC):
    """What updates all parameters at once: they and their gradients become views of two flat buffers.

    A handful of passes over one array. The last `head_size` elements are the fully connected layers'.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, *, head_size: int = 0):
        self.learning_rate = learning_rate
        self.weights = flatten(parameters)
        self.head = slice(self.weights.numel() - head_size, None)
        self.gradient = torch.zeros_like(self.weights)
        for parameter, view in zip(parameters, _views(self.gradient, parameters), strict=True):
            parameter.grad = view
        self.gradient_mean = torch.zeros_like(self.weights)
        self.squared_gradient_mean = torch.zeros_like(self.weights)

    @abstractmethod
    @torch.no_grad()
    def step(self, learning_rate: Tensor | None = None) -> None:
        """Apply one update from the gradients of the summed loss; a learning rate is () float32, else the constant."""

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers from one update to the next, by name."""
        return {"gradient_mean": self.gradient_mean, "squared_gradient_mean": self.squared_gradient_mean}

    def forget_head(self) -> None:
        """Begin anew with the fully connected layers: what it remembers is of their old weights."""
        self.gradient_mean[self.head] = self.squared_gradient_mean[self.head] = 0


class RMSProp(Optimizer):
    """The paper's RMSProp, on all parameters at once, with d the gradient summed over the minibatch:

    g <- .95 g + .05 d;  v <- .95 v + .05 d^2;  w <- w - lr d / sqrt(v - g^2 + 0.01)
    (NeuralQLearner.lua, qLearnMinibatch). Not `torch.optim.RMSprop(centered=True)`, which adds its eps after the
    root and would need it scaled for a mean loss.
    """

    def __init__(
        self,
        parameters: list[torch.nn.Parameter],
        learning_rate: float,
        *,
        decay: float,
        minimum: float,
        head_size: int = 0,
    ):
        super().__init__(parameters, learning_rate, head_size=head_size)
        self.decay = decay
        self.minimum = minimum
        self._scale = torch.empty_like(self.weights)

    @torch.no_grad()
    def step(self, learning_rate: Tensor | None = None) -> None:
        d, g, v = self.gradient, self.gradient_mean, self.squared_gradient_mean
        g.mul_(self.decay).add_(d, alpha=1 - self.decay)
        v.mul_(self.decay).addcmul_(d, d, value=1 - self.decay)
        torch.addcmul(v, g, g, value=-1, out=self._scale).add_(self.minimum).rsqrt_()
        if learning_rate is None:
            self.weights.addcmul_(d, self._scale, value=-self.learning_rate)
        else:
            self.weights.addcmul_(d, self._scale.mul_(learning_rate), value=-1)


class Adam(Optimizer):
    """PyTorch's fused Adam with its own decays; it counts the head's updates apart, since that may begin anew."""

    def __init__(
        self, parameters: list[torch.nn.Parameter], learning_rate: float, *, epsilon: float = 1e-8, head_size: int = 0
    ):
        super().__init__(parameters, learning_rate, head_size=head_size)
        device, means = self.weights.device, (self.gradient_mean, self.squared_gradient_mean)
        self._updates = torch.zeros(2, device=device)
        self._learning_rate = torch.tensor(learning_rate, device=device)  # a tensor, so that a graph can change it
        slices = slice(0, self.head.start), self.head
        parts = [self.weights[part] for part in slices]
        self._adam = torch.optim.Adam(
            parts, self._learning_rate, eps=epsilon, fused=True, capturable=device.type == "cuda"
        )
        for part, where, updates in zip(parts, slices, self._updates, strict=True):
            part.grad = self.gradient[where]
            names = {name: mean[where] for name, mean in zip(("exp_avg", "exp_avg_sq"), means, strict=True)}
            self._adam.state[part] = {"step": updates, **names}

    @torch.no_grad()
    def step(self, learning_rate: Tensor | None = None) -> None:
        if learning_rate is not None:
            self._learning_rate.copy_(learning_rate)
        self._adam.step()

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"updates": self._updates}

    def forget_head(self) -> None:
        super().forget_head()
        self._updates[1] = 0


def flatten(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Move parameters into one flat buffer, which is returned, and make them views of it in their own layouts."""
    flat = parameters[0].new_empty(sum(p.numel() for p in parameters))
    for parameter, view in zip(parameters, _views(flat, parameters), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return flat


def _views(flat: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    chunks = flat.split([parameter.numel() for parameter in parameters])
    return [c.as_strided(p.shape, p.stride()) for c, p in zip(chunks, parameters, strict=True)]


def draw_exploration(
    batch: int, num_actions: int, epsilon: np.ndarray | float, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Which of `batch` agents explore now, (batch,) bool, and a random action for each, (batch,) int64."""
    # Always the same amount is drawn, so that the generator's state depends on the number of steps alone.
    explore = generator.random(batch) < epsilon
    return explore, generator.integers(num_actions, size=batch)


class QAgent:
    """Acts and learns as NeuralQLearner.lua does; on a CUDA device by captured graphs of the same functions."""

    def __init__(
        self,
        network: QNetwork,
        optimizer: Optimizer,
        *,
        minibatch_size: int,
        double: bool = False,
        target_network: bool = True,
        precision: str = "float32",
    ):
        """`optimizer` is that of the network's parameters, on the device where everything is computed."""
        self.device = optimizer.weights.device
        self.online_network = network
        self.target_network = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer
        self._target_weights = flatten(list(self.target_network.parameters()))
        self._minibatch_size = minibatch_size
        self._double = double
        self._uses_target_network = target_network
        self._outputs = bfloat16.outputs if precision == "bfloat16" else lambda network, states: network.outputs(states)
        self._loss_sum = torch.zeros((), device=self.device)
        self._q_sums = torch.zeros(2, device=self.device)  # of the minibatches' means and standard deviations
        self._updates_since_loss = 0
        self._run: Callable[..., Any] = _Graphs(self._tensors) if self.device.type == "cuda" else self._run_eagerly

    def act(self, states: Tensor, epsilon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An epsilon-greedy action for each environment, (num_envs,) int64, in states (num_envs, 4, 84, 84) uint8.

        epsilon: (num_envs,). Random numbers are drawn on the host, the same amount each time.
        """
        explore, actions = draw_exploration(len(epsilon), self.online_network.num_actions, epsilon, generator)
        if explore.all():
            return actions
        greedy = self._run(self._greedy_actions, states=states)
        return np.where(explore, actions, greedy.cpu().numpy())

    def learn(
        self, transitions: Transitions, learning_rate: float | None = None, importance_exponent: float = 0.0
    ) -> np.ndarray | None:
        """One update per minibatch in `transitions`, a multiple of the minibatch size, in their order.

        learning_rate: instead of the optimizer's constant. Returns the TD errors (count,) float32 of transitions that
        were drawn by priority, each weighted as Schaul et al. 2016 do (3.4); None of others.
        """
        inputs = {
            "windows": transitions.windows,
            "actions": transitions.actions,
            "rewards": transitions.rewards,
            "discounts": transitions.discounts,
        }
        more = {} if learning_rate is None else {"learning_rate": np.array(learning_rate, np.float32)}
        if transitions.chances is not None:
            weights = transitions.chances.reshape(-1, self._minibatch_size) ** -importance_exponent
            weights /= weights.max(axis=1, keepdims=True)
            more["weights"] = weights.astype(np.float32).flatten()
        errors = self._run(self._update, **inputs, **upload(self.device, **more))
        self._updates_since_loss += len(transitions.actions) // self._minibatch_size
        return None if errors is None else errors.cpu().numpy()

    def copy_target(self) -> None:
        """Make the target network equal to the online network (NeuralQLearner.lua, perceive)."""
        self._target_weights.copy_(self.optimizer.weights)

    def reset_head(self, seed: int) -> None:
        """Draw the fully connected layers anew, and make the target network equal (Nikishin et al. 2022)."""
        self.online_network.redraw_head(seed)
        self.optimizer.forget_head()
        self.copy_target()

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

    def take_means(self) -> dict[str, float]:
        """Means of the updates since the last call, none when there were none: of the loss per transition, and of
        mean and standard deviation over each minibatch of the Q-values of the actions taken."""
        if not self._updates_since_loss:
            return {}
        mean_q, deviation_q = (self._q_sums / self._updates_since_loss).tolist()
        loss = self._loss_sum.item() / (self._updates_since_loss * self._minibatch_size)
        self._loss_sum.zero_()
        self._q_sums.zero_()
        self._updates_since_loss = 0
        return {"loss": loss, "mean_q": mean_q, "deviation_q": deviation_q}

    def is_finite(self) -> bool:
        """Whether every weight and the loss are finite; waits for the device."""
        return bool(torch.isfinite(self.optimizer.weights.sum() + self._loss_sum))

    def _run_eagerly(self, function: Callable[..., Any], **inputs: Tensor) -> Any:
        return function(**{name: tensor.to(self.device) for name, tensor in inputs.items()})

    @torch.no_grad()
    def _greedy_actions(self, states: Tensor) -> Tensor:
        return self._q_values(self.online_network, states).argmax(1)

    def _q_values(self, network: QNetwork, states: Tensor) -> Tensor:
        return network.mean(self._outputs(network, states))

    def _update(
        self,
        windows: Tensor,
        actions: Tensor,
        rewards: Tensor,
        discounts: Tensor,
        learning_rate: Tensor | None = None,
        weights: Tensor | None = None,
    ) -> Tensor | None:
        states, next_states, errors = windows[:, :HISTORY_FRAMES], windows[:, -HISTORY_FRAMES:], []
        with torch.no_grad():
            # The target network stands still between two copies: one pass gives its values for all these updates.
            target_outputs = self._outputs(self.target_network, next_states) if self._uses_target_network else None
        for begin in range(0, len(actions), self._minibatch_size):
            batch = slice(begin, begin + self._minibatch_size)
            next_outputs = self._next_outputs(
                next_states[batch], None if target_outputs is None else target_outputs[batch]
            )
            outputs = _of_actions(self._outputs(self.online_network, states[batch]), actions[batch])
            targets = rewards[batch] + discounts[batch] * self.online_network.mean(next_outputs)
            q_taken = self.online_network.mean(outputs)
            if self.online_network.distribution is None:
                # The gradient of this loss is the TD error clipped to [-1, 1], summed over the minibatch (getQUpdate).
                losses = F.huber_loss(q_taken, targets, reduction="none", delta=1.0)
            else:
                losses = self.online_network.distribution.losses(
                    outputs, rewards[batch], discounts[batch], next_outputs
                )
            loss = losses.sum() if weights is None else losses @ weights[batch]
            if weights is not None:
                errors.append(targets - q_taken.detach())
            self.optimizer.gradient.zero_()  # in place: `backward` adds to it
            loss.backward()
            self.optimizer.step(learning_rate)
            self._loss_sum += loss.detach()
            self._q_sums += torch.stack(torch.std_mean(q_taken.detach(), correction=0)[::-1])
        return torch.cat(errors) if errors else None

    @torch.no_grad()
    def _next_outputs(self, next_states: Tensor, outputs: Tensor | None) -> Tensor:
        """The outputs for the next states' greedy actions; `outputs` are the target network's, if there is one."""
        if outputs is None:
            outputs = self._outputs(self.online_network, next_states)
        if self._double:  # chosen by the online network of this very update (van Hasselt et al. 2016)
            return _of_actions(outputs, self._q_values(self.online_network, next_states).argmax(1))
        return _of_actions(outputs, self.online_network.mean(outputs).argmax(1))

    def _tensors(self) -> dict[str, Tensor]:
        networks = {"online": self.optimizer.weights, "target": self._target_weights}
        return networks | self.optimizer.tensors() | {"loss_sum": self._loss_sum, "q_sums": self._q_sums}

    def state_dict(self) -> dict[str, Any]:
        """All that learning depends on, on the CPU: both networks, the optimizer, the running loss."""
        state: dict[str, Any] = {name: tensor.cpu().clone() for name, tensor in self._tensors().items()}
        return state | {"updates_since_loss": self._updates_since_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for name, tensor in self._tensors().items():
            if name in state:
                tensor.copy_(state[name])
        self._updates_since_loss = state["updates_since_loss"]
        if "q_sums" not in state:  # an older version's: its sums would be of fewer updates than its loss
            self._loss_sum.zero_()
            self._updates_since_loss = 0


def _of_actions(outputs: Tensor, actions: Tensor) -> Tensor:
    """Of outputs (count, num_actions) or (count, num_actions, atoms), those for actions (count,)."""
    return outputs[torch.arange(len(actions), device=outputs.device), actions]


class _Graphs:
    """Runs functions of tensors as CUDA graphs: one launch instead of about 70 per update.

    A graph is captured the first time a function meets inputs of a shape. The inputs are copied into standing
    buffers; what the function writes lives in tensors that never move.
    """

    def __init__(self, written: Callable[[], dict[str, Tensor]]):
        self._written = written
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]] = {}

    def __call__(self, function: Callable[..., Any], **inputs: Tensor) -> Any:
        key = (function, *((name, tensor.shape) for name, tensor in inputs.items()))
        if key not in self._captured:
            self._captured[key] = self._capture(function, inputs)
        graph, buffers, output = self._captured[key]
        for name, tensor in inputs.items():
            buffers[name].copy_(tensor)
        graph.replay()
        return output

    def _capture(
        self, function: Callable[..., Any], inputs: dict[str, Tensor]
    ) -> tuple[torch.cuda.CUDAGraph, dict[str, Tensor], Any]:
        buffers = {name: torch.empty_like(tensor, device="cuda").copy_(tensor) for name, tensor in inputs.items()}
        before = {name: tensor.clone() for name, tensor in self._written().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # cuDNN and cuBLAS choose and allocate before the capture, not in it
            for _ in range(3):
                function(**buffers)
        torch.cuda.current_stream().wait_stream(stream)
        gc.collect()  # a graph that nobody uses any more must not go in the middle of a capture (pytorch#161037)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            output = function(**buffers)
        for name, tensor in self._written().items():  # the warm-up has learned; the capture itself runs nothing
            tensor.copy_(before[name])
        return graph, buffers, output
