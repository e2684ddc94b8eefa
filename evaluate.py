"""Score trained networks by the paper's evaluation protocol: python evaluate.py --help"""

from machine.exits import UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
import csv
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm.auto import tqdm

from atari import FRAMES_PER_MINUTE, MAX_EMULATOR_SEED, paper_scores
from machine.files import Kind, check_output, writing_output
from machine.flags import Bounds, Probability, check_bounds, parse
from model import QNetwork, load_network
from showing.episodes import EPSILON, GAMES, MINUTES, EpsilonGreedyPlayer, check_actions, play_protocol
from wrappers import MAX_FRAMES_PER_GAME, AtariGames, rom_name

MAX_GAMES = 1_000  # emulators side by side
BOOTSTRAP_RESAMPLES = 10_000
STATISTICS = ("mean", "standard_deviation", "minimum", "median", "maximum")
PAPER = ("dqn_nature", "human", "random")
COLUMNS = ("state_dict", "game", "games", *STATISTICS, "interval_low", "interval_high", *PAPER, "normalised", "cut")
NUMBERS = ("mean", "sd", "min", "median", "max", "95% interval", "DQN", "human", "random", "normalised", "cut")
HEADER = ("game", "games", *NUMBERS)
TABLE = Kind("a table of evaluate.py", ",".join(COLUMNS[:-1]).encode())  # older ones have no column `cut`
EMULATOR_SEEDS = 1  # names the stream of seeds that the emulators draw from, beside the player's


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
    """Limit of each game in minutes of play at 60 frames per second (paper: 5); the table counts the games it cut."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the emulators and of the random actions; another seed, other games."""
    csv: Path | None = None
    """Also write the table to this file."""

    def check(self) -> None:
        if not self.state_dict:
            raise UsageError("--state-dict names no file; name one or more that a training run wrote")
        check_bounds(self)
        if self.csv:
            check_output(self.csv, TABLE)

    def emulator_seeds(self) -> np.ndarray:
        """A seed for each emulator, (games,) int64, all different; another seed of the flag, other ones."""
        generator = np.random.default_rng((self.seed, EMULATOR_SEEDS))
        return generator.choice(MAX_EMULATOR_SEED, self.games, replace=False)


def evaluate(path: Path, network: QNetwork, config: EvaluationConfig) -> dict[str, Any]:
    """Evaluate the network of a file; returns its row, `COLUMNS` to values, None where the paper has none."""
    limit_frames = round(config.minutes * FRAMES_PER_MINUTE)
    rom = rom_name(network.game)
    with closing(AtariGames(rom, config.games, network.rules, max_frames_per_game=limit_frames)) as games:
        player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=config.seed)
        with tqdm(total=config.games, desc=f"{path}: games", leave=False) as bar:
            played = play_protocol(
                player, games, seed=config.emulator_seeds(), watch=lambda done: bar.update(done - bar.n) is not False
            )
    assert played is not None  # nobody stopped it
    scores = np.array([game.score for game in played])
    paper = paper_scores(network.game)
    values: dict[str, Any] = {"state_dict": str(path), "game": network.game, "games": config.games}
    statistics = (scores.mean(), scores.std(), scores.min(), np.median(scores), scores.max())
    values |= dict(zip(STATISTICS, statistics, strict=True)) | {"cut": sum(game.cut for game in played)}
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
        lines.append([row["game"], str(row["games"]), *scores, interval, *paper, normalised, str(row["cut"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = ["", *(row["state_dict"] for row in rows)]
    texts = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"{text}  {name}".rstrip() for text, name in zip(texts, names, strict=True))


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write the rows whole or not at all; raises `RunError`."""
    with writing_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    config = parse(EvaluationConfig)
    config.check()
    networks = [load_network(path) for path in config.state_dict]  # all of them before the first is played
    for path, network in zip(config.state_dict, networks, strict=True):
        with closing(AtariGames(rom_name(network.game), 1, network.rules)) as game:
            check_actions(path, network, game)
    rows = [evaluate(path, network, config) for path, network in zip(config.state_dict, networks, strict=True)]
    if config.csv:
        write_csv(config.csv, rows)
    print(table(rows))
    if any(row["cut"] for row in rows):
        print(f"cut: games that were still going on at {config.minutes:g} minutes; they count with the score so far")


if __name__ == "__main__":
    exit_with(main)
