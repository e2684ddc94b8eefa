"""What updates all parameters at once: the paper's RMSProp, and Adam."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor


class Optimizer(ABC):
    """Updates parameters that have become views of one flat buffer, and their gradients of another.

    So an update is a handful of passes over one array.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float):
        self.learning_rate = learning_rate
        self.rate_now: Tensor | None = None  # a scalar, float32, where a schedule changes the rate
        self.weights = move_into_one_buffer(parameters)
        self.gradient = torch.zeros_like(self.weights)
        for parameter, view in zip(parameters, _views(self.gradient, parameters), strict=True):
            parameter.grad = view
        self.gradient_mean = torch.zeros_like(self.weights)
        self.squared_gradient_mean = torch.zeros_like(self.weights)

    @abstractmethod
    @torch.no_grad()
    def step(self) -> None:
        """Apply one update from the gradients of the summed loss."""

    def zero_grad(self) -> None:
        """Forget the gradients, in place: `backward` adds to them."""
        self.gradient.zero_()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use this step size from now on, instead of the constant."""
        if self.rate_now is None:
            self.rate_now = torch.zeros((), device=self.weights.device)
        self.rate_now.fill_(learning_rate)

    def tensors(self) -> dict[str, Tensor]:
        """What it remembers from one update to the next, by name."""
        return {"gradient_mean": self.gradient_mean, "squared_gradient_mean": self.squared_gradient_mean}


class RMSProp(Optimizer):
    """The paper's RMSProp, with d the gradient summed over the minibatch:

    g <- .95 g + .05 d;  v <- .95 v + .05 d^2;  w <- w - lr d / sqrt(v - g^2 + 0.01)
    (NeuralQLearner.lua, qLearnMinibatch). Not `torch.optim.RMSprop(centered=True)`, which adds its eps after the
    root and would need it scaled for a mean loss.
    """

    def __init__(self, parameters: list[torch.nn.Parameter], learning_rate: float, *, decay: float, minimum: float):
        super().__init__(parameters, learning_rate)
        self.decay = decay
        self.minimum = minimum
        self._scale = torch.empty_like(self.weights)

    @torch.no_grad()
    def step(self) -> None:
        d, g, v = self.gradient, self.gradient_mean, self.squared_gradient_mean
        g.mul_(self.decay).add_(d, alpha=1 - self.decay)
        v.mul_(self.decay).addcmul_(d, d, value=1 - self.decay)
        torch.addcmul(v, g, g, value=-1, out=self._scale).add_(self.minimum).rsqrt_()
        if self.rate_now is None:
            self.weights.addcmul_(d, self._scale, value=-self.learning_rate)
        else:
            self.weights.addcmul_(d, self._scale.mul_(self.rate_now), value=-1)


class Adam(Optimizer):
    """PyTorch's fused Adam with its own decays.

    It counts the updates of the last `head_size` weights apart, since these may begin anew (relatives/head_reset.py).
    """

    def __init__(
        self, parameters: list[torch.nn.Parameter], learning_rate: float, *, epsilon: float = 1e-8, head_size: int
    ):
        super().__init__(parameters, learning_rate)
        device, sizes = self.weights.device, (self.weights.numel() - head_size, head_size)
        self.updates = torch.zeros(2, device=device)
        self.rate_now = torch.tensor(learning_rate, device=device)  # a tensor, so that a graph can change it
        parts, gradients, means, squared_means = (
            flat.split(sizes) for flat in (self.weights, self.gradient, self.gradient_mean, self.squared_gradient_mean)
        )
        self._adam = torch.optim.Adam(parts, self.rate_now, eps=epsilon, fused=True, capturable=device.type == "cuda")
        for number, part in enumerate(parts):
            part.grad = gradients[number]
            averages = {"exp_avg": means[number], "exp_avg_sq": squared_means[number]}
            self._adam.state[part] = {"step": self.updates[number], **averages}

    @torch.no_grad()
    def step(self) -> None:
        self._adam.step()

    def tensors(self) -> dict[str, Tensor]:
        return super().tensors() | {"updates": self.updates}


def move_into_one_buffer(parameters: list[torch.nn.Parameter]) -> Tensor:
    """Move parameters into one flat buffer, which is returned, and make them views of it in their own layouts."""
    flat = parameters[0].new_empty(sum(p.numel() for p in parameters))
    for parameter, view in zip(parameters, _views(flat, parameters), strict=True):
        view.copy_(parameter.detach())
        parameter.data = view
    return flat


def _views(flat: Tensor, parameters: list[torch.nn.Parameter]) -> list[Tensor]:
    chunks = flat.split([parameter.numel() for parameter in parameters])
    return [c.as_strided(p.shape, p.stride()) for c, p in zip(chunks, parameters, strict=True)]
