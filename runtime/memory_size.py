"""How large a replay memory must be, and how large it may be."""

import torch

from atari import FRAME_SIZE, HISTORY_FRAMES
from runtime.devices import available_bytes
from runtime.exits import UsageError

BYTES_PER_TRANSITION = FRAME_SIZE * FRAME_SIZE + 1 + 4 + 1 + 1  # frame, action, reward, terminal, age


def minimum_rows(n_steps: int) -> int:
    """Rows per environment from which a transition can always be drawn, wherever games were last cut off.

    The newer side of the cut needs N + 1 rows, the older side N + 1 and a state's history.
    """
    return HISTORY_FRAMES + 2 + 2 * n_steps


def check_size(size: int, num_envs: int, device: torch.device, n_steps: int = 1) -> float:
    """The gigabytes of the device's memory that a replay memory of this size leaves free.

    Raises `UsageError` for a size that is not a multiple of `num_envs`, too small to sample from, or too large.
    """
    smallest, gigabytes = minimum_rows(n_steps) * num_envs, size * BYTES_PER_TRANSITION / 1e9
    asked = f"--replay-size {size:,}"
    if size % num_envs:
        nearest = max(round(size / num_envs) * num_envs, smallest)
        raise UsageError(f"{asked} is not a multiple of --num-envs {num_envs}; the nearest is {nearest:,}")
    if size < smallest:
        who = f"--num-envs {num_envs}" + (f" with --n-steps {n_steps}" if n_steps > 1 else "")
        raise UsageError(f"{asked} is too small to sample from: {who} needs at least {smallest:,}")
    free = available_bytes(device)
    if gigabytes > free / 1e9:
        fits = free // BYTES_PER_TRANSITION // num_envs * num_envs
        way_out = f"choose --replay-size {fits} or less" if fits >= smallest else "not even the smallest fits"
        raise UsageError(f"{asked} needs {gigabytes:.1f} GB, and {device} has {free / 1e9:.1f} GB free; {way_out}")
    return free / 1e9 - gigabytes
