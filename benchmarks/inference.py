"""Milliseconds, parameters and multiply-accumulates of each Q-network: by batch, by history frames, by resolution."""

import itertools

import pandas as pd
import torch
from matplotlib.figure import Figure
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

from atari import FRAME_SIZE, HISTORY_FRAMES
from benchmarks.common import GAME, MINIBATCH, BenchmarkConfig, milliseconds_of, print_table, save_figure
from model import NETWORKS, QNetwork
from relatives.networks import build_network
from runtime.architecture import Architecture
from runtime.devices import choose_device, set_up_torch

NUM_ACTIONS = 4  # Breakout's
QUANTITIES = ("milliseconds", "parameters", "macs")
POINT_SECONDS = 0.2  # of each point, or one call after one that warms up
BASE = {"batch": MINIBATCH, "history": HISTORY_FRAMES, "pixels": FRAME_SIZE}  # what the points vary around
VARIED = {
    "batch": (1, 4, 16, 32, 64, 256, 1024),
    "history": (1, 2, 4, 8, 16, 32),
    "pixels": (84, 128, 168, 256, 512),
}
POINTS = [BASE] + [BASE | {name: each} for name, values in VARIED.items() for each in values if each != BASE[name]]
ARCHITECTURES = [
    Architecture(network, dueling, separable)
    for network, dueling, separable in itertools.product(NETWORKS, (False, True), (False, True))
]


def network_and_states(layers: Architecture, point: dict[str, int]) -> tuple[QNetwork, torch.Tensor]:
    """An untrained network and a batch of random states, on torch's default device."""
    frames, size = point["history"], point["pixels"]
    network = build_network(GAME, NUM_ACTIONS, layers, history_frames=frames, frame_size=size)
    return network.eval(), torch.randint(256, (point["batch"], frames, size, size), dtype=torch.uint8)


def count(layers: Architecture, point: dict[str, int]) -> dict[str, int]:
    """Parameters, and multiply-accumulates of one state forward; without the memory or the time of either."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network, state = network_and_states(layers, point | {"batch": 1})
        network(state)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return {"parameters": parameters, "macs": counter.get_total_flops() // 2}


def inference(config: BenchmarkConfig) -> None:
    """Measure and count every network at every point."""
    set_up_torch(deterministic=False)
    device, rows = choose_device(config.device), []
    for layers, point in tqdm([*itertools.product(ARCHITECTURES, POINTS)], leave=False, disable=None):
        with device, torch.no_grad():
            network, states = network_and_states(layers, point)
            milliseconds = milliseconds_of(lambda: network(states), device, POINT_SECONDS)  # noqa: B023
        name = f"{layers.network}{' dueling' * layers.dueling}{' separable' * layers.separable}"
        rows.append({"network": name, **point, "milliseconds": milliseconds, **count(layers, point)})
    table = pd.DataFrame(rows)
    print_table(table)
    if config.figure:
        save_figure(draw_inference(table), config.figure)


def draw_inference(table: pd.DataFrame) -> Figure:
    """The table of `inference`: a column for what is varied, a row for what it changes, a line for each network."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    figure.suptitle(f"Q-networks, one forward pass; what is not varied: {BASE}")
    panels = figure.subplots(3, 3, sharex="col", sharey="row")
    for (row, quantity), (column, varied) in itertools.product(enumerate(QUANTITIES), enumerate(VARIED)):
        fixed = pd.Series({name: value for name, value in BASE.items() if name != varied})
        line = table[(table[fixed.index] == fixed).all(axis=1)].pivot(index=varied, columns="network", values=quantity)
        line.plot(ax=panels[row, column], marker="o", loglog=True, legend=row == column == 0, ylabel=quantity)
    return figure
