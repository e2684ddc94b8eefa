"""Every network there is: which layers, built from the paper's and its relatives."""

from dataclasses import asdict
from typing import Any

from atari import FRAME_SIZE, HISTORY_FRAMES, PAPER_OPTIONS, GameOptions
from model import NETWORKS, QNetwork
from relatives.distributional import DISTRIBUTIONS
from relatives.dueling import Dueling
from relatives.first_weights import FIRST_WEIGHTS
from relatives.separable import Separable
from runtime.architecture import PAPER_ARCHITECTURE, Architecture


def network_class(architecture: Architecture) -> type[QNetwork]:
    """The class of the networks with these layers; raises `KeyError` for a name that there is not."""
    parts: list[type[QNetwork]] = []
    if architecture.distributional != "off":
        parts.append(DISTRIBUTIONS[architecture.distributional])
    parts += [Dueling] * architecture.dueling + [Separable] * architecture.separable
    parts.append(NETWORKS[architecture.network])
    return parts[0] if len(parts) == 1 else type("Network", tuple(parts), {})


def build_network(
    game: str,
    num_actions: int,
    architecture: Architecture = PAPER_ARCHITECTURE,
    rules: GameOptions = PAPER_OPTIONS,
    *,
    initial_weights: str = "torch7",
    history_frames: int = HISTORY_FRAMES,
    frame_size: int = FRAME_SIZE,
) -> QNetwork:
    """A network with first weights; its state dict carries whatever is not the paper's, too."""
    network = network_class(architecture)(
        game,
        num_actions,
        draw_weights=FIRST_WEIGHTS[initial_weights],
        history_frames=history_frames,
        frame_size=frame_size,
    )
    network.rules = rules
    network.description |= _unlike(architecture, PAPER_ARCHITECTURE) | _unlike(rules, PAPER_OPTIONS)
    return network


def _unlike(described: Architecture | GameOptions, defaults: Architecture | GameOptions) -> dict[str, Any]:
    """What differs from the paper, as plain values; a state dict of the paper's network has nothing more in it."""
    usual = asdict(defaults)
    differing = {name: value for name, value in asdict(described).items() if value != usual[name]}
    return {name: [*value] if isinstance(value, tuple) else value for name, value in differing.items()}
