"""Milliseconds, parameters and multiply-accumulates of each Q-network: by batch, by history frames, by resolution."""

import itertools
from dataclasses import asdict
from typing import Any, NamedTuple

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter
from torch.utils.flop_counter import FlopCounterMode

from atari import FRAME_SIZE, HISTORY_FRAMES
from benchmarks.common import GAME, MINIBATCH, BenchmarkConfig, alone, milliseconds_of, save_figure
from model import NETWORKS, QNetwork
from relatives.networks import build_network
from runtime.architecture import Architecture
from runtime.devices import choose_device, set_up_torch
from viewing.figures_tables import BLUE, ORANGE, VERMILLION

NUM_ACTIONS = 4  # Breakout's
POINT_SECONDS = 0.2  # of each point, or one call after one that warms up


class Point(NamedTuple):
    """What a network is given; the defaults are what the others vary around."""

    batch: int = MINIBATCH
    history_frames: int = HISTORY_FRAMES
    frame_size: int = FRAME_SIZE


VARIED: dict[str, tuple[int, ...]] = {
    "batch": (1, 4, 16, 32, 64, 256, 1024),
    "history_frames": (1, 2, 4, 8, 16, 32),
    "frame_size": (84, 128, 168, 256, 512),
}
POINTS = dict.fromkeys(Point()._replace(**{name: value}) for name, values in VARIED.items() for value in values)
SKY_BLUE = "#56B4E9"
COLORS = ((False, False, BLUE), (True, False, VERMILLION), (False, True, SKY_BLUE), (True, True, ORANGE))
LINES = {  # a mark for the network; dueling is reddish, separable light
    Architecture(network, dueling, separable): (mark, color)
    for network, mark in zip(NETWORKS, ("o-", "s--"), strict=True)
    for dueling, separable, color in COLORS
}


def network_and_states(layers: Architecture, point: Point) -> tuple[QNetwork, torch.Tensor]:
    """An untrained network and a batch of random states, on torch's default device."""
    batch, frames, size = point
    network = build_network(GAME, NUM_ACTIONS, layers, history_frames=frames, frame_size=size)
    return network.eval(), torch.randint(256, (batch, frames, size, size), dtype=torch.uint8)


def count(layers: Architecture, point: Point) -> tuple[int, int]:
    """Parameters, and multiply-accumulates of one state forward; without the memory or the time of either."""
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        network, state = network_and_states(layers, point._replace(batch=1))
        network(state)
    return sum(parameter.numel() for parameter in network.parameters()), counter.get_total_flops() // 2


def measure(layers: Architecture, points: list[Point], config: BenchmarkConfig) -> list[float]:
    """The milliseconds of one network at each point: of a batch forward."""
    set_up_torch(deterministic=False)
    device, times = choose_device(config.device), []
    for point in points:
        with device, torch.no_grad():
            network, states = network_and_states(layers, point)
            times.append(milliseconds_of(lambda: network(states), device, POINT_SECONDS))  # noqa: B023
    return times


def name_of(layers: Architecture) -> str:
    """The network and its variants, as a user types them."""
    return " ".join([layers.network, *(["dueling"] * layers.dueling), *(["separable"] * layers.separable)])


def inference(config: BenchmarkConfig) -> dict[str, Any]:
    """Count and measure every network in turn, each in a process of its own, and print the table."""
    rows: list[dict[str, Any]] = []
    print(f"{'network':26} {'batch':>5} {'frames':>6} {'pixels':>6} {'ms':>12} {'parameters':>12} {'MACs':>12}")
    for layers in LINES:
        for point, milliseconds in zip(POINTS, alone(measure, layers, [*POINTS], config), strict=True):
            parameters, macs = count(layers, point)
            numbers = {"milliseconds": milliseconds, "parameters": parameters, "macs": macs}
            rows.append(asdict(layers) | point._asdict() | numbers)
            where = f"{name_of(layers):26} {point.batch:5} {point.history_frames:6} {point.frame_size:6}"
            print(f"{where} {milliseconds:12.3f} {parameters:12,} {macs:12,}")
    if config.figure:
        save_figure(draw(rows), config.figure)
    return {"inference": rows}


AXES = {"batch": "states in a batch", "history_frames": "frames in a state", "frame_size": "pixels along each side"}
QUANTITIES = {
    "milliseconds": "milliseconds per batch",
    "macs": "multiply-accumulates per state",
    "parameters": "parameters",
}


def draw(rows: list[dict[str, Any]]) -> Figure:
    """The rows of `inference`: a column for what is varied, a row for what it changes, a line for each network."""
    figure = Figure(figsize=(13, 11), layout="constrained")
    around = f"{MINIBATCH} states of {HISTORY_FRAMES} frames of {FRAME_SIZE}\N{MULTIPLICATION SIGN}{FRAME_SIZE}"
    figure.suptitle(f"Q-networks, one forward pass; what is not varied: {around}")
    panels = figure.subplots(3, 3, sharey="row")
    for (i, quantity), (j, varied) in itertools.product(enumerate(QUANTITIES), enumerate(AXES)):
        if quantity == "milliseconds" or varied != "batch":  # on which nothing else depends
            _draw_lines(panels[i, j], rows, varied, quantity)
    for panel, quantity in zip((panels[0, 0], panels[1, 1], panels[2, 1]), QUANTITIES, strict=True):
        panel.set_ylabel(QUANTITIES[quantity])
        panel.tick_params(labelleft=True)
    for panel in panels[1:, 0]:
        panel.set_axis_off()
    panels[1, 0].legend(*panels[0, 0].get_legend_handles_labels(), loc="upper left", fontsize=12)
    return figure


def _draw_lines(panel: Axes, rows: list[dict[str, Any]], varied: str, quantity: str) -> None:
    for layers, (mark, color) in LINES.items():
        fixed = {name: value for name, value in (asdict(layers) | Point()._asdict()).items() if name != varied}
        line = [(row[varied], row[quantity]) for row in rows if fixed.items() <= row.items()]
        width = 1.5 if layers.separable else 3.5  # a line shows beneath the one that hides it
        style: Any = {"color": color, "linewidth": width, "markersize": 3 + width}
        panel.plot(*zip(*sorted(line), strict=True), mark, label=name_of(layers), **style)
    panel.set(xscale="log", yscale="log", xlabel=AXES[varied])
    panel.set_xticks(VARIED[varied], [str(value) for value in VARIED[varied]])
    panel.xaxis.minorticks_off()
    panel.yaxis.set_major_formatter(EngFormatter(sep=""))
    panel.grid(alpha=0.3)
