"""Half the bits: the multiplications of training in bfloat16, with weights, targets and losses in float32."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model import QNetwork
from q_agent import QAgent


def halve_bits(agent: QAgent) -> None:
    """Let acting and learning compute convolutions and hidden layers in bfloat16.

    The last layer stays float32, since bfloat16 has 8 bits, too few to tell one action's value from another's; and so
    does whatever else asks the same networks: evaluations, figures, films.
    """
    switch = _Switch(agent.device.type)
    for network in (agent.online_network, agent.target_network):
        network.features = switch.features_of(network)  # type: ignore[method-assign, assignment]
    agent.greedy_actions = switch.on_during(agent.greedy_actions)  # type: ignore[method-assign, assignment]
    agent.learn_on_device = switch.on_during(agent.learn_on_device)  # type: ignore[method-assign, assignment]


class _Switch:
    def __init__(self, device_type: str):
        self._device_type = device_type
        self._on = False

    def features_of(self, network: QNetwork) -> Callable[[Tensor], Tensor]:
        in_float32 = network.features

        def features(states: Tensor) -> Tensor:
            # A cache of rounded weights would outlive an update that changes them.
            with torch.autocast(self._device_type, torch.bfloat16, enabled=self._on, cache_enabled=False):
                return in_float32(states).float()

        return features

    def on_during(self, function: Callable[[Any], Tensor]) -> Callable[[Any], Tensor]:
        def switched_on(argument: Any) -> Tensor:
            self._on = True
            try:
                return function(argument)
            finally:
                self._on = False

        return switched_on
