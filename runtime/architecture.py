"""Which layers a network has, by the names that flags and files use."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Which layers a network has; the defaults are the paper's. A state dict holds those that differ."""

    network: str = "nature"
    dueling: bool = False
    separable: bool = False
    distributional: str = "off"


PAPER_ARCHITECTURE = Architecture()
