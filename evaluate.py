"""The one episode loop, and the paper's evaluation protocol on top of it."""

import csv
import io
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro
from tqdm import tqdm

from checkpoint import write_text
from errors import UsageError, exit_with
from model import HISTORY_FRAMES, QNetwork, draw_exploration, load_network
from nature_scores import paper_scores
from wrappers import MAX_EMULATOR_SEED, MAX_FRAMES_PER_GAME, AtariGames, Games, Step

GAMES = 30  # paper, Methods: Evaluation procedure
EPSILON = 0.05
MINUTES = 5
FRAMES_PER_MINUTE = 60 * 60
MAX_MINUTES = MAX_FRAMES_PER_GAME // FRAMES_PER_MINUTE
MAX_GAMES = 1_000  # emulators side by side
BOOTSTRAP_RESAMPLES = 10_000
COLUMNS = (
    "state_dict",
    "game",
    "games",
    "mean",
    "standard_deviation",
    "minimum",
    "median",
    "maximum",
    "interval_low",
    "interval_high",
    "dqn_nature",
    "human",
    "random",
    "normalised",
)

# A player takes states (num_envs, 4, 84, 84) uint8 and gives an action for each, (num_envs,) int64.
Player = Callable[[np.ndarray], np.ndarray]


class EpsilonGreedyPlayer:
    """A network that plays: mostly the action of the largest Q-value, a random one with probability epsilon."""

    def __init__(self, network: QNetwork, *, epsilon: float, seed: int):
        self.network = network
        self.epsilon = epsilon
        self.q_values = np.zeros((0, network.num_actions), np.float32)
        """The Q-values, (num_envs, num_actions) float32, of the last states it was asked about."""
        self._device = next(network.parameters()).device
        self._generator = np.random.default_rng(seed)

    @torch.no_grad()
    def __call__(self, states: np.ndarray) -> np.ndarray:
        """Actions (num_envs,) int64 in states (num_envs, 4, 84, 84) uint8."""
        self.q_values = self.network(torch.from_numpy(states).to(self._device)).cpu().numpy()
        explore, actions = draw_exploration(*self.q_values.shape, self.epsilon, self._generator)
        return np.where(explore, actions, self.q_values.argmax(axis=1))


@dataclass
class Moment:
    """One agent step of play: the states (num_envs, 4, 84, 84) uint8, the actions taken there, what came of them."""

    states: np.ndarray
    actions: np.ndarray
    step: Step


def play_games(player: Player, games: Games, *, seed: int) -> Iterator[Moment]:
    """Play from new games on, a moment per agent step, until every environment has finished its first game.

    Environments that are done play on beside the others.
    """
    frames = games.reset(seed)
    states = np.zeros((games.num_envs, HISTORY_FRAMES, *frames.shape[1:]), np.uint8)
    states[:, -1] = frames
    playing = np.ones(games.num_envs, np.bool_)
    while playing.any():
        actions = player(states)
        games.send(actions)
        step = games.receive()
        yield Moment(states, actions, step)
        # The newest frame comes last; what lies before a game's start is zeros.
        older = np.where(step.game_starts[:, None, None, None], np.uint8(0), states[:, 1:])
        states = np.concatenate([older, step.frames[:, None]], axis=1)
        playing &= ~step.game_starts


def play_protocol(
    player: Player, games: Games, *, seed: int, watch: Callable[[int], bool] = lambda finished: True
) -> np.ndarray | None:
    """The scores (num_envs,) float64 of one game per environment.

    After each agent step `watch` is told how many games are finished; when it says False, None is returned at once.
    """
    scores = np.full(games.num_envs, np.nan)
    for moment in play_games(player, games, seed=seed):
        for game in moment.step.finished:
            if np.isnan(scores[game.environment]):  # an environment that is done plays on; its first game counts
                scores[game.environment] = game.score
        if not watch(int(np.isfinite(scores).sum())):
            return None
    return scores


def bootstrap_interval(scores: np.ndarray) -> tuple[float, float]:
    """The 95% interval of the mean score: percentiles of the means of 10,000 resamples, always the same ones."""
    generator = np.random.default_rng(0)
    means = generator.choice(scores, (BOOTSTRAP_RESAMPLES, len(scores))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


@dataclass
class Config:
    """Play the paper's evaluation protocol with saved networks and compare the scores with the paper's."""

    state_dict: tuple[Path, ...]
    """One or more state dict files that a training run wrote; a row of the table for each."""
    games: int = GAMES
    """Games to play, side by side, each from another random start (paper: 30)."""
    epsilon: float = EPSILON
    """Probability of a random action (paper: 0.05)."""
    minutes: float = MINUTES
    """Limit of each game in minutes of play at 60 frames per second (paper: 5)."""
    seed: int = 0
    """Seed of the emulators and of the random actions; another seed, other games."""
    csv: Path | None = None
    """Also write the table to this file."""

    def check(self) -> None:
        """Raise `UsageError` for a value that cannot be."""
        if not self.state_dict:
            raise UsageError("--state-dict names no file; name one or more that a training run wrote")
        if not 1 <= self.games <= MAX_GAMES:
            raise UsageError(f"--games {self.games} cannot be: it must be from 1 to {MAX_GAMES}")
        if not 0 <= self.epsilon <= 1:
            raise UsageError(f"--epsilon {self.epsilon} cannot be: it must be from 0 to 1")
        if not 0 < self.minutes <= MAX_MINUTES:
            raise UsageError(f"--minutes {self.minutes} cannot be: it must be above 0 and at most {MAX_MINUTES}")
        if not 0 <= self.seed < MAX_EMULATOR_SEED:
            raise UsageError(f"--seed {self.seed} cannot be: it must be from 0 to {MAX_EMULATOR_SEED - 1}")
        if self.csv and (os.path.isdir(self.csv) or not os.path.isdir(self.csv.parent)):
            raise UsageError(f"--csv {self.csv} must name a file in a folder that is there")


def check_actions(path: Path, network: QNetwork, games: Games) -> None:
    """Raise `UsageError` when the network in `path` has another number of actions than its game."""
    if network.num_actions != games.num_actions:
        raise UsageError(
            f"{path} is for {network.num_actions} actions, and {games.rom} has {games.num_actions}: "
            "it was trained on another game or with another action set"
        )


def evaluate(path: Path, network: QNetwork, config: Config) -> dict[str, Any]:
    """Evaluate the network of a file; returns its row, `COLUMNS` to values, None where the paper has none."""
    games = AtariGames(network.game, config.games, max_frames_per_game=round(config.minutes * FRAMES_PER_MINUTE))
    try:
        check_actions(path, network, games)
        player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=config.seed)
        with tqdm(total=config.games, desc=f"{path}: games", leave=False) as bar:

            def watch(finished: int) -> bool:
                bar.update(finished - bar.n)
                return True

            scores = play_protocol(player, games, seed=config.seed, watch=watch)
    finally:
        games.close()
    assert scores is not None  # nobody stopped it
    paper = paper_scores(network.game)
    values: dict[str, Any] = {"state_dict": str(path), "game": network.game, "games": config.games}
    values |= {"mean": scores.mean(), "standard_deviation": scores.std(), "minimum": scores.min()}
    values |= {"median": np.median(scores), "maximum": scores.max()}
    values["interval_low"], values["interval_high"] = bootstrap_interval(scores)
    if paper:
        values |= {"dqn_nature": paper.dqn_nature, "human": paper.human, "random": paper.random}
        values["normalised"] = paper.normalised(float(scores.mean()))
    return {column: values.get(column) for column in COLUMNS}


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as aligned text, a line for each network; '-' where the paper has no score of the game."""
    header = (
        "game",
        "games",
        "mean",
        "sd",
        "min",
        "median",
        "max",
        "95% interval",
        "DQN",
        "human",
        "random",
        "normalised",
    )
    lines = [header]
    for row in rows:
        numbers = {name: f"{value:,.1f}" for name, value in row.items() if isinstance(value, float)}
        interval = f"{numbers['interval_low']} to {numbers['interval_high']}"
        scores = [numbers[name] for name in ("mean", "standard_deviation", "minimum", "median", "maximum")]
        paper = [numbers.get(name, "-") for name in ("dqn_nature", "human", "random")]
        normalised = "-" if row["normalised"] is None else f"{row['normalised']:.0f}%"
        lines.append((row["game"], str(row["games"]), *scores, interval, *paper, normalised))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    names = ["", *(row["state_dict"] for row in rows)]
    texts = ("  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "\n".join(f"{text}  {name}".rstrip() for text, name in zip(texts, names, strict=True))


def _write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        write_text(path, text.getvalue())
    except OSError as error:
        raise UsageError(f"--csv {path} cannot be written: {error.strerror}") from None


def main() -> None:
    """The command line."""
    config = tyro.cli(Config)
    config.check()
    networks = [load_network(path) for path in config.state_dict]  # all of them before the first is played
    rows = [evaluate(path, network, config) for path, network in zip(config.state_dict, networks, strict=True)]
    print(table(rows))
    if config.csv:
        _write_csv(config.csv, rows)


if __name__ == "__main__":
    exit_with(main)
