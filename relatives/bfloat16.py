"""Half the bits: the multiplications of training in bfloat16, with weights, targets and losses in float32."""

import torch
from torch import Tensor

from model import QNetwork


def outputs(network: QNetwork, states: Tensor) -> Tensor:
    """The network's outputs, float32, its convolutions and hidden layer computed in bfloat16.

    The last layer is computed in float32: bfloat16 has 8 bits, too few to tell one action's value from another's.
    """
    # A cache of rounded weights would outlive an update that changes them.
    with torch.autocast(states.device.type, torch.bfloat16, cache_enabled=False):
        features = network.features(states)
    return network.outputs_of(features.float())
