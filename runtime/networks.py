"""State dict files: the network that one of them describes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from atari import MAX_ACTIONS, MAX_FRAMES_PER_STEP, GameOptions
from model import QNetwork
from relatives.networks import build_network
from runtime.architecture import Architecture
from runtime.checkpoint import load_file
from runtime.exits import UsageError


def load_network(path: Path, device: torch.device | str = "cpu") -> QNetwork:
    """The network that a state dict file describes, in evaluation mode; raises `UsageError` where none can be used."""
    state_dict = load_file(path)
    described = state_dict.get("_extra_state") if isinstance(state_dict, dict) else None
    if not isinstance(described, dict) or not {"game", "num_actions", "input"} <= described.keys():
        raise UsageError(f"{path} is not a state dict of this project: it lacks its game and shape")
    num_actions = described["num_actions"]
    if not (isinstance(num_actions, int) and 1 <= num_actions <= MAX_ACTIONS):
        raise UsageError(f"{path} is not a state dict of this project: no Atari game has {num_actions} actions")
    try:
        network = build_network(str(described["game"]), num_actions, *_described(described))
        network.load_state_dict(state_dict)
    except (RuntimeError, ValueError, TypeError, AttributeError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise UsageError(f"{path} is a state dict of another network: {reason}") from None
    if not all(bool(torch.isfinite(parameter).all()) for parameter in network.parameters()):
        raise UsageError(f"{path} has weights that are NaN or infinite: its training failed; use an earlier network")
    return network.to(device).eval()


def _described(described: dict[str, Any]) -> tuple[Architecture, GameOptions]:
    """The layers and rules of a state dict, by default the paper's; raises `ValueError` where they are unknown."""
    values = described | {"actions": tuple(described.get("actions", ()))}
    of_architecture, of_rules = (
        {field.name: values[field.name] for field in fields(kind) if field.name in values}
        for kind in (Architecture, GameOptions)
    )
    architecture, rules = Architecture(**of_architecture), GameOptions(**of_rules)
    frames, actions = rules.frames_per_step, len(rules.actions)
    known = type(frames) is int and 1 <= frames <= MAX_FRAMES_PER_STEP and 0 <= rules.sticky_actions <= 1
    if not known or actions not in (0, described["num_actions"]):
        raise ValueError(f"this version does not know {architecture}, {rules}")
    return architecture, rules


def architecture_of(network: QNetwork) -> Architecture:
    """Which layers a network has."""
    return _described(network.description)[0]
