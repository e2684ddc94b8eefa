"""The figures drawn from tables on disk: curves of runs (paper, Fig. 2) and normalised scores (Fig. 3)."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from atari import FRAMES_PER_STEP, game_key, paper_scores
from machine.exits import UsageError
from machine.tables import number_in, read_rows

RUNNING_MEAN_GAMES = 100
CURVE_POINTS = 500  # of a mean across runs; more cannot be seen
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILLION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#8C8C8C"


class Curve(NamedTuple):
    """Values against agent steps, both (count,) float64, the steps in rising order."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class RunCurves:
    """What the figures need of a run's files."""

    game: str
    games: Curve  # the raw score of each
    evaluations: Curve  # the mean score of each ...
    spreads: np.ndarray  # ... and its standard deviation
    action_values: Curve  # the mean over held-out states of max Q, at the evaluations that have it


def read_run(path: Path) -> RunCurves:
    """The run in a folder; raises `UsageError` when it is none or has no finished game."""
    if not os.path.isdir(path):
        raise UsageError(f"{path} is not a folder; name the folder of a run, such as runs/...")
    try:
        game = str(json.loads((path / "config.json").read_text())["game"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not the folder of a run: it has no sound config.json") from None
    games = _read_numbers(path / "games.csv", "agent_step", "score")
    if not len(games):
        raise UsageError(f"{path} has no finished game yet; wait for the first")
    file = path / "evaluations.csv"
    columns = ("agent_step", "mean", "standard_deviation", "mean_max_q")
    evaluations = _read_numbers(file, *columns) if file.exists() else np.zeros((0, 4))
    steps, means, spreads, q_values = evaluations.T
    known = np.isfinite(q_values)
    return RunCurves(game, Curve(*games.T), Curve(steps, means), spreads, Curve(steps[known], q_values[known]))


def _read_numbers(path: Path, *columns: str) -> np.ndarray:
    """Columns of a table of a run, (rows, columns) float64; NaN where the mean max Q of before learning is empty."""

    def parse(_line: int, row: dict[str, str]) -> list[float]:
        empty = "mean_max_q"  # the one column that may be
        return [math.nan if (name, row[name]) == (empty, "") else number_in(row, name) for name in columns]

    return np.array(read_rows(path, columns, parse, growing=True)).reshape(-1, len(columns))


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the window - 1 before it, or as many as there are; (count,) float64."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    return (sums[end] - sums[begin]) / (end - begin)


def score_curve(games: Curve) -> Curve:
    """The running mean of 100 games; where several games ended at one agent step, after the last of them."""
    last = np.append(np.diff(games.steps) > 0, True)
    return Curve(games.steps[last], running_mean(games.values, RUNNING_MEAN_GAMES)[last])


def across_runs(curves: list[Curve]) -> tuple[Curve, np.ndarray]:
    """The mean of two or more curves where all of them have values, and half the width of its 95% interval.

    Between its own steps a curve is a straight line. The interval is Student's t for the mean of that many runs.
    Raises `UsageError` when the curves have no stretch of steps in common.
    """
    from scipy import stats  # type: ignore[import-untyped]

    steps = np.unique(np.concatenate([curve.steps for curve in curves]))
    begin, end = max(curve.steps[0] for curve in curves), min(curve.steps[-1] for curve in curves)
    steps = steps[(steps >= begin) & (steps <= end)]
    if not len(steps):
        raise UsageError("the runs have no stretch of agent steps in common; draw them one by one")
    if len(steps) > CURVE_POINTS:
        steps = steps[np.linspace(0, len(steps) - 1, CURVE_POINTS).round().astype(int)]
    values = np.stack([np.interp(steps, *curve) for curve in curves])
    standard_error = values.std(axis=0, ddof=1) / math.sqrt(len(curves))
    return Curve(steps, values.mean(axis=0)), stats.t.ppf(0.975, len(curves) - 1) * standard_error


def draw_curves(runs: list[RunCurves]) -> Figure:
    """Score and average action value over training (paper, Fig. 2), of one run or across runs of one game."""
    paper = paper_scores(runs[0].game)
    has_action_values = any(len(run.action_values.steps) for run in runs)
    figure = Figure(figsize=(10.5, 4.6) if has_action_values else (8.2, 4.8), layout="constrained")
    panels = figure.subplots(1, 2 if has_action_values else 1, sharex=True, squeeze=False)[0]
    name = paper.game if paper else runs[0].game
    figure.suptitle(name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs and its 95% interval")
    if len(runs) == 1:
        _draw_scores_of_run(panels[0], runs[0])
    else:
        _draw_across(panels[0], [score_curve(run.games) for run in runs], BLUE, "mean of 100 games")
        _draw_across(panels[0], [run.evaluations for run in runs], VERMILLION, "evaluation", marker="o")
    panels[0].set_ylabel("score per game")
    if has_action_values:
        _draw_across(panels[1], [run.action_values for run in runs], BLUE, "held-out states", marker="o")
        panels[1].set_ylabel("average action value (max Q)")
    for panel in panels:
        legend = panel.legend(loc="best")
        for handle in legend.legend_handles:
            handle.set_alpha(1)
        panel.set_xlabel("agent steps")
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        frames = panel.secondary_xaxis("top", functions=(lambda x: x * FRAMES_PER_STEP, lambda x: x / FRAMES_PER_STEP))
        frames.set_xlabel("frames")
        frames.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _draw_scores_of_run(panel: Axes, run: RunCurves) -> None:
    # As pixels, in the SVG too: a run has tens of thousands of games.
    panel.plot(*run.games, ".", color=GREY, markersize=3, alpha=0.3, rasterized=True, label="one game")
    panel.plot(*score_curve(run.games), color=BLUE, linewidth=2, label=f"mean of {RUNNING_MEAN_GAMES} games")
    if len(run.evaluations.steps):
        label = "evaluation, mean \N{PLUS-MINUS SIGN} standard deviation"
        style = {"fmt": "o-", "color": VERMILLION, "linewidth": 1.5, "markersize": 5, "capsize": 3}
        panel.errorbar(*run.evaluations, yerr=run.spreads, label=label, **style)  # type: ignore[arg-type]


def _draw_across(panel: Axes, curves: list[Curve], color: str, name: str, marker: str = "") -> None:
    runs = len(curves)
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return
    label = name if len(curves) == runs else f"{name} (only {len(curves)} of the runs)"
    mean, half_width = across_runs(curves) if len(curves) > 1 else (curves[0], None)
    panel.plot(*mean, color=color, linewidth=2, marker=marker, markersize=5, label=label)
    if half_width is None:
        return
    for curve in curves:
        panel.plot(*curve, color=color, linewidth=0.6, alpha=0.25, zorder=1)
    low, high = mean.values - half_width, mean.values + half_width
    band = panel.fill_between(mean.steps, low, high, color=color, alpha=0.2, lw=0)
    # The interval of a few runs can be far wider than the runs lie apart: the axis follows the runs.
    band.remove()
    panel.relim()
    panel.add_collection(band, autolim=False)


@dataclass
class Bars:
    """The bars of one row of a table of scores: normalised scores in percent."""

    label: str
    measured: float
    dqn: float
    best_linear: float


def read_bars(path: Path) -> tuple[list[Bars], list[str]]:
    """The bars of a table that evaluate.py wrote, best first, and the games that the paper does not list.

    Every row has its bars; where a game has several rows, the label names the file or the line. Raises `UsageError`.
    """
    columns = ("game", "mean")

    def parse(line: int, row: dict[str, str]) -> tuple[str, str, float]:
        return Path(row.get("state_dict") or f"line {line}").name, row["game"], number_in(row, "mean")

    rows = read_rows(path, columns, parse)
    keys = [game_key(game) for _, game, _ in rows]
    bars, left_out = [], []
    for name, game, mean in rows:
        paper = paper_scores(game)
        if paper is None:
            left_out.append(game)
            continue
        label = paper.game if keys.count(game_key(game)) == 1 else f"{paper.game} ({name})"
        bars.append(Bars(label, *map(paper.normalised, (mean, paper.dqn_nature, paper.best_linear))))
    if not bars:
        raise UsageError(f"{path} has no score of any of the paper's 49 games; fill it with evaluate.py --csv {path}")
    return sorted(bars, key=lambda bar: -bar.measured), left_out


def draw_scores(bars: list[Bars]) -> Figure:
    """Normalised scores beside the paper's DQN and the best linear learner (paper, Fig. 3), in the given order."""
    figure = Figure(figsize=(9, 1.9 + 0.62 * len(bars)), layout="constrained")
    panel = figure.subplots()
    places = np.arange(len(bars))
    kinds = (
        ("this project", "measured", BLUE),
        ("DQN of the paper", "dqn", ORANGE),
        ("best linear learner", "best_linear", GREY),
    )
    for offset, (name, field, color) in enumerate(kinds, start=-1):
        values = [getattr(bar, field) for bar in bars]
        drawn = panel.barh(places + 0.27 * offset, values, height=0.25, color=color, label=name)
        texts = panel.bar_label(drawn, [f"{value:,.0f}%" for value in values], padding=3, fontsize=9.5)
        for text in texts:
            text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
    panel.axvline(100, color="black", linestyle="--", linewidth=1, zorder=0)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.set_xscale("symlog", linthresh=100, linscale=1.5)  # a few games are at thousands, most below 200
    ticks = [-1000, -100, 0, 25, 50, 75, 100, 300, 1000, 5000, 20000, 100000]
    panel.set_xticks(ticks, [f"{tick:,}%" for tick in ticks], fontsize=10)
    panel.minorticks_off()
    low, high = panel.dataLim.intervalx
    panel.set_xlim(min(3 * low, low - 25) if low < 0 else 0, max(high, 100) * 1.6)  # room for the numbers
    panel.set_yticks(places, [bar.label for bar in bars])
    panel.set_ylim(len(bars) - 0.4, -0.6)
    panel.set_xlabel("normalised score: random play 0%, human tester 100% (linear up to 100%)")
    panel.spines["top"].set_visible(False)
    panel.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3)
    return figure
