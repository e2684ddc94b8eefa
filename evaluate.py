"""Score trained networks by the paper's evaluation protocol: python evaluate.py --help"""

from runtime.exits import UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
import json
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from tqdm.auto import tqdm

from atari import (
    FRAMES_PER_MINUTE,
    LONG_MINUTES,
    MAX_EMULATOR_SEED,
    PAPER_OPTIONS,
    FinishedGame,
    GameOptions,
    paper_scores,
)
from model import QNetwork
from runtime.files import check_output, write_csv, writing_output
from runtime.flags import Bounds, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, GAMES, MINUTES, EpsilonGreedyPlayer, RandomPlayer, play_protocol, rom_of
from wrappers import LAST_LIVE_FRAME, MAX_FRAMES_PER_GAME, STOPPING_GAMES, AtariGames, action_names, rom_name

MAX_GAMES = 1_000  # emulators side by side
BOOTSTRAP_RESAMPLES = 10_000
STATISTICS = ("mean", "standard_deviation", "minimum", "median", "maximum")
PAPER = ("dqn_nature", "human", "random")
PAPER_2013 = ("dqn_nips2013", "human_nips2013", "random_nips2013")
MEANS = ("mean_first_life", "mean_length_steps", "mean_length_seconds")
COLUMNS = (
    *("state_dict", "game", "games", *STATISTICS, "interval_low", "interval_high", *PAPER, "normalised"),
    *("cut", *MEANS, *PAPER_2013, "minutes", "other_condition", "stopped"),
)
NUMBERS = ("mean", "sd", "min", "median", "max", "95% interval", "first life", "seconds")
HEADER = ("game", "games", *NUMBERS, "DQN", "DQN 2013", "human", "random", "normalised", "cut")
EMULATOR_SEEDS = 1  # names the stream of seeds that the emulators draw from; the player has its own


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
    """Play the paper's evaluation protocol with saved networks, or at random, and compare with the paper's scores.

    In the table, first life is the mean score up to the first lost life, which some projects report as the score;
    seconds is the mean length of a game at 60 frames per second; DQN 2013 is the DQN of Mnih et al. 2013. A
    score is normalised only where the games were played as the paper's were; else the table says in what they differ.
    With 30 minutes the human's score is that of later work, under this limit.
    """

    state_dict: tuple[Path, ...] = ()
    """One or more state dict files that a training run wrote; a row of the table for each."""
    random: bool = False
    """Play the games that --game names with uniformly random actions instead: the baseline of the scores."""
    game: tuple[str, ...] = ()
    """One or more games, for --random, by any of their names; a row of the table for each."""
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
    json: Path | None = None
    """Also write the table to this file, as an object with epsilon, minutes, seed and rows."""

    def check(self) -> None:
        """Raise `UsageError` for flags out of bounds, or that contradict each other."""
        if bool(self.state_dict) == self.random:
            raise UsageError("who plays? Name one of --state-dict MODEL.pt and --random --game Breakout")
        if self.random and not self.game:
            raise UsageError("--random needs the game: --random --game Breakout")
        if self.game and not self.random:
            raise UsageError(f"--game {' '.join(self.game)} is for --random: a state dict knows its game; leave it out")
        check_bounds(self)
        if self.random and self.epsilon != EPSILON:
            raise UsageError(f"--epsilon {self.epsilon} has no effect on --random: all actions are; leave it out")
        for path, suffix in ((self.csv, ".csv"), (self.json, ".json")):
            if path:
                check_output(path, suffix)

    def emulator_seeds(self) -> np.ndarray:
        """A seed for each emulator, (games,) int64, all different; another seed of the flag, other ones."""
        generator = np.random.default_rng((self.seed, EMULATOR_SEEDS))
        return generator.choice(MAX_EMULATOR_SEED, self.games, replace=False)


@dataclass
class Entrant:
    """Who plays a row of the table: the network of a file, or, without one, random actions by the paper's rules."""

    name: str
    rom: str
    network: QNetwork | None = None

    @property
    def rules(self) -> GameOptions:
        """How the game is played: as the network's file says, else as in the paper."""
        return self.network.rules if self.network else PAPER_OPTIONS

    def other_condition(self, config: EvaluationConfig) -> str:
        """In what the games are not those of the scores they would be compared with; empty where they are."""
        rules, usual, known = self.rules, PAPER_OPTIONS, action_names(self.rom)
        differing = {
            f"epsilon {config.epsilon:g}": config.epsilon != EPSILON,
            f"{config.minutes:g} minutes": config.minutes not in (MINUTES, LONG_MINUTES),
            f"{rules.frames_per_step} frames per step": rules.frames_per_step != usual.frames_per_step,
            f"sticky actions {rules.sticky_actions:g}": rules.sticky_actions != usual.sticky_actions,
            f"{len(rules.actions)} actions": bool(rules.actions) and {*rules.actions} != {*known},
        }
        return ", ".join(what for what, differs in differing.items() if differs)


def entrants(config: EvaluationConfig) -> list[Entrant]:
    """Who plays, all of them sound before the first plays; raises `UsageError`."""
    if config.random:
        return [Entrant("random", rom_name(game)) for game in config.game]
    networks = {path: load_network(path) for path in config.state_dict}
    return [Entrant(str(path), rom_of(path, network), network) for path, network in networks.items()]


def play(entrant: Entrant, config: EvaluationConfig) -> list[FinishedGame]:
    """The games of the protocol, one per emulator."""
    limit_frames = round(config.minutes * FRAMES_PER_MINUTE)
    with (
        closing(AtariGames(entrant.rom, config.games, entrant.rules, max_frames_per_game=limit_frames)) as games,
        tqdm(total=config.games, desc=f"{entrant.name}: games", leave=False, disable=None) as bar,
    ):

        def show(finished: int) -> bool:
            bar.update(finished - bar.n)
            return True

        player: EpsilonGreedyPlayer | RandomPlayer = RandomPlayer(games.num_actions, seed=config.seed)
        if entrant.network:
            player = EpsilonGreedyPlayer(entrant.network, epsilon=config.epsilon, seed=config.seed)
        played = play_protocol(player, games, seed=config.emulator_seeds(), watch=show)
    assert played is not None  # nobody stopped it
    return played


def evaluate(entrant: Entrant, config: EvaluationConfig) -> dict[str, Any]:
    """Play the protocol; returns a row, `COLUMNS` to values, None where the papers have none of this condition."""
    played, rules, paper = play(entrant, config), entrant.rules, paper_scores(entrant.rom)
    scores, first_lives, lengths = (
        np.array([getattr(game, name) for game in played]) for name in ("score", "first_life_score", "length_steps")
    )
    statistics = scores.mean(), scores.std(), scores.min(), np.median(scores), scores.max()
    means = first_lives.mean(), lengths.mean(), lengths.mean() / rules.steps_per_second
    stopped = lengths * rules.frames_per_step > LAST_LIVE_FRAME if entrant.rom in STOPPING_GAMES else np.zeros(1)
    values: dict[str, Any] = {"state_dict": entrant.name, "game": entrant.rom, "games": config.games}
    values |= zip(STATISTICS, map(float, statistics), strict=True)
    values |= zip(("interval_low", "interval_high"), bootstrap_interval(scores), strict=True)
    values |= zip(MEANS, map(float, means), strict=True)
    values |= {"cut": sum(game.cut for game in played), "stopped": int(stopped.sum())}
    values |= {"minutes": config.minutes, "other_condition": entrant.other_condition(config)}
    if paper and not values["other_condition"]:
        if config.minutes == MINUTES:
            values |= {name: getattr(paper, name) for name in (*PAPER, *PAPER_2013)}
        values |= {"human": paper.human_of(config.minutes), "random": paper.random}
        values["normalised"] = paper.normalised(float(scores.mean()), config.minutes)
    return {column: values.get(column) for column in COLUMNS}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text, a line for each; '-' where a paper has no score of the game in this condition."""
    lines = [list(HEADER)]
    for row in rows:
        numbers = {name: f"{value:,.1f}" for name, value in row.items() if isinstance(value, float)}
        interval = f"{numbers['interval_low']} to {numbers['interval_high']}"
        measured = [*(numbers[name] for name in STATISTICS), interval, numbers[MEANS[0]], numbers[MEANS[2]]]
        papers = [numbers.get(name, "-") for name in (PAPER[0], PAPER_2013[0], *PAPER[1:])]
        normalised = f"{row['normalised']:.0f}%" if row["normalised"] is not None else row["other_condition"] or "-"
        lines.append([row["game"], str(row["games"]), *measured, *papers, normalised, str(row["cut"])])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = ["", *(row["state_dict"] for row in rows)]
    texts = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"{text}  {name}".rstrip() for text, name in zip(texts, names, strict=True))


def write_json(path: Path, rows: list[dict[str, Any]], config: EvaluationConfig) -> None:
    """Write the rows and what they were played with whole or not at all; raises `RunError`."""
    epsilon = 1.0 if config.random else config.epsilon
    result = {"epsilon": epsilon, "minutes": config.minutes, "seed": config.seed, "rows": rows}
    with writing_output(path) as temporary:
        temporary.write_text(json.dumps(result, indent=2) + "\n")


def footnotes(rows: list[dict[str, Any]], config: EvaluationConfig) -> list[str]:
    """What must be known of the numbers in the table, a line each."""
    notes = []
    if any(row["cut"] for row in rows):
        notes.append(f"cut: games not over after {config.minutes:g} minutes; they count with the score so far")
    if stopped := [f"{row['stopped']} of {row['game']}" for row in rows if row["stopped"]]:
        where = f"frame {LAST_LIVE_FRAME:,}, where the game can stop responding (docs/fidelity.md)"
        notes.append(f"stopped: games that went beyond {where}: {', '.join(stopped)}")
    if any(row["other_condition"] for row in rows):
        same = f"epsilon {EPSILON}, {MINUTES} minutes (or {LONG_MINUTES}, for the human alone), its frames and actions"
        notes.append(f"normalised: only where the games were played as the paper's were: {same}")
    elif config.minutes == LONG_MINUTES:
        notes.append(f"normalised: by the human's score in {LONG_MINUTES} minutes; the paper's DQN played {MINUTES}")
    return notes


def main() -> None:
    config = parse(EvaluationConfig)
    config.check()
    rows = [evaluate(entrant, config) for entrant in entrants(config)]
    if config.csv:
        write_csv(config.csv, COLUMNS, rows)
    if config.json:
        write_json(config.json, rows, config)
    print(table(rows), *footnotes(rows, config), sep="\n")


if __name__ == "__main__":
    exit_with(main, smaller="--games")
