"""The one episode loop, its players, and the paper's evaluation protocol: what training and every script play with."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from atari import FRAMES_PER_MINUTE, HISTORY_FRAMES, PAPER_MINUTES, FinishedGame, Step
from model import QNetwork
from q_agent import draw_exploration
from runtime.exits import UsageError
from viewing.filmed_game import FilmedGame, Games
from wrappers import choose_actions, rom_name

GAMES = 30  # paper, Methods: Evaluation procedure
EPSILON = 0.05
MINUTES = PAPER_MINUTES

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
class PlayedStep:
    """One agent step of play: the states (num_envs, 4, 84, 84) uint8, the actions taken there, what came of them."""

    states: np.ndarray
    actions: np.ndarray
    step: Step


def play_games(player: Player, games: Games, *, seed: int | np.ndarray) -> Iterator[PlayedStep]:
    """Play new games, a step at a time, until each has finished its first one; those that are done play on."""
    frames = games.reset(seed)
    states = np.zeros((games.num_envs, HISTORY_FRAMES, *frames.shape[1:]), np.uint8)
    states[:, -1] = frames
    playing = np.ones(games.num_envs, np.bool_)
    while playing.any():
        actions = player(states)
        games.send(actions)
        step = games.receive()
        yield PlayedStep(states, actions, step)
        # The newest frame comes last; what lies before a game's start is zeros.
        older = np.where(step.game_starts[:, None, None, None], np.uint8(0), states[:, 1:])
        states = np.concatenate([older, step.frames[:, None]], axis=1)
        playing &= ~step.game_starts


def play_protocol(
    player: Player, games: Games, *, seed: int | np.ndarray, watch: Callable[[int], bool] = lambda finished: True
) -> list[FinishedGame] | None:
    """One game per environment, in their order, from a seed or one of each as `AtariGames.reset` takes them.

    After each agent step `watch` is told how many games are finished; when it says False, None is returned at once.
    """
    first: dict[int, FinishedGame] = {}
    for played in play_games(player, games, seed=seed):
        for game in played.step.finished:
            first.setdefault(game.environment, game)  # an environment that is done plays on; its first game counts
        if not watch(len(first)):
            return None
    return [first[environment] for environment in range(games.num_envs)]


def rom_of(path: Path, network: QNetwork) -> str:
    """The ROM that the network in `path` plays; raises `UsageError` where it is not here, or has other actions."""
    try:
        rom = rom_name(network.game)
        names, _ = choose_actions(rom, network.rules.actions)
    except UsageError as error:
        raise UsageError(f"{path} was trained on a game that is not here: {error}") from None
    if network.num_actions != len(names):
        why = "it was trained on another game or with another action set"
        raise UsageError(f"{path} is for {network.num_actions} actions, and {rom} has {len(names)}: {why}")
    return rom


def open_game(path: Path, network: QNetwork) -> FilmedGame:
    """The game of the network in `path`, cut at the paper's 5 minutes; raises `UsageError` where they do not fit."""
    return FilmedGame(rom_of(path, network), network.rules, max_frames_per_game=MINUTES * FRAMES_PER_MINUTE)


@dataclass
class RenderedStep:
    """One agent step to look at.

    screens: the emulator frames (210, 160, 3) uint8 that it showed, before the first step also those of the reset.
    state: (4, 84, 84) uint8, what the player saw. action: what it did. score: the game's so far. cut: the game has
    ended at the 5 minutes of `open_game`, and is not over.
    """

    screens: list[np.ndarray]
    state: np.ndarray
    action: int
    score: float
    cut: bool


def rendered_steps(player: Player, game: FilmedGame, *, seed: int) -> Iterator[RenderedStep]:
    """Play one game through the episode loop of the evaluation, and keep every emulator frame."""
    score = 0.0
    for played in play_games(player, game, seed=seed):
        step = played.step
        score += float(step.rewards[0])
        cut = bool(step.game_starts[0] and not step.terminals[0])
        yield RenderedStep(game.take_screens(), played.states[0], int(played.actions[0]), score, cut)
