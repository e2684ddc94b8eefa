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
    display_name,
    paper_scores,
)
from model import QNetwork
from runtime.files import check_output, write_csv, writing_output
from runtime.flags import Bounds, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, GAMES, MINUTES, EpsilonGreedyPlayer, Player, play_protocol, rom_of
from wrappers import LAST_LIVE_FRAME, MAX_FRAMES_PER_GAME, STOPPING_GAMES, AtariGames, action_names, rom_name

MAX_GAMES = 1_000  # emulators side by side
PAPER = ("dqn_nature", "human", "random")
PAPER_2013 = ("dqn_nips2013", "human_nips2013", "random_nips2013")
STATISTICS = ("mean", "standard_deviation", "minimum", "median", "maximum", "interval_low", "interval_high")
SHOWN = (
    *("game", "games", *STATISTICS, "mean_first_life", "mean_length_seconds", "dqn_nature", "dqn_nips2013"),
    *("human", "random", "normalised", "cut", "state_dict"),
)
HEADINGS = (
    *("game", "games", "mean", "sd", "min", "median", "max", "95% from", "to", "first life", "seconds", "DQN"),
    *("DQN 2013", "human", "random", "normalised", "cut", "state dict"),
)
EMULATOR_SEEDS = 1  # names the stream of seeds that the emulators draw from; the player has its own


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean score: percentiles of the means of 10,000 resamples, always the same ones."""
    from scipy import stats  # type: ignore[import-untyped]  # 0.7 s to load, which --help need not wait for

    if len(scores) == 1:  # SciPy refuses to resample a single score
        return float(scores[0]), float(scores[0])
    generator = np.random.default_rng(0)
    result = stats.bootstrap((scores,), np.mean, method="percentile", n_resamples=10_000, rng=generator)
    low, high = result.confidence_interval
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


def other_condition(rom: str, rules: GameOptions, config: EvaluationConfig) -> str:
    """In what the games are not those of the scores they would be compared with; empty where they are."""
    differing = {
        f"epsilon {config.epsilon:g}": config.epsilon != EPSILON,
        f"{config.minutes:g} minutes": config.minutes not in (MINUTES, LONG_MINUTES),
        f"{rules.frames_per_step} frames per step": rules.frames_per_step != PAPER_OPTIONS.frames_per_step,
        f"sticky actions {rules.sticky_actions:g}": rules.sticky_actions != PAPER_OPTIONS.sticky_actions,
        f"{len(rules.actions)} actions": bool(rules.actions) and {*rules.actions} != {*action_names(rom)},
    }
    return ", ".join(what for what, differs in differing.items() if differs)


def play(rom: str, network: QNetwork | None, config: EvaluationConfig) -> list[FinishedGame]:
    """The games of the protocol, one per emulator; without a network by random actions and the paper's rules."""
    rules, limit_frames = network.rules if network else PAPER_OPTIONS, round(config.minutes * FRAMES_PER_MINUTE)
    with (
        closing(AtariGames(rom, config.games, rules, max_frames_per_game=limit_frames)) as games,
        tqdm(total=config.games, desc=f"games of {display_name(rom)}", leave=False, disable=None) as bar,
    ):
        generator = np.random.default_rng(config.seed)
        player: Player = lambda states: generator.integers(games.num_actions, size=len(states))  # noqa: E731
        if network:
            player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=config.seed)
        seeds = config.emulator_seeds()
        played = play_protocol(player, games, seed=seeds, watch=lambda done: bar.update(done - bar.n) or True)
    assert played is not None  # nobody stopped it
    return played


def evaluate(name: str, rom: str, network: QNetwork | None, config: EvaluationConfig) -> dict[str, Any]:
    """Play the protocol; returns a row, columns to values, None where the papers have none of this condition."""
    played, rules, paper = play(rom, network, config), network.rules if network else PAPER_OPTIONS, paper_scores(rom)
    scores, lengths = np.array([game.score for game in played]), np.array([game.length_steps for game in played])
    low, high = bootstrap_interval(scores)
    stopped = lengths * rules.frames_per_step > LAST_LIVE_FRAME if rom in STOPPING_GAMES else np.zeros(1)
    row: dict[str, Any] = {
        "state_dict": name,
        "game": rom,
        "games": config.games,
        "mean": float(scores.mean()),
        "standard_deviation": float(scores.std()),
        "minimum": float(scores.min()),
        "median": float(np.median(scores)),
        "maximum": float(scores.max()),
        "interval_low": low,
        "interval_high": high,
        **dict.fromkeys((*PAPER, "normalised")),
        "cut": sum(game.cut for game in played),
        "mean_first_life": float(np.mean([game.first_life_score for game in played])),
        "mean_length_steps": float(lengths.mean()),
        "mean_length_seconds": float(lengths.mean() / rules.steps_per_second),
        **dict.fromkeys(PAPER_2013),
        "minutes": config.minutes,
        "other_condition": other_condition(rom, rules, config),
        "stopped": int(stopped.sum()),
    }
    if paper and not row["other_condition"]:
        if config.minutes == MINUTES:
            row |= {column: getattr(paper, column) for column in (*PAPER, *PAPER_2013)}
        row |= {"human": paper.human_of(config.minutes), "random": paper.random}
        row["normalised"] = paper.normalised(float(scores.mean()), config.minutes)
    return row


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text, a line for each; '-' where a paper has no score of the game in this condition."""

    def cell(row: dict[str, Any], column: str) -> str:
        value = row[column]
        if column == "normalised":
            return row["other_condition"] or "-" if value is None else f"{value:.0f}%"
        return f"{value:,.1f}" if isinstance(value, float) else "-" if value is None else str(value)

    lines = [HEADINGS, *([cell(row, column) for column in SHOWN] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.rjust, line, widths)) for line in lines)


def footnotes(rows: list[dict[str, Any]], config: EvaluationConfig) -> list[str]:
    """What must be known of the numbers in the table, a line each."""
    notes = []
    if any(row["cut"] for row in rows):
        notes.append(f"cut: games not over after {config.minutes:g} minutes; they count with the score so far")
    if stopped := ", ".join(f"{row['stopped']} of {row['game']}" for row in rows if row["stopped"]):
        notes.append(f"games that went beyond frame {LAST_LIVE_FRAME:,}, where they can stop responding: {stopped}")
    if any(row["other_condition"] for row in rows):
        notes.append("normalised: only where the games were played as the paper's were")
    elif config.minutes == LONG_MINUTES:
        notes.append(f"normalised: by the human's score in {LONG_MINUTES} minutes; the paper's DQN played {MINUTES}")
    return notes


def main() -> None:
    config = parse(EvaluationConfig)
    config.check()
    entrants: list[tuple[str, str, QNetwork | None]] = [("random", rom_name(game), None) for game in config.game]
    for path in config.state_dict:  # all of them sound before the first plays
        network = load_network(path)
        entrants.append((str(path), rom_of(path, network), network))
    rows = [evaluate(*entrant, config) for entrant in entrants]
    if config.csv:
        write_csv(config.csv, [*rows[0]], rows)
    if config.json:
        epsilon = 1.0 if config.random else config.epsilon
        result = {"epsilon": epsilon, "minutes": config.minutes, "seed": config.seed, "rows": rows}
        with writing_output(config.json) as temporary:
            temporary.write_text(json.dumps(result, indent=2) + "\n")
    print(table(rows), *footnotes(rows, config), sep="\n")


if __name__ == "__main__":
    exit_with(main, smaller="--games")
