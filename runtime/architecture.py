"""Which layers a network has, as flags and files name them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Which layers a network has; the defaults are the paper's. A state dict tells in what its own differ from them."""

    network: str = "nature"
    dueling: bool = False
    separable: bool = False
    distributional: str = "off"


PAPER_ARCHITECTURE = Architecture()
