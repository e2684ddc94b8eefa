"""Fresh weights for the fully connected layers now and then, against a bias to early games (Nikishin et al. 2022)."""

from collections.abc import Callable

import torch
from torch import nn

from model import QNetwork
from optimizers import Adam
from q_agent import QAgent


def head_of(network: QNetwork) -> list[nn.Parameter]:
    """The parameters of the fully connected layers, which are the last of `parameters`."""
    convolutions = [parameter for name, parameter in network.named_parameters() if name.startswith("conv")]
    return [*network.parameters()][len(convolutions) :]


@torch.no_grad()
def reset_head(agent: QAgent, build: Callable[[], QNetwork], seed: int) -> None:
    """Draw the fully connected layers anew, on the CPU whatever the device, and make the target network equal.

    The optimizer forgets what it remembers of their old weights. build: makes a network of the same architecture with
    first weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        fresh = build()
    head, optimizer = head_of(agent.online_network), agent.optimizer
    for parameter, drawn in zip(head, head_of(fresh), strict=True):
        parameter.copy_(drawn)
    size = sum(parameter.numel() for parameter in head)
    optimizer.gradient_mean[-size:] = optimizer.squared_gradient_mean[-size:] = 0
    if isinstance(optimizer, Adam):
        optimizer.updates[1] = 0
    agent.copy_target()
