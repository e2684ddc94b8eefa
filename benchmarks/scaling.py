"""How speed and memory grow with environments and transitions."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from atari import FRAME_SIZE, Step
from benchmarks.common import (
    MINIBATCH,
    RATE_HEADER,
    BenchmarkConfig,
    alone,
    milliseconds_of,
    rate_columns,
    save_figure,
    spread,
)
from benchmarks.compare import measure_ours
from benchmarks.parts import limit
from replay_memory import ReplayMemory
from runtime.devices import choose_device

MEMORY_SIZES = (10_000, 100_000, 1_000_000)
ENVIRONMENTS, ENVIRONMENTS_OF_GPU = (1, 2, 4, 8, 16, 32, 64), (16, 32, 64, 128, 256)


def measure_sampling(size: int, device: torch.device) -> tuple[float, float]:
    """Bytes per transition and ms to sample 8 minibatches, of a full memory of `size` transitions."""
    memory, generator = ReplayMemory(size, 16, device), np.random.default_rng(0)
    frames = generator.integers(256, size=(16, FRAME_SIZE, FRAME_SIZE), dtype=np.uint8)
    nothing = Step(frames, np.zeros(16, np.float32), np.zeros(16, np.bool_), np.zeros(16, np.bool_), [])
    memory.start(0, frames)
    for _ in range(memory.num_rows):
        memory.append(np.zeros(16, np.int64), nothing)
    arrays = (value.nbytes for value in vars(memory).values() if isinstance(value, np.ndarray))
    milliseconds = milliseconds_of(lambda: memory.sample(8 * MINIBATCH, generator), memory.device)
    return (memory.frames.nbytes + sum(arrays)) / size, milliseconds


def scaling(config: BenchmarkConfig) -> dict[str, Any]:
    """Steps/s against the number of environments; bytes and sampling time against the memory's size."""
    result: dict[str, Any] = {"rounds": config.rounds, "environments": [], "memory": []}
    device = choose_device(config.device)
    print(f"{'environments':>14} {RATE_HEADER}")
    for count in ENVIRONMENTS_OF_GPU if device.type == "cuda" else ENVIRONMENTS:
        sized = replace(config, num_envs=count, replay_size=config.replay_size // count * count)
        row = spread([alone(measure_ours, sized) for _ in range(config.rounds)]) | {"limit": alone(limit, sized)}
        result["environments"].append({"environments": count, **row})
        print(f"{count:14} {rate_columns(row)}")
    print(f"{'memory':>14} {'ms for 256':>14} {'minimum':>9} {'maximum':>9} {'bytes each':>14}")
    for size in MEMORY_SIZES:
        sizes, times = zip(*(measure_sampling(size, device) for _ in range(config.rounds)), strict=True)
        row = spread(list(times))
        result["memory"].append({"transitions": size, **row, "bytes_each": sizes[0]})
        print(f"{size:14,} {row['median']:14.2f} {row['minimum']:9.2f} {row['maximum']:9.2f} {sizes[0]:14.1f}")
    if config.figure:
        save_figure(draw(result), config.figure)
    return result


def draw(result: dict[str, Any]) -> Figure:
    """The rates and times of `scaling`, each with its spread."""
    figure = Figure(figsize=(10, 4.4), layout="constrained")
    figure.suptitle(f"median, minimum and maximum; measurements of each point: {result['rounds']}", fontsize=11)
    left, right = figure.subplots(1, 2)
    for panel, part, color in ((left, "environments", "#0072B2"), (right, "memory", "#D55E00")):
        sizes, medians, low, high = np.array([list(row.values())[:4] for row in result[part]]).T
        panel.errorbar(sizes, medians, yerr=[medians - low, high - medians], fmt="o-", capsize=4, color=color)
        panel.set_xscale("log")
        panel.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
        panel.minorticks_off()
        panel.set_ylim(0, 1.1 * high.max())
    left.set(title="Speed of training", xlabel="environments side by side", ylabel="agent steps per second")
    right.set(title="Time to sample 256 transitions", xlabel="transitions in the memory", ylabel="milliseconds")
    return figure
