"""The agent: two networks, the paper's RMSProp, how actions are chosen and how the network learns."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from atari import HISTORY_FRAMES
from model import QNetwork
from replay_memory import Transitions


class RMSProp:
    """The paper's RMSProp, on all parameters at once, with d the gradient summed over the minibatch:

    g <- .95 g + .05 d;  v <- .95 v + .05 d^2;  w <- w - lr d / sqrt(v - g^2 + 0.01)
    (NeuralQLearner.lua, qLearnMinibatch). Not `torch.optim.RMSprop(centered=True)`, which adds its eps after the
    root and would need it scaled for a mean loss.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, decay: float, minimum: float):
        self.learning_rate = learning_rate
        self.decay = decay
        self.minimum = minimum
        # The parameters and their gradients become views of two flat buffers: a handful of passes over one array.
        self.weights = flatten(parameters)
        self.gradient = torch.zeros_like(self.weights)
        for parameter, view in zip(parameters, _views(self.gradient, parameters), strict=True):
            parameter.grad = view
        self.gradient_mean = torch.zeros_like(self.weights)
        self.squared_gradient_mean = torch.zeros_like(self.weights)
        self._scale = torch.empty_like(self.weights)

    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients of the summed loss."""
        d, g, v = self.gradient, self.gradient_mean, self.squared_gradient_mean
        g.mul_(self.decay).add_(d, alpha=1 - self.decay)
        v.mul_(self.decay).addcmul_(d, d, value=1 - self.decay)
        torch.addcmul(v, g, g, value=-1, out=self._scale).add_(self.minimum).rsqrt_()
        self.weights.addcmul_(d, self._scale, value=-self.learning_rate)


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

    def __init__(self, network: QNetwork, optimizer: RMSProp, *, discount: float, minibatch_size: int):
        """`optimizer` is that of the network's parameters, on the device where everything is computed."""
        self.device = optimizer.weights.device
        self.online_network = network
        self.target_network = copy.deepcopy(network).requires_grad_(False)
        self.optimizer = optimizer
        self._target_weights = flatten(list(self.target_network.parameters()))
        self._discount = discount
        self._minibatch_size = minibatch_size
        self._loss_sum = torch.zeros((), device=self.device)
        self._updates_since_loss = 0
        self._run: Callable[..., Any] = _Graphs(self._tensors) if self.device.type == "cuda" else self._run_eagerly

    def act(self, states: Tensor, epsilon: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """An epsilon-greedy action for each environment, (num_envs,) int64, in states (num_envs, 4, 84, 84) uint8.

        epsilon: (num_envs,). Random numbers are drawn on the host, the same amount each time.
        """
        explore, actions = draw_exploration(len(epsilon), self.online_network.num_actions, epsilon, generator)
        if explore.all():
            return actions
        greedy = self._run(self._greedy_actions, states)
        return np.where(explore, actions, greedy.cpu().numpy())

    def learn(self, transitions: Transitions) -> None:
        """One update per minibatch in `transitions`, a multiple of the minibatch size, in their order."""
        self._run(
            self._update,
            transitions.windows,
            torch.from_numpy(transitions.actions),
            torch.from_numpy(transitions.rewards),
            torch.from_numpy(np.where(transitions.terminals, 0, self._discount).astype(np.float32)),
        )
        self._updates_since_loss += len(transitions.actions) // self._minibatch_size

    def copy_target(self) -> None:
        self._target_weights.copy_(self.optimizer.weights)

    @torch.no_grad()
    def max_q(self, states: Tensor) -> Tensor:
        """The largest Q-value, (count,) float32, in each of the states (count, 4, 84, 84) uint8."""
        return self.online_network(states.to(self.device)).amax(1)

    def take_mean_loss(self) -> float | None:
        """The mean loss per transition of the updates since the last call; None when there were none."""
        if not self._updates_since_loss:
            return None
        mean = self._loss_sum.item() / (self._updates_since_loss * self._minibatch_size)
        self._loss_sum.zero_()
        self._updates_since_loss = 0
        return mean

    def is_finite(self) -> bool:
        """Whether every weight and the loss are finite; waits for the device."""
        return bool(torch.isfinite(self.optimizer.weights.sum() + self._loss_sum))

    def _run_eagerly(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        return function(*(tensor.to(self.device) for tensor in inputs))

    @torch.no_grad()
    def _greedy_actions(self, states: Tensor) -> Tensor:
        return self.online_network(states).argmax(1)

    def _update(self, windows: Tensor, actions: Tensor, rewards: Tensor, discounts: Tensor) -> None:
        # The target network stands still between two copies: one pass gives the targets of all these updates.
        with torch.no_grad():
            targets = rewards + discounts * self.target_network(windows[:, 1:]).amax(1)
        for begin in range(0, len(actions), self._minibatch_size):
            batch = slice(begin, begin + self._minibatch_size)
            q_values = self.online_network(windows[batch, :HISTORY_FRAMES])
            q_taken = q_values.gather(1, actions[batch, None]).squeeze(1)
            # The gradient of this loss is the TD error clipped to [-1, 1], summed over the minibatch (getQUpdate).
            loss = F.huber_loss(q_taken, targets[batch], reduction="sum", delta=1.0)
            self.optimizer.gradient.zero_()  # in place: `backward` adds to it
            loss.backward()
            self.optimizer.step()
            self._loss_sum += loss.detach()

    def _tensors(self) -> dict[str, Tensor]:
        means = {name: getattr(self.optimizer, name) for name in ("gradient_mean", "squared_gradient_mean")}
        networks = {"online": self.optimizer.weights, "target": self._target_weights}
        return networks | means | {"loss_sum": self._loss_sum}

    def state_dict(self) -> dict[str, Any]:
        """All that learning depends on, on the CPU: both networks, the optimizer, the running loss."""
        state: dict[str, Any] = {name: tensor.cpu().clone() for name, tensor in self._tensors().items()}
        return state | {"updates_since_loss": self._updates_since_loss}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, tensor in self._tensors().items():
            tensor.copy_(state[name])
        self._updates_since_loss = state["updates_since_loss"]


class _Graphs:
    """Runs functions of tensors as CUDA graphs: one launch instead of about 40 per update.

    A graph is captured the first time a function meets inputs of a shape. The inputs are copied into standing
    buffers; what the function writes lives in tensors that never move.
    """

    def __init__(self, written: Callable[[], dict[str, Tensor]]):
        self._written = written
        self._captured: dict[Any, tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]] = {}

    def __call__(self, function: Callable[..., Any], *inputs: Tensor) -> Any:
        key = (function.__name__, *(tensor.shape for tensor in inputs))
        if key not in self._captured:
            self._captured[key] = self._capture(function, inputs)
        graph, buffers, output = self._captured[key]
        for buffer, tensor in zip(buffers, inputs, strict=True):
            buffer.copy_(tensor)
        graph.replay()
        return output

    def _capture(
        self, function: Callable[..., Any], inputs: tuple[Tensor, ...]
    ) -> tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], Any]:
        buffers = tuple(torch.empty_like(tensor, device="cuda").copy_(tensor) for tensor in inputs)
        before = {name: tensor.clone() for name, tensor in self._written().items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # cuDNN and cuBLAS choose and allocate before the capture, not in it
            for _ in range(3):
                function(*buffers)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            output = function(*buffers)
        for name, tensor in self._written().items():  # the warm-up has learned; the capture itself runs nothing
            tensor.copy_(before[name])
        return graph, buffers, output
