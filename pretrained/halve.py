"""Write a network with weights of 16 bits, half the bytes: python -m pretrained.halve --help"""

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from runtime.checkpoint import save_state_dict
from runtime.exits import exit_with
from runtime.files import check_output, failing_clearly
from runtime.flags import parse
from runtime.networks import load_network


@dataclass
class Halve:
    """Write a network with weights of 16 bits; every script reads it like any other, and plays with 32 bits again."""

    state_dict: tyro.conf.Positional[Path]
    """The network: a state dict that a training run wrote, such as runs/.../best.pt."""
    output: tyro.conf.Positional[Path]
    """The file to write."""


def main() -> None:
    config = parse(Halve)
    check_output(config.output, ".pt")
    state_dict = load_network(config.state_dict).state_dict()
    halved = {name: value.half() if isinstance(value, torch.Tensor) else value for name, value in state_dict.items()}
    with failing_clearly(config.output):
        save_state_dict(halved, config.output)
    print(f"{config.output}: {config.output.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    exit_with(main)
