"""What a checkpoint and the log hold of a training, and how it is restored bit for bit."""

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from atari import FRAME_SIZE, HISTORY_FRAMES
from runtime.action_log import fingerprint, play_again
from training import Training


def log_values(training: Training) -> dict[str, float]:
    """A row of the log: loss and Q-values of the updates since the last call; max Q over the held-out states.

    With a deviation near 0 the network does not tell states apart. States with the empty frames of a game's start are
    left out: they differ so much from all others that they would hide it (docs/experiments/plateau.md).
    """
    values, states = training.agent.means.take(), training.held_out_states
    if states is None:
        return values
    max_q, whole = training.agent.max_q(states).cpu(), states.flatten(2).bool().any(2).all(1)
    deviation = max_q[whole].std(correction=0).item()
    return values | {"mean_q_held_out": max_q.mean().item(), "deviation_q_held_out": deviation}


def is_finite(training: Training) -> bool:
    """Whether every weight and the loss are finite; waits for the device."""
    return bool(torch.isfinite(training.agent.optimizer.weights.sum())) and training.agent.means.is_finite()


def state_of(training: Training) -> dict[str, Any]:
    """All that the rest of the run depends on, as tensors and plain values; the memory as a log of actions."""
    held_out = training.held_out_states
    log = training.action_log.state_dict()
    return {name: pack(array) for name, array in training.kept_arrays.items()} | {
        "agent": training.agent.state_dict(),
        "generators": {name: generator.bit_generator.state for name, generator in training.generators.items()},
        "action_log": log | {"actions": [torch.from_numpy(actions) for actions in log["actions"]]},
        "fingerprint": fingerprint(training.memory),
        "agent_steps": training.agent_steps,
        "games_finished": training.games_finished,
        "recent_scores": list(training.recent_scores),
        "held_out_states": None if held_out is None else pack(held_out.numpy()),
        "evaluations": training.evaluations,
        "reseeds": training.reseeds,
    }


def restore(
    training: Training, state: dict[str, Any], watch: Callable[[int], bool] = lambda steps: True
) -> bool | None:
    """Take over what `state_of` gave, the memory by playing its actions again; whether that gave the same bytes.

    After each step `watch` is told how many agent steps it was; when it returns False, None is returned at once, and
    the training is to be thrown away.
    """
    log = state["action_log"]
    training.action_log.load_state_dict(log | {"actions": [actions.numpy() for actions in log["actions"]]})
    if not play_again(training.action_log, training.games, training.memory, watch):
        return None
    training.agent.load_state_dict(state["agent"])
    for name, generator in training.generators.items():
        generator.bit_generator.state = state["generators"][name]
    training.set_clock(state["agent_steps"])
    training.games_finished = state["games_finished"]
    training.recent_scores.extend(state["recent_scores"])
    if state["held_out_states"] is not None:
        pixels = unpack(state["held_out_states"], np.uint8)
        training.held_out_states = torch.from_numpy(pixels.reshape(-1, HISTORY_FRAMES, FRAME_SIZE, FRAME_SIZE))
    for name, array in training.kept_arrays.items():
        array[:] = unpack(state[name], array.dtype.type).reshape(array.shape)
    training.evaluations = state["evaluations"]
    training.reseeds = state["reseeds"]
    return fingerprint(training.memory) == state["fingerprint"]


def pack(array: np.ndarray) -> torch.Tensor:
    """An array's bytes, compressed: the held-out states are 14 MB, and nearly all background."""
    return torch.frombuffer(bytearray(zlib.compress(array.tobytes(), 1)), dtype=torch.uint8)


def unpack(packed: torch.Tensor, dtype: type[np.generic]) -> np.ndarray:
    """The array that `pack` packed, flat."""
    return np.frombuffer(bytearray(zlib.decompress(packed.numpy().tobytes())), dtype)
