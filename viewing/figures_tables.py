"""The figures drawn from tables on disk: curves of runs (paper, Fig. 2) and normalised scores (Fig. 3)."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter
from scipy import stats  # type: ignore[import-untyped]

from atari import FRAMES_PER_STEP, PAPER_MINUTES, paper_scores
from runtime.exits import UsageError

# A curve is a pd.Series: values whose index holds the agent steps, in rising order.

RUNNING_MEAN_GAMES = 100
CURVE_POINTS = 500  # of a mean across runs; more show no more
NAME_CHARACTERS = 36  # of a long name are drawn, its last
# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, VERMILLION, ORANGE, GREY = "#0072B2", "#D55E00", "#E69F00", "#8C8C8C"
PANELS = {  # name of each: its lines, as curve, colour, name
    "score per game": (("score", BLUE, "mean of up to 100 games"), ("evaluation", VERMILLION, "evaluation")),
    "average action value (max Q)": (("mean_q_held_out", BLUE, "held-out states"),),
    "agent steps per game": (("length_steps", BLUE, "mean of up to 100 games"),),
    "loss per transition": (("loss", BLUE, "minibatches"),),
    "mean Q-value": (("mean_q", BLUE, "minibatches, of the actions taken"),),
    "standard deviation of Q-values": (
        ("deviation_q", BLUE, "minibatches, of the actions taken"),
        ("deviation_q_held_out", VERMILLION, "held-out states, of max Q"),
    ),
}
LOGGED = ("loss", "mean_q", "deviation_q", "mean_q_held_out", "deviation_q_held_out")  # columns of training.csv
LARGEST = 1e100  # of a number in a table: the axes of a picture still have room for it


def read_table(
    path: Path,
    numbers: Sequence[str],
    texts: Sequence[str] = (),
    optional: Sequence[str] = (),
    *,
    growing: bool = False,
) -> pd.DataFrame:
    """A CSV file with at least these columns: `numbers` and `optional` as float64, all others as text.

    optional: where such a column or its value is missing, it is NaN. growing: the file of a run that may be written at
    this moment; an unfinished last line is left out. Raises `UsageError`.
    """
    try:
        content = path.read_text(encoding="utf-8", errors="replace")
        if growing:
            content = content[: content.rfind("\n") + 1]
        table = pd.read_csv(io.StringIO(content), dtype=str, keep_default_na=False)
    except OSError as error:
        raise UsageError(f"cannot read {path}: {error.strerror}") from None
    except pd.errors.EmptyDataError:
        table = pd.DataFrame(columns=[*numbers, *texts] if growing else [])
    except pd.errors.ParserError as error:
        raise UsageError(f"{path} is broken: {error}; correct or remove the line") from None
    if missing := [column for column in (*numbers, *texts) if column not in table]:
        raise UsageError(f"{path} has no column {', '.join(missing)}; name a table that has it")
    for column in (*numbers, *optional):
        given = table[column] if column in table else pd.Series("", table.index)
        table[column] = pd.to_numeric(given, errors="coerce").astype(float)
        sound = (table[column].abs() < LARGEST) | ((given == "") & (column in optional))
        if not sound.all():
            row = sound.argmin()
            what = f"{column} is '{given.iloc[row]}', not a number that can be drawn"
            raise UsageError(f"{path}, line {row + 2}: {what}; correct or remove the line")
    return table


def read_evaluations(run: Path) -> pd.DataFrame:
    """Mean and standard deviation of a run's evaluations by agent step; no row where there is none yet."""
    return _read_by_step(run / "evaluations.csv", ("mean", "standard_deviation"))


def _read_by_step(path: Path, numbers: Sequence[str], optional: Sequence[str] = ()) -> pd.DataFrame:
    if not path.exists():
        return pd.DataFrame(columns=[*numbers, *optional], dtype=float)
    return read_table(path, ("agent_step", *numbers), optional=optional, growing=True).set_index("agent_step")


@dataclass
class RunCurves:
    """What the figures need of a run's files: each game's score, the evaluations, and the curves of `PANELS`."""

    game: str
    frames_per_step: int
    scores: pd.Series
    evaluations: pd.DataFrame
    curves: dict[str, pd.Series]


def read_run(path: Path) -> RunCurves:
    """The run in a folder; raises `UsageError` when it is none, or has neither a finished game nor an evaluation."""
    if not path.is_dir():
        raise UsageError(f"{path} is not a folder; name the folder of a run, such as runs/...")
    try:
        config = json.loads((path / "config.json").read_text())
        game, frames_per_step = str(config["game"]), int(config.get("frames_per_step", FRAMES_PER_STEP))
    except (OSError, ValueError, KeyError, TypeError):
        raise UsageError(f"{path} is not the folder of a run: it has no valid config.json") from None
    games = _read_by_step(path / "games.csv", ("score", "length_steps"))
    evaluations = read_evaluations(path)
    if games.empty and evaluations.empty:
        raise UsageError(f"{path} has no finished game yet; wait for the first")
    training = _read_by_step(path / "training.csv", (), LOGGED)
    curves = {name: running_mean(games[name]) for name in ("score", "length_steps")}
    curves |= {name: training[name].dropna() for name in LOGGED}
    return RunCurves(game, frames_per_step, games["score"], evaluations, curves | {"evaluation": evaluations["mean"]})


def running_mean(games: pd.Series) -> pd.Series:
    """The mean of each game and the 99 before it; where several ended at one agent step, after the last of them."""
    return games.rolling(RUNNING_MEAN_GAMES, min_periods=1).mean().groupby(level=0).last()


def across_runs(curves: list[pd.Series]) -> tuple[pd.Series, pd.Series]:
    """The mean of two or more curves where all of them have values, and half the width of its 95% interval.

    Between its own steps a curve is a straight line. The interval is Student's t for the mean of that many runs.
    Raises `UsageError` when the curves have no stretch of steps in common.
    """
    joined = pd.concat(curves, axis=1).sort_index().interpolate(method="index", limit_area="inside").dropna()
    if joined.empty:
        raise UsageError("the runs have no stretch of agent steps in common; draw them one by one")
    if len(joined) > CURVE_POINTS:
        joined = joined.iloc[np.linspace(0, len(joined) - 1, CURVE_POINTS).round().astype(int)]
    return joined.mean(axis=1), stats.t.ppf(0.975, len(curves) - 1) * joined.sem(axis=1)


def shortened(name: str) -> str:
    """A name, or the end of a long one."""
    return name if len(name) <= NAME_CHARACTERS else "\N{HORIZONTAL ELLIPSIS}" + name[-NAME_CHARACTERS:]


def draw_curves(runs: list[RunCurves]) -> Figure:
    """Score and average action value over training (paper, Fig. 2), of one run or across runs of one game."""
    paper = paper_scores(runs[0].game)
    name = paper.game if paper else shortened(runs[0].game)
    figure = Figure(figsize=(14, 8), layout="constrained")
    figure.suptitle(name if len(runs) == 1 else f"{name}: mean of {len(runs)} runs and its 95% interval")
    grid = figure.subplots(2, 3, sharex=True)
    if len(runs) == 1:
        _draw_games(grid[0, 0], runs[0])
    for panel, (label, lines) in zip(grid.flat, PANELS.items(), strict=True):
        for curve, color, line in lines:
            _draw_line(panel, [run.curves[curve] for run in runs], color, line)
        panel.set_ylabel(label)
        panel.ticklabel_format(axis="y", style="plain", useOffset=False)  # an offset would stand among the frames
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        if panel.get_legend_handles_labels()[0]:  # a young run knows only some of its values
            panel.legend(loc="best")
    for panel in grid[1]:
        panel.set_xlabel("agent steps")
    rate = runs[0].frames_per_step
    if all(run.frames_per_step == rate for run in runs):  # else there is no one axis of frames
        for panel in grid[0]:
            frames = panel.secondary_xaxis("top", functions=(lambda steps: steps * rate, lambda frames: frames / rate))
            frames.set_xlabel("frames")
            frames.xaxis.set_major_formatter(EngFormatter(sep=""))
    return figure


def _draw_games(panel: Axes, run: RunCurves) -> None:
    if len(run.scores):  # as pixels, in the SVG too: a run has tens of thousands of them
        panel.plot(run.scores, ".", color=GREY, markersize=3, alpha=0.3, rasterized=True, label="one game")
    if len(run.evaluations):
        steps, means, spreads = run.evaluations.index, run.evaluations["mean"], run.evaluations["standard_deviation"]
        panel.errorbar(steps, means, spreads, fmt="none", ecolor=VERMILLION, capsize=3, label="its standard deviation")


def _draw_line(panel: Axes, curves: list[pd.Series], color: str, name: str) -> None:
    """A line of one run, or the mean of several with its interval."""
    known = [curve for curve in curves if len(curve)]
    if not known:
        return
    label = name if len(known) == len(curves) else f"{name} ({len(known)} of {len(curves)} runs)"
    mean, half_width = across_runs(known) if len(known) > 1 else (known[0], None)
    marker = "o" if name == "evaluation" or len(mean) == 1 else ""  # a line through one point is invisible
    panel.plot(mean, color=color, linewidth=2, marker=marker, markersize=5, label=label)
    if half_width is not None:
        for curve in known:
            panel.plot(curve, color=color, linewidth=0.6, alpha=0.25, zorder=1)
        # The interval of a few runs can be far wider than the runs lie apart: the axis follows the runs.
        limits = panel.dataLim.frozen()
        panel.fill_between(mean.index, mean - half_width, mean + half_width, color=color, alpha=0.2, linewidth=0)
        panel.dataLim.set(limits)


class Bar(NamedTuple):
    """A row's network, its normalised score in percent, and where the table has one the score's interval."""

    name: str
    score: float
    low: float
    high: float


class Bars(NamedTuple):
    """The bars of one game, in percent: those of a table, and those of the paper's DQN and best linear learner."""

    game: str
    measured: list[Bar]  # best first
    papers: tuple[float, float]


def read_bars(path: Path) -> tuple[list[Bars], list[str]]:
    """The bars of a table that evaluate.py wrote, best game first, and what is left out, with the reason.

    Every row that compares with the paper's scores has its bar. Raises `UsageError`.
    """
    rows = preferred(read_table(path, ("mean",), ("game",), ("minutes", "interval_low", "interval_high")))
    left_out = [f"{row['game']} ({why})" for row in rows if (why := why_left_out(row))]
    games: dict[str, Bars] = {}
    for row in rows:
        if (paper := paper_scores(row["game"])) and not why_left_out(row):
            name = "/".join(Path(row.get("state_dict", "")).parts[-2:])
            scores = row["mean"], row["interval_low"], row["interval_high"]
            bars = Bars(paper.game, [], (paper.normalised(paper.dqn_nature), paper.normalised(paper.best_linear)))
            games.setdefault(paper.game, bars).measured.append(Bar(name, *map(paper.normalised, scores)))
    if not games:
        what = f"no score that compares with the paper's: {', '.join(left_out)}" if left_out else "no row"
        raise UsageError(f"{path} has {what}; fill it with evaluate.py --csv {path}")
    for bars in games.values():
        bars.measured.sort(key=lambda bar: -bar.score)
    return sorted(games.values(), key=lambda bars: -bars.measured[0].score), left_out


def why_left_out(row: Mapping[str, Any]) -> str:
    """Why a row of a table of evaluate.py does not compare with the paper's scores; empty where it does.

    A table that does not say how its games were played is taken for one of the paper's protocol.
    """
    if other := row.get("other_condition"):
        return str(other)
    if np.isfinite(row["minutes"]) and row["minutes"] != PAPER_MINUTES:
        return f"{row['minutes']:g} minutes"
    return "" if paper_scores(row["game"]) else "not among the paper's 49 games"


def preferred(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each run in a table of sweep.py the row of its best network, else of its newest; of other tables every row."""
    rows: list[Any] = table.to_dict("records")
    best = {Path(row["state_dict"]).parent for row in rows if row.get("network") == "best"}
    return [row for row in rows if row.get("network") != "model" or Path(row["state_dict"]).parent not in best]


def draw_scores(games: list[Bars]) -> Figure:
    """Normalised scores next to the paper's DQN and the best linear learner (paper, Fig. 3), in the given order."""
    gap = 0.8  # between games; a bar takes 1
    height = 2 + 0.17 * sum(len(game.measured) + 2 + gap for game in games)
    figure = Figure(figsize=(9, height), layout="constrained")
    panel = figure.subplots()
    middles, place = [], 0.0
    for game in games:
        middles.append(place + (len(game.measured) + 1) / 2)
        papers = [Bar("", score, score, score) for score in game.papers]
        colors = [*([BLUE] * len(game.measured)), ORANGE, GREY]
        for color, bar in zip(colors, (*game.measured, *papers), strict=True):
            panel.barh(place, bar.score, height=0.92, color=color)
            panel.plot((bar.low, bar.high), (place, place), color="black", linewidth=1)
            text = f"{bar.score:z,.0f}%  {shortened(bar.name) if len(game.measured) > 1 else ''}".rstrip()
            # To the right of the bar or of 0: to the left stand the games.
            end = np.fmax(bar.high, max(bar.score, 0))
            panel.annotate(text, (end, place), (4, 0), textcoords="offset points", va="center", fontsize=9.5)
            place += 1
        place += gap
    panel.set_xscale("symlog", linthresh=100, linscale=1.5)  # a few games are at thousands, most below 200
    panel.set_xticks([-1000, -100, 0, 25, 50, 75, 100, 300, 1000, 5000, 20000, 100000])
    panel.minorticks_off()
    panel.xaxis.set_major_formatter("{x:,.0f}%")
    low, high = panel.dataLim.intervalx
    panel.set_xlim(min(1.2 * low, 0), 1.6 * max(high, 100))  # room for the numbers
    panel.spines["top"].set_visible(False)
    panel.axvline(0, color="black", linewidth=0.8)
    panel.axvline(100, color="black", linestyle="--", linewidth=1, zorder=0)
    panel.set_xlabel("normalised score: random agent 0%, human 100%; the axis is logarithmic beyond")
    panel.set_yticks(middles, [game.game for game in games])
    panel.set_ylim(place - 0.1 - gap, -0.9)
    kinds = {"this project": BLUE, "DQN of the paper": ORANGE, "best linear learner": GREY}
    handles = [Patch(color=color, label=kind) for kind, color in kinds.items()]
    figure.legend(handles=handles, loc="outside upper right", ncols=3)
    return figure
