"""The one episode loop, and the paper's evaluation protocol on top of it."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from model import HISTORY_FRAMES, QNetwork, draw_exploration
from wrappers import Games, Step

GAMES = 30  # paper, Methods: Evaluation procedure
EPSILON = 0.05
MINUTES = 5
FRAMES_PER_MINUTE = 60 * 60

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


def first_scores(moments: Iterable[Moment], num_envs: int) -> np.ndarray:
    """The score of each environment's first game, (num_envs,) float64; NaN where it was not played to its end."""
    scores = np.full(num_envs, np.nan)
    for moment in moments:
        for game in moment.step.finished:
            if np.isnan(scores[game.environment]):
                scores[game.environment] = game.score
    return scores
