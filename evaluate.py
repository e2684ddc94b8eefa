"""Score trained networks by the paper's evaluation protocol: python evaluate.py --help"""

from machine.exits import UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import csv
import io
import os
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import tyro
from tqdm import tqdm

from atari import FRAMES_PER_MINUTE, MAX_EMULATOR_SEED, paper_scores
from machine.files import write_text
from machine.flags import Bounds, Probability, check_bounds
from model import QNetwork, load_network
from showing.episodes import EPSILON, GAMES, MINUTES, EpsilonGreedyPlayer, check_actions, play_protocol
from wrappers import MAX_FRAMES_PER_GAME, AtariGames, rom_name

MAX_GAMES = 1_000  # emulators side by side
BOOTSTRAP_RESAMPLES = 10_000
STATISTICS = ("mean", "standard_deviation", "minimum", "median", "maximum")
PAPER = ("dqn_nature", "human", "random")
COLUMNS = ("state_dict", "game", "games", *STATISTICS, "interval_low", "interval_high", *PAPER, "normalised")
HEADER = ("game", "games", "mean", "sd", "min", "median", "max", "95% interval", "DQN", "human", "random", "normalised")


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean score: percentiles of the means of 10,000 resamples, always the same ones."""
    from scipy import stats  # type: ignore[import-untyped]  # 0.7 s to load, which --help need not wait for

    if len(scores) == 1:  # SciPy refuses to resample a single score
        return float(scores[0]), float(scores[0])
    same = {"method": "percentile", "n_resamples": BOOTSTRAP_RESAMPLES, "rng": np.random.default_rng(0)}
    low, high = stats.bootstrap((scores,), np.mean, **same).confidence_interval
    return float(low), float(high)


@dataclass
class EvaluationConfig:
    """Play the paper's evaluation protocol with saved networks and compare the scores with the paper's."""

    state_dict: tuple[Path, ...]
    """One or more state dict files that a training run wrote; a row of the table for each."""
    games: Annotated[int, Bounds(1, MAX_GAMES)] = GAMES
    """Games to play, side by side, each from another random start (paper: 30)."""
    epsilon: Probability = EPSILON
    """Probability of a random action (paper: 0.05)."""
    minutes: Annotated[float, Bounds(0, MAX_FRAMES_PER_GAME // FRAMES_PER_MINUTE, with_low=False)] = MINUTES
    """Limit of each game in minutes of play at 60 frames per second (paper: 5)."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the emulators and of the random actions; another seed, other games."""
    csv: Path | None = None
    """Also write the table to this file."""

    def check(self) -> None:
        if not self.state_dict:
            raise UsageError("--state-dict names no file; name one or more that a training run wrote")
        check_bounds(self)
        if self.csv and (os.path.isdir(self.csv) or not os.path.isdir(self.csv.parent)):
            raise UsageError(f"--csv {self.csv} must name a file in a folder that is there")


def evaluate(path: Path, network: QNetwork, config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate the network of a file; returns its row, `COLUMNS` to values, None where the paper has none."""
    limit_frames = round(config.minutes * FRAMES_PER_MINUTE)
    with closing(AtariGames(rom_name(network.game), config.games, max_frames_per_game=limit_frames)) as games:
        check_actions(path, network, games)
        player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=config.seed)
        with tqdm(total=config.games, desc=f"{path}: games", leave=False) as bar:
            scores = play_protocol(
                player, games, seed=config.seed, watch=lambda finished: bar.update(finished - bar.n) is not False
            )
    assert scores is not None  # nobody stopped it
    paper = paper_scores(network.game)
    values: dict[str, Any] = {"state_dict": str(path), "game": network.game, "games": config.games}
    statistics = (scores.mean(), scores.std(), scores.min(), np.median(scores), scores.max())
    values |= dict(zip(STATISTICS, statistics, strict=True))
    values["interval_low"], values["interval_high"] = bootstrap_interval(scores)
    if paper:
        values |= {name: getattr(paper, name) for name in PAPER}
        values["normalised"] = paper.normalised(float(scores.mean()))
    return {column: values.get(column) for column in COLUMNS}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text, a line for each network; '-' where the paper has no score of the game."""
    lines = [list(HEADER)]
    for row in rows:
        numbers = {name: f"{value:,.1f}" for name, value in row.items() if isinstance(value, float)}
        interval = f"{numbers['interval_low']} to {numbers['interval_high']}"
        paper = [numbers.get(name, "-") for name in PAPER]
        normalised = "-" if row["normalised"] is None else f"{row['normalised']:.0f}%"
        scores = [numbers[name] for name in STATISTICS]
        lines.append([row["game"], str(row["games"]), *scores, interval, *paper, normalised])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = ["", *(row["state_dict"] for row in rows)]
    texts = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"{text}  {name}".rstrip() for text, name in zip(texts, names, strict=True))


def main() -> None:
    config = tyro.cli(EvaluationConfig)
    config.check()
    networks = [load_network(path) for path in config.state_dict]  # all of them before the first is played
    rows = [evaluate(path, network, config) for path, network in zip(config.state_dict, networks, strict=True)]
    print(table(rows))
    if config.csv:
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        try:
            write_text(config.csv, text.getvalue())
        except OSError as error:
            raise UsageError(f"--csv {config.csv} cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    exit_with(main)
