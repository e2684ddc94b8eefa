"""The Q-network: four 84x84 frames in, one value per action out."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari import FRAME_SIZE, HISTORY_FRAMES, PAPER_OPTIONS

# On a CPU forward and backward take 10.7 ms in it, 16.0 in the usual one (BENCHMARKS.md); on a GPU it is not measured.
MEMORY_FORMAT = torch.channels_last


def draw_torch7(network: "QNetwork") -> None:
    """First weights as the released code draws them: uniform in +-1/sqrt(fan_in), Torch7's default, biases too."""
    for layer in network.layers():
        bound = layer.weight[0].numel() ** -0.5
        for parameter in layer.parameters():
            nn.init.uniform_(parameter, -bound, bound)


class QNetwork(nn.Module):
    """Three convolutions and two fully connected layers (paper, Methods; convnet_atari3.lua)."""

    hidden_units = 512

    def __init__(
        self,
        game: str,
        num_actions: int,
        *,
        draw_weights: Callable[["QNetwork"], None] = draw_torch7,
        history_frames: int = HISTORY_FRAMES,
        frame_size: int = FRAME_SIZE,
    ):
        """`draw_weights` draws from PyTorch's own generator."""
        super().__init__()
        self.game = game
        self.num_actions = num_actions
        self.rules = PAPER_OPTIONS  # how the game is played
        self.description: dict[str, Any] = {  # the state dict carries it, so that the file alone is enough to play
            "game": game,
            "num_actions": num_actions,
            "input": [history_frames, frame_size, frame_size],
        }
        self._size = frame_size  # of the maps; each call of `convolution` makes it smaller
        channels = self.add_convolutions(history_frames)
        self.add_head(channels * self._size**2)
        draw_weights(self)
        for layer in self.layers():
            if isinstance(layer, nn.Conv2d):  # the layout in which convolutions are fastest
                layer.weight.data = layer.weight.data.contiguous(memory_format=MEMORY_FORMAT)

    def add_convolutions(self, history_frames: int) -> int:
        """Make the layers that `convolve` passes through; returns the number of the last one's filters."""
        # The padding is the released code's (convLayer(..., 1)); the paper does not mention it. 20x20 maps either way.
        self.conv1 = self.convolution(history_frames, 32, kernel_size=8, stride=4, padding=1)
        self.conv2 = self.convolution(32, 64, kernel_size=4, stride=2)
        self.conv3 = self.convolution(64, 64, kernel_size=3, stride=1)
        return 64

    def add_head(self, num_features: int) -> None:
        """Make the fully connected layers."""
        self.hidden = nn.Linear(num_features, self.hidden_units)
        self.values = nn.Linear(self.hidden_units, self.num_outputs)

    @property
    def num_outputs(self) -> int:
        """Outputs of the last layer."""
        return self.num_actions

    def convolution(self, channels: int, filters: int, *, kernel_size: int, stride: int, padding: int = 0) -> nn.Module:
        """One convolutional layer."""
        self.shrink(kernel_size, stride, padding)
        return nn.Conv2d(channels, filters, kernel_size, stride, padding)

    def shrink(self, kernel_size: int, stride: int, padding: int) -> None:
        """Note how a convolution changes the size of the maps."""
        self._size = (self._size + 2 * padding - kernel_size) // stride + 1

    def convolve(self, maps: Tensor) -> Tensor:
        """The maps (batch, 64, 7, 7) of pixels (batch, 4, 84, 84) from 0 to 1."""
        maps = F.relu(self.conv1(maps), inplace=True)
        maps = F.relu(self.conv2(maps), inplace=True)
        return F.relu(self.conv3(maps), inplace=True)

    def features(self, states: Tensor) -> Tensor:
        """The last hidden layer, (batch, 512) float32, of states (batch, 4, 84, 84) uint8, oldest frame first."""
        # One pass from bytes to scaled floats in the layout the convolutions are fastest in.
        pixels = states.to(dtype=torch.float32, memory_format=MEMORY_FORMAT).mul_(1 / 255)
        # Flattened as height, width, channel: the order in which channels_last already holds them, so nothing moves.
        maps = self.convolve(pixels).permute(0, 2, 3, 1).flatten(1)
        return F.relu(self.hidden(maps), inplace=True)

    def head(self, features: Tensor) -> Tensor:
        """What the last layer makes of `features`."""
        return self.values(features)

    def forward(self, states: Tensor) -> Tensor:
        """Q-values, (batch, num_actions) float32, of states (batch, 4, 84, 84) uint8, oldest frame first."""
        return self.head(self.features(states))

    def layers(self) -> list[nn.Conv2d | nn.Linear]:
        """The layers with weights, in the order of `parameters`."""
        return [layer for layer in self.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict says of itself, through PyTorch's own hook."""
        return self.description

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Check on loading that the weights are for this network's game and shape; raises `ValueError`."""
        if state != self.description:
            raise ValueError(f"the state dict is for {state}, the network for {self.description}")


class Nips2013Network(QNetwork):
    """The network of the 2013 paper: two convolutions, half as many filters and hidden units (section 4.1)."""

    hidden_units = 256

    def add_convolutions(self, history_frames: int) -> int:
        self.conv1 = self.convolution(history_frames, 16, kernel_size=8, stride=4)
        self.conv2 = self.convolution(16, 32, kernel_size=4, stride=2)
        return 32

    def convolve(self, maps: Tensor) -> Tensor:
        """The maps (batch, 32, 9, 9) of pixels (batch, 4, 84, 84) from 0 to 1."""
        return F.relu(self.conv2(F.relu(self.conv1(maps), inplace=True)), inplace=True)


NETWORKS: dict[str, type[QNetwork]] = {"nature": QNetwork, "nips2013": Nips2013Network}
