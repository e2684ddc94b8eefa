"""What games x seeds say together (Agarwal et al. 2021): aggregate scores with intervals, profiles, a table."""

import functools
import itertools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from atari import PaperScores, games_named, paper_scores, paper_table
from runtime.exits import UsageError
from viewing.episodes import GAMES
from viewing.figures_tables import (
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    preferred,
    read_evaluations,
    read_table,
    shortened,
    why_left_out,
)

RESAMPLES = 2_000  # of each stratified bootstrap
COLORS = (BLUE, VERMILLION, ORANGE, "#009E73", "#CC79A7", "#56B4E9", GREY)
METRICS = ("median", "IQM", "mean", "optimality gap")


def import_rliable() -> tuple[Any, Any]:
    """rliable's library and metrics, or a `UsageError` that says how to install them."""
    try:
        from rliable import library, metrics
    except ImportError:
        raise UsageError("rliable is not installed: pip install -r requirements-cluster.txt") from None
    return library, metrics


@dataclass
class Scored:
    """The scores of one setting, normalised: 0 is the random agent, 1 the human; games in the paper's order.

    scores: (seeds, games). curves: (seeds, games, points), the evaluations during training at `steps` (points,) agent
    steps; None where the runs have none in common. means: the raw mean score of each game.
    """

    name: str
    games: list[PaperScores]
    scores: np.ndarray
    means: dict[str, float]
    steps: np.ndarray
    curves: np.ndarray | None

    @functools.cached_property
    def estimates(self) -> tuple[np.ndarray, np.ndarray]:
        """`estimate` of the scores' `aggregates`, which picture and table both show; thousands of resamples."""
        return estimate(self.scores, aggregates)


def read_sweep(folder: Path) -> tuple[list[Scored], list[str]]:
    """The settings of a sweep, one for each varied value, and what must be said of them; raises `UsageError`."""
    table = folder / "scores.csv"
    texts = ("state_dict", "game", "network", "value")
    rows = preferred(read_table(table, ("mean", "seed"), texts, optional=("minutes", "games")))
    if not rows:
        raise UsageError(f"{table} has no row: no run is finished yet; sweep.py fills it")
    for row in rows:
        row |= {"game": _name_of(row["game"]), "seed": int(row["seed"])}
    notes = _notes(folder, rows)
    scored = []
    for value in dict.fromkeys(row["value"] for row in rows):
        of_value = [row for row in rows if row["value"] == value]
        scored.append(_setting(f"{folder.name} {value}".strip(), folder, of_value, notes))
    return scored, notes


def _notes(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Which networks were scored, the games and seeds without a score yet, and games other in number."""
    newest = sum(row["network"] == "model" for row in rows)
    notes = [f"{folder}: best.pt of {len(rows) - newest} runs, model.pt of {newest} never evaluated in training"]
    try:
        asked = json.loads((folder / "sweep.json").read_text())
        every = itertools.product(games_named(asked["games"]), range(asked["seeds"]), asked["vary"][1:] or [""])
        runs = [(_name_of(game), seed, value) for game, seed, value in every]
    except (OSError, ValueError, KeyError, TypeError):
        return [*notes, f"{folder / 'sweep.json'} does not say which runs were asked for"]
    there = {(row["game"], row["seed"], row["value"]) for row in rows}
    if missing := [run for run in runs if run not in there]:
        named = (f"{game} seed {seed} {value}".rstrip() for game, seed, value in missing)
        notes.append(f"{folder}: without a score yet: {', '.join(named)}")
    if other := sorted({f"{row['games']:g}" for row in rows if row["games"] > 0 and row["games"] != GAMES}):
        notes.append(f"{folder}: scores of {' and '.join(other)} games; the paper's protocol has {GAMES}")
    return notes


def _name_of(game: str) -> str:
    """The paper's name of a game, where it is one of the paper's."""
    paper = paper_scores(game)
    return paper.game if paper else game


def _setting(name: str, folder: Path, rows: list[dict[str, Any]], notes: list[str]) -> Scored:
    """One setting: the games that all have all seeds, or the seeds that all have all games; adds to the notes."""
    other = [f"{row['game']} seed {row['seed']} ({why})" for row in rows if (why := why_left_out(row))]
    runs = {(row["seed"], row["game"]): row for row in rows if not why_left_out(row)}
    if not runs:
        raise UsageError(f"{name}: no score that compares with the paper's: {', '.join(other)}")
    raw = pd.Series({run: row["mean"] for run, row in runs.items()}).unstack()
    raw = max(raw.dropna(axis="columns"), raw.dropna(axis="index"), key=lambda block: block.size)
    if raw.empty:
        raise UsageError(f"{name}: no game has a score of every seed, and no seed of every game; resume the sweep")
    games = [paper for paper in paper_table().values() if paper.game in raw]
    raw = raw[[paper.game for paper in games]]
    notes.append(f"{name}: {len(games)} of the paper's 49 games x {len(raw)} seeds")
    incomplete = [f"{game} seed {seed}" for seed, game in runs if seed not in raw.index or game not in raw]
    for what, left_out in (("without all of these seeds", incomplete), ("not compared with the paper's scores", other)):
        if left_out:
            notes.append(f"{name}: left out, {what}: {', '.join(left_out)}")
    places = [Path(runs[seed, paper.game]["state_dict"]).parent.name for seed in raw.index for paper in games]
    means = pd.concat([read_evaluations(folder / place)["mean"] for place in places], axis=1, join="inner")
    curves = means.to_numpy().T.reshape(*raw.shape, -1)
    if means.empty:
        notes.append(f"{name}: no curve of evaluations: there is no agent step at which all these runs have one")
    random = np.array([paper.random for paper in games])
    human = np.array([paper.human for paper in games])
    return Scored(
        name,
        games,
        (raw.to_numpy() - random) / (human - random),
        dict(raw.mean()),
        means.index.to_numpy(),
        None if means.empty else (curves - random[:, None]) / (human - random)[:, None],
    )


def estimate(scores: Any, measure: Callable[..., Any]) -> tuple[np.ndarray, np.ndarray]:
    """What `measure` gives of the scores, (values,), and its 95% intervals, (2, values), by stratified bootstrap.

    The same scores always give the same intervals.
    """
    library, _ = import_rliable()
    np.random.seed(0)  # rliable draws from NumPy's global generator, whatever state it is given
    points, intervals = library.get_interval_estimates(
        {"": scores}, lambda *each: np.atleast_1d(measure(*each)), reps=RESAMPLES
    )
    return points[""], intervals[""]


def aggregates(scores: np.ndarray) -> np.ndarray:
    """Median, interquartile mean, mean and optimality gap of scores (seeds, games), in the order of `METRICS`."""
    _, m = import_rliable()
    measures = m.aggregate_median, m.aggregate_iqm, m.aggregate_mean, m.aggregate_optimality_gap
    return np.array([measure(scores) for measure in measures])


def improvement(one: Scored, other: Scored) -> tuple[float, float, float]:
    """The probability that a run of `one` scores above a run of `other`, over the games of both, and its interval."""
    _, metrics = import_rliable()
    common = [paper for paper in one.games if paper in other.games]
    if not common:
        raise UsageError(f"{one.name} and {other.name} have no game in common to be compared on")
    both = [setting.scores[:, [*map(setting.games.index, common)]] for setting in (one, other)]
    point, interval = estimate(both, metrics.probability_of_improvement)
    return float(point[0]), float(interval[0, 0]), float(interval[1, 0])


def draw_aggregate(settings: list[Scored]) -> Figure:
    """Aggregate scores, performance profiles, sample efficiency and, of several settings, probabilities."""
    layout: list[Any] = [[*METRICS], ["profile", "profile", "efficiency", "efficiency"]]
    if pairs := [*itertools.combinations(settings, 2)]:
        layout.append(["improvement"] * 4)
    figure = Figure(figsize=(13, 4 * len(layout)), layout="constrained")
    panels: Any = figure.subplot_mosaic(layout)
    figure.suptitle("normalised scores (random agent 0, human 1) with 95% intervals")
    names = [shortened(setting.name) for setting in settings]
    for number, metric in enumerate(METRICS):
        estimates = (setting.estimates for setting in settings)
        of_metric = [(points[number], *interval[:, number]) for points, interval in estimates]
        _draw_intervals(panels[metric], names if number == 0 else [""] * len(names), of_metric)
        panels[metric].set_title(metric)
    every = np.concatenate([setting.scores.ravel() for setting in settings])
    taus = np.linspace(min(0.0, every.min()), max(0.1, every.max()), 101)
    profile, efficiency = panels["profile"], panels["efficiency"]
    for color, setting in zip(itertools.cycle(COLORS), settings, strict=False):
        _draw_band(
            profile, setting, taus, setting.scores, lambda s: (s[..., None] > taus).mean((0, 1)), {"color": color}
        )
        if setting.curves is not None:
            _draw_band(efficiency, setting, setting.steps, setting.curves, _iqms, {"color": color, "marker": "o"})
    profile.set(xlabel="normalised score", ylabel="share of runs above it", title="performance profile")
    profile.legend()
    efficiency.set(xlabel="agent steps", ylabel="IQM of the normalised scores", title="evaluations in training")
    efficiency.xaxis.set_major_formatter(EngFormatter(sep=""))
    if pairs:
        names = [f"{shortened(one.name)} above {shortened(other.name)}" for one, other in pairs]
        panel = panels["improvement"]
        _draw_intervals(panel, names, [improvement(*pair) for pair in pairs])
        panel.axvline(0.5, color="black", linestyle="--", linewidth=1)
        panel.set(xlim=(0, 1), xlabel="probability that a run scores higher")
    return figure


def _draw_intervals(panel: Axes, names: Sequence[str], intervals: Sequence[tuple[float, float, float]]) -> None:
    """A row for each name, the first one at the top: a value and the interval around it."""
    for row, (point, low, high) in enumerate(intervals):
        panel.plot([low, high], [row, row], color=COLORS[row % len(COLORS)], linewidth=12, solid_capstyle="butt")
        panel.plot(point, row, "|", color="black", markersize=20, markeredgewidth=2)
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.5, -0.5)
    panel.grid(axis="x", alpha=0.3)


def _iqms(curves: np.ndarray) -> np.ndarray:
    _, metrics = import_rliable()
    return np.array([metrics.aggregate_iqm(curves[..., point]) for point in range(curves.shape[-1])])


def _draw_band(panel: Axes, setting: Scored, x: np.ndarray, scores: np.ndarray, measure: Any, style: Any) -> None:
    values, (low, high) = estimate(scores, measure)
    panel.plot(x, values, label=shortened(setting.name), **style)
    panel.fill_between(x, low, high, color=style["color"], alpha=0.2, linewidth=0)


def table_rows(setting: Scored) -> list[dict[str, Any]]:
    """A row per game, the paper's best game first (paper, Fig. 3); normalised scores in percent."""
    return [
        {
            "game": paper.game,
            "seeds": len(setting.scores),
            "mean": setting.means[paper.game],
            "normalised": paper.normalised(setting.means[paper.game]),
            "dqn_nature": paper.dqn_nature,
            "dqn_normalised": paper.normalised(paper.dqn_nature),
            "pfrl_dqn": paper.pfrl_dqn,
            "human": paper.human,
            "random": paper.random,
        }
        for paper in sorted(setting.games, key=lambda paper: -paper.normalised(paper.dqn_nature))
    ]


def tables(settings: list[Scored]) -> dict[str, str]:
    """The table of games and, in Markdown, the aggregate scores of each setting, by suffix."""
    table = pd.DataFrame([{"setting": setting.name} | row for setting in settings for row in table_rows(setting)])
    shown = table.map(lambda value: f"{value:,.1f}" if isinstance(value, float) else str(value))
    for column in ("normalised", "dqn_normalised"):
        shown[column] = table[column].map("{:,.0f}%".format)
    rows = [shown.columns, ["---"] * len(shown.columns), *shown.to_numpy()]
    lines = [f"| {' | '.join(row)} |" for row in rows]
    for setting in settings:
        values = zip(METRICS, *np.vstack(setting.estimates), strict=True)
        measured = (f"{metric} {value:.2f} ({low:.2f} to {high:.2f})" for metric, value, low, high in values)
        lines += ["", f"{setting.name}, normalised, with 95% intervals: {', '.join(measured)}."]
    return {".md": "\n".join(lines) + "\n", ".csv": table.to_csv(index=False)}
