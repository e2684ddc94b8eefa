"""The Q-networks: four 84x84 frames in, one value per action out. The paper's, and its relatives."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari import FRAME_SIZE, HISTORY_FRAMES, MAX_ACTIONS, MAX_FRAMES_PER_STEP, PAPER_RULES, Rules
from machine.checkpoint import load_file
from machine.exits import UsageError
from relatives.distributional import ATOMS, DISTRIBUTIONS

# Of each network the convolutions (filters, kernel size, stride, padding) and the size of the hidden layer.
NETWORKS: dict[str, tuple[tuple[tuple[int, int, int, int], ...], int]] = {
    # padding 1 is the released code's (convLayer(..., 1)); the paper does not mention it. 20x20 either way.
    "nature": (((32, 8, 4, 1), (64, 4, 2, 0), (64, 3, 1, 0)), 512),  # paper, Methods; convnet_atari3.lua
    "nips2013": (((16, 8, 4, 0), (32, 4, 2, 0)), 256),  # Mnih et al. 2013, section 4.1
}
# On a CPU forward and backward take 10.7 ms in it, 16.0 in the usual one (BENCHMARKS.md); on a GPU it is not measured.
MEMORY_FORMAT = torch.channels_last
PFRL_BIAS = 0.1  # its LargeAtariCNN; 0 in the last layer


@dataclass(frozen=True)
class Layers:
    """Which layers a network has; the defaults are the paper's. A state dict tells in what its own differ from them.

    dueling: one hidden layer for the state's value, one for what each action adds to it (Wang et al. 2016).
    separable: each convolution as one per channel, then one across channels (GamePlay's networks, without biases).
    distributional: c51 or qr, the return's distribution for each action instead of its mean.
    """

    network: str = "nature"
    dueling: bool = False
    separable: bool = False
    distributional: str = "off"


PAPER_LAYERS = Layers()


class QNetwork(nn.Module):
    """Three convolutions and two fully connected layers (paper, Methods; convnet_atari3.lua), or a relative of that.

    Its state dict carries the game, the number of actions, the input's shape and whatever is not the paper's, so the
    file alone is enough to play: see `load_network`.
    """

    def __init__(
        self,
        game: str,
        num_actions: int,
        layers: Layers = PAPER_LAYERS,
        rules: Rules = PAPER_RULES,
        *,
        initial_weights: str = "torch7",
        history_frames: int = HISTORY_FRAMES,
        frame_size: int = FRAME_SIZE,
    ):
        """`initial_weights`: torch7, lecun or xavier, drawn from PyTorch's own generator."""
        super().__init__()
        self.game = game
        self.num_actions = num_actions
        self.layers = layers
        self.rules = rules
        self._initial_weights = initial_weights
        self._input = [history_frames, frame_size, frame_size]
        geometry, hidden_size = NETWORKS[self.layers.network]
        channels, size = history_frames, frame_size
        self._convolutions = [f"conv{number}" for number in range(1, len(geometry) + 1)]
        for name, (filters, kernel_size, stride, padding) in zip(self._convolutions, geometry, strict=True):
            self.add_module(name, self._convolution(channels, filters, kernel_size, stride, padding))
            channels, size = filters, (size + 2 * padding - kernel_size) // stride + 1
        streams = 2 if self.layers.dueling else 1
        self.distribution = None if layers.distributional == "off" else DISTRIBUTIONS[layers.distributional]()
        atoms = 1 if self.distribution is None else ATOMS
        self.hidden = nn.Linear(size * size * channels, streams * hidden_size)
        self.values = nn.Linear(hidden_size, num_actions * atoms)
        if self.layers.dueling:
            self.state_value = nn.Linear(hidden_size, atoms)
        with_weights = [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
        for layer in with_weights:
            _draw(layer, initial_weights, bias=PFRL_BIAS if layer in with_weights[:-streams] else 0)
        for layer in with_weights:
            if isinstance(layer, nn.Conv2d):  # the layout in which convolutions are fastest
                layer.weight.data = layer.weight.data.contiguous(memory_format=MEMORY_FORMAT)

    def _convolution(self, channels: int, filters: int, kernel_size: int, stride: int, padding: int) -> nn.Module:
        if not self.layers.separable:
            return nn.Conv2d(channels, filters, kernel_size, stride, padding)
        per_channel = nn.Conv2d(channels, channels, kernel_size, stride, padding, groups=channels, bias=False)
        return nn.Sequential(per_channel, nn.Conv2d(channels, filters, 1, bias=False))

    def features(self, states: Tensor) -> Tensor:
        """The last hidden layer, (batch, 512) float32, of states (batch, 4, 84, 84) uint8, oldest frame first.

        Other networks have other sizes; a dueling one has its two hidden layers side by side, the state's first.
        """
        # One pass from bytes to scaled floats in the layout the convolutions are fastest in.
        maps = states.to(dtype=torch.float32, memory_format=MEMORY_FORMAT).mul_(1 / 255)
        for name in self._convolutions:
            maps = F.relu(getattr(self, name)(maps), inplace=True)
        # Flattened as height, width, channel: the order in which channels_last already holds them, so nothing moves.
        return F.relu(self.hidden(maps.permute(0, 2, 3, 1).flatten(1)), inplace=True)

    def forward(self, states: Tensor) -> Tensor:
        """Q-values, (batch, num_actions) float32, of states (batch, 4, 84, 84) uint8, oldest frame first."""
        return self.mean(self.outputs(states))

    def outputs(self, states: Tensor) -> Tensor:
        """Q-values, (batch, num_actions) float32; of a distributional network (batch, num_actions, 51)."""
        return self.outputs_of(self.features(states))

    def outputs_of(self, features: Tensor) -> Tensor:
        """What `outputs` gives, of `features` of states."""
        if not self.layers.dueling:
            return self._by_action(self.values(features))
        of_state, of_actions = features.chunk(2, dim=1)
        advantages = self._by_action(self.values(of_actions))
        state_values = self.state_value(of_state)
        if self.distribution is not None:
            state_values = state_values[:, None]
        return state_values + advantages - advantages.mean(1, keepdim=True)

    def _by_action(self, outputs: Tensor) -> Tensor:
        return outputs if self.distribution is None else outputs.unflatten(1, (self.num_actions, ATOMS))

    def mean(self, outputs: Tensor) -> Tensor:
        """The Q-values, (batch, num_actions), of what `outputs` gave."""
        return outputs if self.distribution is None else self.distribution.mean(outputs)

    def head(self) -> list[nn.Parameter]:
        """The parameters of the fully connected layers, which are the last of `parameters`."""
        convolutions = sum(len([*getattr(self, name).parameters()]) for name in self._convolutions)
        return [*self.parameters()][convolutions:]

    @torch.no_grad()
    def redraw_head(self, seed: int) -> None:
        """Draw the fully connected layers anew, as at the start, on the CPU whatever the device."""
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            fresh = QNetwork(self.game, self.num_actions, self.layers, initial_weights=self._initial_weights)
        for parameter, drawn in zip(self.head(), fresh.head(), strict=True):
            parameter.copy_(drawn)

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict says of itself, through PyTorch's own hook."""
        described = {"game": self.game, "num_actions": self.num_actions, "input": self._input}
        return described | _unlike(self.layers, PAPER_LAYERS) | _unlike(self.rules, PAPER_RULES)

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Check on loading that the weights are for this network's game and shape; raises `ValueError`."""
        if state != self.get_extra_state():
            raise ValueError(f"the state dict is for {state}, the network for {self.get_extra_state()}")


def _draw(layer: nn.Conv2d | nn.Linear, initial_weights: str, bias: float) -> None:
    """Draw a layer's first weights; `bias` is that of lecun."""
    fan_in = layer.weight[0].numel()
    if initial_weights == "torch7":
        # Torch7's default, for biases too: uniform in +-1/sqrt(fan_in). Spelled out, not left to PyTorch.
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -(fan_in**-0.5), fan_in**-0.5)
        return
    if initial_weights == "lecun":  # PFRL's DQN: init_chainer_default, constant_bias_initializer
        nn.init.normal_(layer.weight, std=fan_in**-0.5)
    else:  # Dopamine's: xavier_uniform, biases of 0
        nn.init.xavier_uniform_(layer.weight)
    if layer.bias is not None:
        nn.init.constant_(layer.bias, bias if initial_weights == "lecun" else 0)


def _unlike(described: Layers | Rules, defaults: Layers | Rules) -> dict[str, Any]:
    """What differs from the paper, as plain values; a state dict of the paper's network has nothing more in it."""
    usual = asdict(defaults)
    differing = {name: value for name, value in asdict(described).items() if value != usual[name]}
    return {name: [*value] if isinstance(value, tuple) else value for name, value in differing.items()}


def load_network(path: Path, device: torch.device | str = "cpu") -> QNetwork:
    """The network that a state dict file describes, in evaluation mode; raises `UsageError` where none can be used."""
    state_dict = load_file(path)
    described = state_dict.get("_extra_state") if isinstance(state_dict, dict) else None
    if not isinstance(described, dict) or not {"game", "num_actions", "input"} <= described.keys():
        raise UsageError(f"{path} is not a state dict of this project: it does not say its game and shape")
    num_actions = described["num_actions"]
    if not (isinstance(num_actions, int) and 1 <= num_actions <= MAX_ACTIONS):
        raise UsageError(f"{path} is not a state dict of this project: no Atari game has {num_actions} actions")
    try:
        network = QNetwork(str(described["game"]), num_actions, *_described(described))
        network.load_state_dict(state_dict)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is a state dict of another network: {reason}") from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise UsageError(f"{path} holds weights that are no finite numbers: its training failed; take an earlier one")
    return network.to(device).eval()


def _described(described: dict[str, Any]) -> tuple[Layers, Rules]:
    """The layers and rules of a state dict, the paper's where it says nothing; raises `ValueError` for what is none."""
    values = described | {"actions": tuple(described.get("actions", ()))}
    of_layers, of_rules = (
        {field.name: values[field.name] for field in fields(kind) if field.name in values} for kind in (Layers, Rules)
    )
    layers, rules = Layers(**of_layers), Rules(**of_rules)
    frames, actions = rules.frames_per_step, len(rules.actions)
    known = layers.network in NETWORKS and layers.distributional in ("off", *DISTRIBUTIONS)
    known = known and type(frames) is int and 1 <= frames <= MAX_FRAMES_PER_STEP
    if not known or not 0 <= rules.sticky_actions <= 1 or actions not in (0, described["num_actions"]):
        raise ValueError(f"no network of this version is {layers}, {rules}")
    return layers, rules
