"""First weights other than the released code's, which shorten the plateau (docs/experiments/plateau.md)."""

from collections.abc import Callable

from torch import nn

from model import QNetwork, draw_torch7

PFRL_BIAS = 0.1  # its LargeAtariCNN; 0 in the last layer


def draw_lecun(network: QNetwork) -> None:
    """As PFRL's DQN: init_chainer_default, constant_bias_initializer."""
    last = [network.values, getattr(network, "state_value", None)]
    for layer in network.layers():
        nn.init.normal_(layer.weight, std=layer.weight[0].numel() ** -0.5)
        if layer.bias is not None:
            nn.init.constant_(layer.bias, 0 if layer in last else PFRL_BIAS)


def draw_xavier(network: QNetwork) -> None:
    """As Dopamine's: xavier_uniform, biases of 0."""
    for layer in network.layers():
        nn.init.xavier_uniform_(layer.weight)
        if layer.bias is not None:
            nn.init.zeros_(layer.bias)


FIRST_WEIGHTS: dict[str, Callable[[QNetwork], None]] = {
    "torch7": draw_torch7,
    "lecun": draw_lecun,
    "xavier": draw_xavier,
}
