"""What games x seeds say together (Agarwal et al. 2021): aggregate scores with intervals, profiles, a table."""

import csv
import functools
import io
import itertools
import json
import math
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

from atari import PaperScores, games_named, paper_scores, paper_table
from runtime.exits import UsageError
from runtime.tables import number_in, read_rows
from viewing.episodes import GAMES
from viewing.figures_tables import (
    BLUE,
    GREY,
    ORANGE,
    VERMILLION,
    networks_of,
    preferred,
    read_evaluations,
    shortened,
    why_left_out,
)

RESAMPLES = 2_000  # of each stratified bootstrap
COLORS = (BLUE, VERMILLION, ORANGE, "#009E73", "#CC79A7", "#56B4E9", GREY)
METRICS = ("median", "IQM", "mean", "optimality gap")
MEASURES = ("game", "seeds", "mean", "normalised", "dqn_nature", "dqn_normalised", "pfrl_dqn", "human", "random")
HEADINGS = ("game", "seeds", "this project", "normalised", "DQN", "normalised", "PFRL's DQN", "human", "random")


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
        """`aggregates` of the scores, with their intervals."""
        return estimate(self.scores, aggregates)


def read_sweep(folder: Path) -> tuple[list[Scored], list[str]]:
    """The settings of a sweep, one for each varied value, and what must be said of them; raises `UsageError`."""
    table = folder / "scores.csv"

    def parse(_line: int, row: dict[str, str]) -> dict[str, Any]:
        run = Path(row["state_dict"]).parent.name
        return row | {"mean": number_in(row, "mean"), "seed": int(row["seed"]), "run": run}

    rows = preferred(read_rows(table, ("state_dict", "game", "mean", "network", "seed", "value"), parse))
    if not rows:
        raise UsageError(f"{table} has no row: no run is finished yet; sweep.py fills it")
    notes = [f"{folder}: {networks_of(rows)}", *_missing(folder, rows)]
    if other := sorted({row["games"] for row in rows if row.get("games")} - {str(GAMES)}):
        notes.append(f"{folder}: scores of {' and '.join(other)} games; the paper's protocol has {GAMES}")
    scored = []
    for value in dict.fromkeys(row["value"] for row in rows):
        of_value = [row for row in rows if row["value"] == value]
        setting, more = _setting(f"{folder.name} {value}".strip(), folder, of_value)
        scored.append(setting)
        notes += more
    return scored, notes


def _missing(folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """A note of the games and seeds that a sweep was begun for and that have no score yet."""
    try:
        asked = json.loads((folder / "sweep.json").read_text())
        runs = itertools.product(games_named(asked["games"]), range(asked["seeds"]), asked["vary"][1:] or [""])
        every = [(game_of(game), seed, value) for game, seed, value in runs]
    except (OSError, ValueError, KeyError, TypeError):
        return [f"{folder / 'sweep.json'} does not say which runs were asked for"]
    there = {(game_of(row["game"]), row["seed"], row["value"]) for row in rows}
    missing = [run for run in every if run not in there]
    named = (f"{game} seed {seed} {value}".rstrip() for game, seed, value in missing)
    return [f"{folder}: without a score yet: {', '.join(named)}"] if missing else []


def _setting(name: str, folder: Path, rows: list[dict[str, Any]]) -> tuple[Scored, list[str]]:
    """One setting, of as many runs as games that all have the same seeds can hold."""
    runs = {(game_of(row["game"]), row["seed"]): row for row in rows if not why_left_out(row)}
    other = [f"{row['game']} seed {row['seed']} ({why})" for row in rows if (why := why_left_out(row))]
    if not runs:
        raise UsageError(f"{name}: no score that compares with the paper's: {', '.join(other)}")
    games, seeds = _largest_block(runs.keys())
    in_block = {(paper.game, seed) for paper in games for seed in seeds}
    evaluations = {run: read_evaluations(folder / runs[run]["run"]) for run in runs if run in in_block}
    evaluated = [seed for seed in seeds if all(len(evaluations[paper.game, seed]) for paper in games)]
    steps, curves = _curves([[(paper, evaluations[paper.game, seed]) for paper in games] for seed in evaluated])
    notes = [f"{name}: {len(games)} of the paper's 49 games x {len(seeds)} seeds"]
    incomplete = [f"{game} seed {seed}" for game, seed in runs if (game, seed) not in in_block]
    unevaluated = [f"{game} seed {seed}" for (game, seed), rows in evaluations.items() if not len(rows)]
    for what, left_out in (
        ("left out, without all of these seeds", incomplete),
        ("left out, not compared with the paper's scores", other),
        ("the curve of evaluations leaves out the seeds of runs without any", unevaluated),
    ):
        if left_out:
            notes.append(f"{name}: {what}: {', '.join(left_out)}")
    if curves is None:
        notes.append(f"{name}: no curve of evaluations: there is no agent step at which all these runs have one")
    raw = np.array([[runs[paper.game, seed]["mean"] for paper in games] for seed in seeds])
    scores = np.array([[paper.normalised(value) / 100 for paper, value in zip(games, row, strict=True)] for row in raw])
    means = {paper.game: float(mean) for paper, mean in zip(games, raw.mean(axis=0), strict=True)}
    return Scored(name, games, scores, means, steps, curves), notes


def _largest_block(runs: Collection[tuple[str, int]]) -> tuple[list[PaperScores], list[int]]:
    """The games and seeds, all of them with all of these, that hold the most runs; games in the paper's order."""
    numbers = Counter(seed for _, seed in runs)
    common = sorted(numbers, key=lambda seed: (-numbers[seed], seed))
    blocks = []
    for most in range(1, len(common) + 1):
        seeds = sorted(common[:most])
        games = [paper for paper in paper_table().values() if all((paper.game, seed) in runs for seed in seeds)]
        blocks.append((games, seeds))
    return max(blocks, key=lambda block: len(block[0]) * len(block[1]))


def game_of(game: str) -> str:
    """The paper's name of one of its games."""
    paper = paper_scores(game)
    return paper.game if paper else game


def _curves(runs: list[list[tuple[PaperScores, np.ndarray]]]) -> tuple[np.ndarray, np.ndarray | None]:
    """The agent steps at which every run was evaluated, and the normalised scores there, of each seed and game."""
    every = [evaluations[:, 0] for row in runs for _, evaluations in row]
    common = functools.reduce(np.intersect1d, every) if every else np.zeros(0)
    if not len(common):
        return common, None

    def at_common(paper: PaperScores, evaluations: np.ndarray) -> list[float]:
        means = dict(evaluations[:, :2].tolist())
        return [paper.normalised(means[step]) / 100 for step in common]

    return common, np.array([[at_common(*run) for run in row] for row in runs])


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
    several = len(settings) > 1
    heights = [1.2, 1.6, *([0.9] * several)]
    figure = Figure(figsize=(13, 0.2 + 3.8 * len(heights)), layout="constrained")
    rows: Any = figure.subfigures(len(heights), 1, height_ratios=heights)
    games = sorted({len(setting.games) for setting in settings})
    seeds = sorted({len(setting.scores) for setting in settings})
    counts = [" to ".join(map(str, sorted({each[0], each[-1]}))) for each in (games, seeds)]
    figure.suptitle(f"{counts[0]} games x {counts[1]} seeds; normalised: random agent 0, human 1")
    _draw_metrics(rows[0].subplots(1, 4, sharey=True), settings)
    profiles, efficiency = rows[1].subplots(1, 2)
    _draw_profiles(profiles, settings)
    _draw_efficiency(efficiency, settings)
    if several:
        _draw_improvement(rows[2].subplots(), settings)
    return figure


def _draw_metrics(panels: Iterable[Axes], settings: list[Scored]) -> None:
    for number, (panel, metric) in enumerate(zip(panels, METRICS, strict=True)):
        for row, setting in enumerate(settings):
            points, (low, high) = setting.estimates
            _draw_interval(panel, row, points[number], low[number], high[number], COLORS[row % len(COLORS)])
        panel.use_sticky_edges = False
        panel.set_title(metric, fontsize=12)
        _name_rows(panel, [shortened(setting.name) for setting in settings])
        panel.grid(axis="x", alpha=0.3)


def _draw_interval(panel: Axes, row: int, point: float, low: float, high: float, color: str) -> None:
    panel.barh(row, high - low, left=low, height=0.6, color=color, alpha=0.5)
    panel.plot([point] * 2, [row - 0.3, row + 0.3], color="black", linewidth=2)


def _name_rows(panel: Axes, names: list[str]) -> None:
    """Name the rows of intervals, the first one at the top."""
    panel.set_yticks(range(len(names)), names)
    panel.set_ylim(len(names) - 0.4, -0.6)


def _draw_profiles(panel: Axes, settings: list[Scored]) -> None:
    most = max(float(setting.scores.max()) for setting in settings)
    taus = np.linspace(min(0.0, *(float(setting.scores.min()) for setting in settings)), max(most, 0.1), 101)
    for color, setting in zip(itertools.cycle(COLORS), settings, strict=False):
        shares, (low, high) = estimate(setting.scores, lambda s: (s[..., None] > taus).mean(axis=(0, 1)))
        panel.plot(taus, shares, color=color, label=shortened(setting.name))
        panel.fill_between(taus, low, high, color=color, alpha=0.2, linewidth=0)
    panel.set(xlabel="normalised score", ylabel="share of runs above it", ylim=(0, 1.02), title="performance profile")
    panel.legend()


def _draw_efficiency(panel: Axes, settings: list[Scored]) -> None:
    _, metrics = import_rliable()
    for color, setting in zip(itertools.cycle(COLORS), settings, strict=False):
        if setting.curves is not None:
            points = range(setting.curves.shape[2])
            iqms, (low, high) = estimate(
                setting.curves, lambda s, points=points: np.array([metrics.aggregate_iqm(s[..., p]) for p in points])
            )
            panel.plot(setting.steps, iqms, color=color, marker="o", markersize=4, label=shortened(setting.name))
            panel.fill_between(setting.steps, low, high, color=color, alpha=0.2, linewidth=0)
    panel.set(xlabel="agent steps", ylabel="IQM of the normalised scores", title="evaluations in training")
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))


def _draw_improvement(panel: Axes, settings: list[Scored]) -> None:
    pairs = [*itertools.combinations(settings, 2)]
    for row, (one, other) in enumerate(pairs):
        _draw_interval(panel, row, *improvement(one, other), GREY)
    _name_rows(panel, [f"{shortened(a.name)} above {shortened(b.name)}" for a, b in pairs])
    panel.axvline(0.5, color="black", linestyle="--", linewidth=1)
    panel.set(xlim=(0, 1), xlabel="probability that a run scores higher, with its 95% interval")


def table_rows(setting: Scored) -> list[dict[str, Any]]:
    """A row per game, in the columns `MEASURES`, the paper's best game first (paper, Fig. 3)."""
    rows = []
    for paper in sorted(setting.games, key=lambda paper: -paper.normalised(paper.dqn_nature)):
        mean = setting.means[paper.game]
        normalised = paper.normalised(mean), paper.normalised(paper.dqn_nature)
        papers = paper.dqn_nature, normalised[1], paper.pfrl_dqn, paper.human, paper.random
        values = paper.game, len(setting.scores), mean, normalised[0], *papers
        rows.append(dict(zip(MEASURES, values, strict=True)))
    return rows


def tables(settings: list[Scored]) -> dict[str, str]:
    """The games' table of each setting, as Markdown and as CSV, by suffix."""
    lines: list[str] = []
    file = io.StringIO()
    writer = csv.DictWriter(file, ("setting", *MEASURES), lineterminator="\n")
    writer.writeheader()
    for setting in settings:
        lines += [f"| {setting.name}: {HEADINGS[0]} | {' | '.join(HEADINGS[1:])} |", "|---" * len(HEADINGS) + "|"]
        for row in table_rows(setting):
            writer.writerow({"setting": setting.name} | row)
            lines.append("| " + " | ".join(_cell(name, row[name]) for name in MEASURES) + " |")
        points, (low, high) = setting.estimates
        values = zip(METRICS, points, low, high, strict=True)
        measured = (f"{metric} {value:.2f} ({a:.2f} to {b:.2f})" for metric, value, a, b in values)
        lines += ["", f"Normalised, with 95% intervals: {', '.join(measured)}.", ""]
    return {".md": "\n".join(lines), ".csv": file.getvalue()}


def _cell(name: str, value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return f"{value:,.0f}%" if "normalised" in name else f"{value:,.1f}" if math.isfinite(value) else "-"
