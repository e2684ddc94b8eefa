"""Agent steps per second: next to Stable-Baselines3, with each relative, by environments; and sampling."""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure

from atari import FRAME_SIZE, Step
from benchmarks.common import (
    MINIBATCH,
    BenchmarkConfig,
    measure_ours,
    milliseconds_of,
    print_table,
    rates_in_turn,
    save_figure,
    values_of_file,
)
from benchmarks.peer import PEER, measure_peer, peer_is_there
from replay_memory import ReplayMemory
from runtime.devices import bfloat16_instructions, choose_device

OPTIONS: dict[str, dict[str, Any]] = {
    "the paper's": {},
    "--network nips2013": {"network": "nips2013"},
    "--dueling": {"dueling": True},
    "--separable": {"separable": True},
    "--double": {"double": True},
    "--prioritized": {"prioritized": True},
    "--no-target-network": {"target_network": False},
    "--optimizer adam": {"optimizer": "adam"},
    "--learning-rate-end": {"learning_rate_end": 1e-5, "learning_rate_steps": 1_000_000},
    "--gradient-steps 4": {"gradient_steps": 4},
    "--frames-per-step 8": {"frames_per_step": 8},
}
CONFIGS = ("d3qn", "efficient-d3qn")  # with their own minibatch and updates per step
ENVIRONMENTS, ENVIRONMENTS_OF_GPU = (1, 2, 4, 8, 16, 32, 64), (16, 32, 64, 128, 256)
MEMORY_SIZES = (10_000, 100_000, 1_000_000)


def compare(config: BenchmarkConfig) -> None:
    """This project, also with its multiplications in bfloat16, next to Stable-Baselines3's DQN."""
    programs: dict[str, Callable[[BenchmarkConfig], float]] = {}
    if peer_is_there():
        programs[PEER] = measure_peer
    programs["ours"] = measure_ours
    if bfloat16_instructions(choose_device(config.device)):
        programs["ours, bfloat16"] = partial(measure_ours, changes={"precision": "bfloat16"})
    else:
        print("ours, bfloat16: left out, there are no instructions for it here")
    rates_in_turn(programs, config)


def relatives(config: BenchmarkConfig) -> None:
    """Training with one flag after the other."""
    options, sizes = dict(OPTIONS), {"num_envs": config.num_envs, "replay_size": config.replay_size}
    for name in CONFIGS:
        options[f"--config {name}"] = values_of_file(name) | sizes
    rates_in_turn({name: partial(measure_ours, changes=changes) for name, changes in options.items()}, config)


def scaling(config: BenchmarkConfig) -> None:
    """Rates by the number of environments; bytes and sampling time by the memory's size."""
    device = choose_device(config.device)
    programs = {}
    for count in ENVIRONMENTS_OF_GPU if device.type == "cuda" else ENVIRONMENTS:
        sizes = {"num_envs": count, "replay_size": config.replay_size // count * count}
        programs[count] = partial(measure_ours, changes=sizes)
    rates = rates_in_turn(programs, config)
    memories = pd.DataFrame([measure_sampling(size, device) for size in MEMORY_SIZES])
    print_table(memories)
    if config.figure:
        save_figure(draw_scaling(rates, memories), config.figure)


def measure_sampling(size: int, device: torch.device) -> dict[str, Any]:
    """Bytes per transition and ms to sample 8 minibatches, of a full memory of `size` transitions."""
    memory, generator = ReplayMemory(size, 16, device), np.random.default_rng(0)
    frames = generator.integers(256, size=(16, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
    nothing = Step(frames, np.zeros(16, np.float32), np.zeros(16, np.bool_), np.zeros(16, np.bool_), [])
    memory.start(0, frames)
    for _ in range(memory.num_rows):
        memory.append(np.zeros(16, np.int64), nothing)
    arrays = sum(value.nbytes for value in vars(memory).values() if isinstance(value, np.ndarray))
    milliseconds = milliseconds_of(lambda: memory.sample(8 * MINIBATCH, generator), memory.device)
    return {"transitions": size, "bytes each": (memory.frames.nbytes + arrays) / size, "ms for 256": milliseconds}


def draw_scaling(rates: pd.DataFrame, memories: pd.DataFrame) -> Figure:
    """Both tables of `scaling`, the rates with their range."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    looks: dict[str, Any] = {"marker": "o", "logx": True, "ylim": 0}
    labels = {"xlabel": "environments side by side", "ylabel": "agent steps per second"}
    rates[["max", "median", "min"]].plot(ax=left, **looks, **labels)
    memories.plot("transitions", "ms for 256", ax=right, ylabel="ms to sample 256 transitions", legend=False, **looks)
    return figure
