"""The Q-network of Mnih et al. 2015: four 84x84 frames in, one value per action out."""

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from atari import FRAME_SIZE, HISTORY_FRAMES, MAX_ACTIONS
from machine.checkpoint import load_file
from machine.exits import UsageError


class QNetwork(nn.Module):
    """Three convolutions and two fully connected layers (paper, Methods; convnet_atari3.lua).

    Its state dict carries the game, the number of actions and the input's shape, so the file alone is enough to
    play: see `load_network`.
    """

    def __init__(self, game: str, num_actions: int):
        super().__init__()
        self.game = game
        self.num_actions = num_actions
        # padding=1 is the released code's (convLayer(..., 1)); the paper does not mention it. 20x20 either way.
        self.conv1 = nn.Conv2d(HISTORY_FRAMES, 32, kernel_size=8, stride=4, padding=1)
        self.conv2 = nn.Conv2d(32, 64, kernel_size=4, stride=2)
        self.conv3 = nn.Conv2d(64, 64, kernel_size=3, stride=1)
        self.hidden = nn.Linear(7 * 7 * 64, 512)
        self.values = nn.Linear(512, num_actions)
        for layer in (self.conv1, self.conv2, self.conv3, self.hidden, self.values):
            # Torch7's default, for biases too: uniform in +-1/sqrt(fan_in). Spelled out, not left to PyTorch.
            bound = layer.weight[0].numel() ** -0.5
            for parameter in layer.parameters():
                nn.init.uniform_(parameter, -bound, bound)
        for layer in (self.conv1, self.conv2, self.conv3):  # the layout in which convolutions are fastest
            layer.weight.data = layer.weight.data.contiguous(memory_format=torch.channels_last)

    def features(self, states: Tensor) -> Tensor:
        """The last hidden layer, (batch, 512) float32, of states (batch, 4, 84, 84) uint8, oldest frame first."""
        # One pass from bytes to scaled floats in the layout the convolutions are fastest in.
        pixels = states.to(dtype=torch.float32, memory_format=torch.channels_last).mul_(1 / 255)
        maps = F.relu(self.conv1(pixels), inplace=True)
        maps = F.relu(self.conv2(maps), inplace=True)
        maps = F.relu(self.conv3(maps), inplace=True)
        # Flattened as height, width, channel: the order in which channels_last already holds them, so nothing moves.
        return F.relu(self.hidden(maps.permute(0, 2, 3, 1).flatten(1)), inplace=True)

    def forward(self, states: Tensor) -> Tensor:
        """Q-values, (batch, num_actions) float32, of states (batch, 4, 84, 84) uint8, oldest frame first."""
        return self.values(self.features(states))

    def get_extra_state(self) -> dict[str, Any]:
        """What the state dict says of itself, through PyTorch's own hook."""
        shape = [HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE]
        return {"game": self.game, "num_actions": self.num_actions, "input": shape}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Check on loading that the weights are for this network's game and shape; raises `ValueError`."""
        if state != self.get_extra_state():
            raise ValueError(f"the state dict is for {state}, the network for {self.get_extra_state()}")


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
        network = QNetwork(str(described["game"]), num_actions)
        network.load_state_dict(state_dict)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is a state dict of another network: {reason}") from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise UsageError(f"{path} holds weights that are no finite numbers: its training failed; take an earlier one")
    return network.to(device).eval()
