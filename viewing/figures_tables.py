"""The figures drawn from tables on disk: curves of runs (paper, Fig. 2) and normalised scores (Fig. 3)."""

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, Formatter, LogLocator

from atari import FRAMES_PER_STEP, LONG_MINUTES, PAPER_MINUTES, paper_scores
from runtime.exits import UsageError
from runtime.tables import number_in, read_rows

RUNNING_MEAN_GAMES = 100
CURVE_POINTS = 500  # of a mean across runs; more show no more
FEW_POINTS = 60  # of the action value still have a mark each
PANELS = (
    *("score per game", "average action value (max Q)", "agent steps per game"),
    *("loss per transition", "mean Q-value", "standard deviation of Q-values"),
)
NAME_CHARACTERS = 36  # of a long name are drawn, its last
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILLION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#8C8C8C"
LOGGED = (  # panel, column of training.csv, colour, name of the line
    ("average action value (max Q)", "mean_q_held_out", BLUE, "held-out states"),
    ("loss per transition", "loss", BLUE, "minibatches"),
    ("mean Q-value", "mean_q", BLUE, "minibatches, of the actions taken"),
    ("standard deviation of Q-values", "deviation_q", BLUE, "minibatches, of the actions taken"),
    ("standard deviation of Q-values", "deviation_q_held_out", VERMILLION, "held-out states, of max Q"),
)
DRAWN = [column for _, column, _, _ in LOGGED]


class Curve(NamedTuple):
    """Values against agent steps, both (count,) float64, the steps in rising order."""

    steps: np.ndarray
    values: np.ndarray


@dataclass
class RunCurves:
    """What the figures need of a run's files."""

    game: str
    frames_per_step: int
    games: Curve  # the raw score of each
    lengths: Curve  # of each, in agent steps
    evaluations: Curve  # the mean score of each ...
    spreads: np.ndarray  # ... and its standard deviation
    training: dict[str, Curve]  # the columns of training.csv, each where it is known


def read_run(path: Path) -> RunCurves:
    """The run in a folder; raises `UsageError` when it is none, or has neither a finished game nor an evaluation."""
    if not os.path.isdir(path):
        raise UsageError(f"{path} is not a folder; name the folder of a run, such as runs/...")
    try:
        config = json.loads((path / "config.json").read_text())
        game, frames_per_step = str(config["game"]), int(config.get("frames_per_step", FRAMES_PER_STEP))
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not the folder of a run: it has no sound config.json") from None
    games = _read_numbers(path / "games.csv", "agent_step", "score", "length_steps")
    evaluations = read_evaluations(path)
    if not len(games) and not len(evaluations):
        raise UsageError(f"{path} has no finished game yet; wait for the first")
    steps, means, spreads = evaluations.T
    training = _read_numbers(path / "training.csv", "agent_step", *DRAWN)
    known = np.isfinite(training)
    curves = {name: Curve(*training[known[:, i]][:, [0, i]].T) for i, name in enumerate(DRAWN, start=1)}
    ended, scores, lengths = games.T
    return RunCurves(
        game, frames_per_step, Curve(ended, scores), Curve(ended, lengths), Curve(steps, means), spreads, curves
    )


def read_evaluations(path: Path) -> np.ndarray:
    """Agent step, mean and standard deviation of a run's evaluations, (count, 3) float64."""
    return _read_numbers(path / "evaluations.csv", "agent_step", "mean", "standard_deviation")


def _read_numbers(path: Path, *columns: str) -> np.ndarray:
    """Columns of a table of a run, (rows, columns) float64; no row where there is no such table yet.

    NaN where what learning brings is empty before it.
    """

    def parse(_line: int, row: dict[str, str]) -> list[float]:
        return [math.nan if name in DRAWN and not row[name] else number_in(row, name) for name in columns]

    rows = read_rows(path, columns, parse, growing=True) if path.exists() else []
    return np.array(rows).reshape(-1, len(columns))


def shortened(name: str) -> str:
    """A name, or the end of a long one."""
    return name if len(name) <= NAME_CHARACTERS else "\N{HORIZONTAL ELLIPSIS}" + name[-NAME_CHARACTERS:]


def running_mean(values: np.ndarray, window: int) -> np.ndarray:
    """The mean of each value and the window - 1 before it, or as many as there are; (count,) float64."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    end = np.arange(1, len(values) + 1)
    begin = np.maximum(end - window, 0)
    return (sums[end] - sums[begin]) / (end - begin)


def score_curve(games: Curve) -> Curve:
    """The running mean of 100 games; where several games ended at one agent step, after the last of them."""
    last = np.append(np.diff(games.steps) > 0, True)[: len(games.steps)]
    return Curve(games.steps[last], running_mean(games.values, RUNNING_MEAN_GAMES)[last])


def running_mean_name(runs: list[RunCurves]) -> str:
    """What `score_curve` is called: a mean of 100 games only where every run has as many."""
    numbers = {min(len(run.games.steps), RUNNING_MEAN_GAMES) for run in runs if len(run.games.steps)} or {0}
    if numbers == {RUNNING_MEAN_GAMES}:
        return f"mean of {RUNNING_MEAN_GAMES} games"
    return f"mean of the games so far ({' to '.join(map(str, sorted({min(numbers), max(numbers)})))})"


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
    figure = Figure(figsize=(14, 8), layout="constrained")
    grid = figure.subplots(2, 3, sharex=True)
    panels = dict(zip(PANELS, grid.flatten(), strict=True))
    name = paper.game if paper else shortened(runs[0].game)
    figure.suptitle(name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs and its 95% interval")
    scores, mean_name = panels["score per game"], running_mean_name(runs)
    if len(runs) == 1:
        _draw_scores_of_run(scores, runs[0])
    else:
        _draw_across(scores, [score_curve(run.games) for run in runs], BLUE, mean_name)
        _draw_across(scores, [run.evaluations for run in runs], VERMILLION, "evaluation", marker="o")
    _draw_across(panels["agent steps per game"], [score_curve(run.lengths) for run in runs], BLUE, mean_name)
    for label, column, color, name in LOGGED:
        curves = [run.training[column] for run in runs]
        few = column == "mean_q_held_out" and max(len(curve.steps) for curve in curves) <= FEW_POINTS
        _draw_across(panels[label], curves, color, name, marker="o" if few else "")
    for label, panel in panels.items():
        panel.set_ylabel(label)
        if panel.get_legend_handles_labels()[0]:  # a young run knows only some of its values
            for handle in panel.legend(loc="best").legend_handles:
                handle.set_alpha(1)
        panel.ticklabel_format(axis="y", style="plain", useOffset=False)  # an offset would stand among the frames
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    _scale_logarithmically(panels["standard deviation of Q-values"])
    for panel in grid[-1]:
        panel.set_xlabel("agent steps")
    if len(rates := {run.frames_per_step for run in runs}) == 1:  # else there is no one axis of frames
        (frames_per_step,) = rates
        for panel in grid[0]:
            _draw_frames_axis(panel, frames_per_step)
    return figure


def _scale_logarithmically(panel: Axes) -> None:
    panel.set_yscale("log")
    # Matplotlib's own labels, of large and small ticks, need its mathematics, which is off.
    panel.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.yaxis.set_minor_formatter("")


def _draw_frames_axis(panel: Axes, frames_per_step: int) -> None:
    frames = panel.secondary_xaxis(
        "top", functions=(lambda x: np.multiply(x, frames_per_step), lambda x: np.divide(x, frames_per_step))
    )
    frames.set_xlabel("frames")
    frames.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_scores_of_run(panel: Axes, run: RunCurves) -> None:
    if len(run.games.steps):  # as pixels, in the SVG too: a run has tens of thousands of them
        panel.plot(*run.games, ".", color=GREY, markersize=3, alpha=0.3, rasterized=True, label="one game")
    _draw_across(panel, [score_curve(run.games)], BLUE, running_mean_name([run]))
    if len(run.evaluations.steps):
        label = "evaluation, mean \N{PLUS-MINUS SIGN} standard deviation"
        style = {"fmt": "o-", "color": VERMILLION, "linewidth": 1.5, "markersize": 5, "capsize": 3}
        panel.errorbar(*run.evaluations, yerr=run.spreads, label=label, **style)  # type: ignore[arg-type]


def _draw_across(panel: Axes, curves: list[Curve], color: str, name: str, marker: str = "") -> None:
    runs = len(curves)
    curves = [curve for curve in curves if len(curve.steps)]
    if not curves:
        return
    label = name if len(curves) == runs else f"{name} ({len(curves)} of {runs} runs)"
    mean, half_width = across_runs(curves) if len(curves) > 1 else (curves[0], None)
    marker = marker if len(mean.steps) > 1 else "o"  # a line through one point is invisible
    panel.plot(*mean, color=color, linewidth=2, marker=marker, markersize=5, label=label)
    if half_width is None:
        return
    for curve in curves:
        panel.plot(*curve, color=color, linewidth=0.6, alpha=0.25, zorder=1)
    # The interval of a few runs can be far wider than the runs lie apart: the axis follows the runs.
    limits = panel.dataLim.frozen()
    low, high = mean.values - half_width, mean.values + half_width
    panel.fill_between(mean.steps, low, high, color=color, alpha=0.2, linewidth=0 if len(mean.steps) > 1 else 2)
    panel.dataLim.set(limits)


class Bar(NamedTuple):
    """A row's network, or line, its normalised score in percent, and where the table has one the score's interval."""

    name: str
    score: float
    low: float
    high: float


@dataclass
class Bars:
    """The bars of one game in a table of scores: normalised scores in percent.

    papers: of the paper's DQN and the best linear learner; none where games had another limit than theirs.
    """

    game: str
    measured: list[Bar]  # best first
    papers: tuple[float, ...]


def read_bars(path: Path) -> tuple[list[Bars], list[str]]:
    """The bars of a table that evaluate.py wrote, best game first, and what is left out, with the reason.

    Every row that compares with the others and with the human has its bar, which bears the end of its network's path,
    or the line. Raises `UsageError`.
    """

    def parse(line: int, row: dict[str, str]) -> dict[str, Any]:
        network, mean = Path(row.get("state_dict") or f"line {line}"), number_in(row, "mean")
        ends = (number_in(row, name) if row.get(name) else mean for name in ("interval_low", "interval_high"))
        return row | {"name": "/".join(network.parts[-2:]), "mean": (mean, *ends)}

    rows = preferred(read_rows(path, ("game", "mean"), parse))
    if rows and all("network" in row for row in rows):
        print(networks_of(rows))
    # One picture has one limit of minutes: the paper's, unless all rows have the other.
    limits = (PAPER_MINUTES, LONG_MINUTES)
    minutes = next((each for each in limits if not all(why_left_out(row, each) for row in rows)), PAPER_MINUTES)
    left_out = [f"{row['game']} ({why})" for row in rows if (why := why_left_out(row, minutes))]
    known = [
        (paper, Bar(row["name"], *(paper.normalised(score, minutes) for score in row["mean"])))
        for row in rows
        if (paper := paper_scores(row["game"])) and not why_left_out(row, minutes)
    ]
    if not known:
        what = f"no score that compares with the paper's: {', '.join(left_out)}" if left_out else "no row"
        raise UsageError(f"{path} has {what}; fill it with evaluate.py --csv {path}")
    games: dict[str, Bars] = {}
    for paper, bar in sorted(known, key=lambda row: -row[1].score):
        papers = (paper.dqn_nature, paper.best_linear) if minutes == PAPER_MINUTES else ()
        bars = Bars(paper.game, [], tuple(map(paper.normalised, papers)))
        games.setdefault(paper.game, bars).measured.append(bar)
    return list(games.values()), left_out


def why_left_out(row: Mapping[str, Any], minutes: float = PAPER_MINUTES) -> str:
    """Why a row of a table of evaluate.py is not normalised by the human of so many minutes; empty where it is.

    A table that does not say how its games were played is taken for one of the paper's protocol.
    """
    if other := row.get("other_condition"):
        return str(other)
    of_row = float(row.get("minutes") or PAPER_MINUTES)
    if of_row != minutes:
        return f"{of_row:g} minutes"
    return "" if paper_scores(row["game"]) else "not among the paper's 49 games"


def preferred(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each run in a table of sweep.py the row of its best network, else of its newest; of other tables every row."""
    best = {Path(row["state_dict"]).parent for row in rows if row.get("network") == "best"}
    return [row for row in rows if row.get("network") != "model" or Path(row["state_dict"]).parent not in best]


def networks_of(rows: list[dict[str, Any]]) -> str:
    """Which network of each run `preferred` took, as a sentence."""
    newest = [Path(row["state_dict"]).parent.name for row in rows if row["network"] == "model"]
    best = f"best.pt of {len(rows) - len(newest)} runs"
    return f"{best}, model.pt of {', '.join(newest)}, never evaluated in training" if newest else best


def draw_scores(games: list[Bars]) -> Figure:
    """Normalised scores next to the paper's DQN and the best linear learner (paper, Fig. 3), in the given order."""
    gap = 0.8  # between games; a bar takes 1
    figure = Figure(
        figsize=(9, 2 + 0.17 * sum(len(game.measured) + len(game.papers) + gap for game in games)), layout="constrained"
    )
    panel = figure.subplots()
    style: Any = {"va": "center", "fontsize": 9.5, "bbox": {"facecolor": "white", "edgecolor": "none", "pad": 0.5}}
    middles, place = [], 0.0
    for game in games:
        middles.append(place + (len(game.measured) + len(game.papers) - 1) / 2)
        papers = [
            (color, Bar("", score, score, score)) for color, score in zip((ORANGE, GREY), game.papers, strict=False)
        ]
        for color, bar in (*((BLUE, bar) for bar in game.measured), *papers):
            panel.barh(place, bar.score, height=0.92, color=color)
            if bar.low < bar.high:
                panel.plot((bar.low, bar.high), (place, place), color="black", linewidth=1)
            name = shortened(bar.name) if len(game.measured) > 1 else ""
            text = f"{Formatter.fix_minus(f'{bar.score:z,.0f}%')}  {name}".rstrip()
            # To the right of the bar or of 0: to the left stand the games.
            panel.annotate(text, (max(bar.high, 0), place), (4, 0), textcoords="offset points", **style)
            place += 1
        place += gap
    has_papers = any(game.papers for game in games)
    _draw_percent_axis(panel, "human" if has_papers else f"human of {LONG_MINUTES} minutes")
    panel.set_yticks(middles, [game.game for game in games])
    panel.set_ylim(place - 0.1 - gap, -0.9)
    panel.spines["top"].set_visible(False)
    kinds = {BLUE: "this project", ORANGE: "DQN of the paper", GREY: "best linear learner"}
    handles = [Patch(color=color, label=kind) for color, kind in kinds.items() if has_papers or color == BLUE]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure


def _draw_percent_axis(panel: Axes, human: str) -> None:
    """The axis of normalised scores, which says where it changes from linear to logarithmic."""
    low, high = panel.dataLim.intervalx
    low, high = min(1.2 * low, low - 5) if low < 0 else 0, max(high, 100) * 1.6  # room for the numbers
    panel.set_xscale("symlog", linthresh=100, linscale=1.5)  # a few games are at thousands, most below 200
    ticks = [0, 25, 50, 75, 100, 300, 1000, 5000, 20000, 100000]
    ticks += [-tick for tick in ticks if tick >= 100 and tick != 300]
    panel.set_xticks(ticks, [Formatter.fix_minus(f"{tick:,.0f}%") for tick in ticks], fontsize=10)
    panel.minorticks_off()
    panel.set_xlim(low, high)
    panel.axvline(0, color="black", linewidth=0.8)
    style: Any = {"transform": panel.get_xaxis_transform(), "va": "bottom", "fontsize": 9.5}
    for change, left in ((-100, "logarithmic"), (100, "linear")):
        if low < change:
            panel.axvline(change, color="black", linestyle="--", linewidth=1, zorder=0)
            panel.text(change, 1, f"{left} \N{LEFTWARDS ARROW} ", ha="right", **style)
    panel.text(100, 1, " \N{RIGHTWARDS ARROW} logarithmic", ha="left", **style)
    panel.set_xlabel(f"normalised score: random agent 0%, {human} 100%")
