"""The one episode loop, and the paper's evaluation protocol on top of it."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch

from model import HISTORY_FRAMES, QNetwork, draw_exploration
from wrappers import Games, Step

GAMES = 30  # paper, Methods: Evaluation procedure
EPSILON = 0.05
MINUTES = 5
FRAMES_PER_MINUTE = 60 * 60

Override = Callable[[np.ndarray], np.ndarray]


@dataclass
class Moment:
    """One agent step of play: the states (num_envs, 4, 84, 84) uint8, their Q-values, the actions, what came of it."""

    states: np.ndarray
    q_values: np.ndarray
    actions: np.ndarray
    step: Step


def play_games(
    network: QNetwork, games: Games, *, seed: int, epsilon: float, override: Override | None = None
) -> Iterator[Moment]:
    """Play from new games on, a moment per agent step, until every environment has finished its first game.

    Environments that are done play on beside the others. A function of the network, seed and epsilon, as long as
    `override`, which may replace the actions (num_envs,) before they are sent, is not given.
    """
    generator = np.random.default_rng(seed)
    states = _stack(None, games.reset(seed), np.ones(games.num_envs, np.bool_))
    playing = np.ones(games.num_envs, np.bool_)
    while playing.any():
        q_values = _q_values(network, states)
        explore, actions = draw_exploration(games.num_envs, games.num_actions, epsilon, generator)
        actions = np.where(explore, actions, q_values.argmax(axis=1))
        if override is not None:
            actions = override(actions)
        games.send(actions)
        step = games.receive()
        yield Moment(states, q_values, actions, step)
        states = _stack(states, step.frames, step.game_starts)
        playing &= ~step.game_starts


def first_scores(moments: Iterator[Moment], num_envs: int) -> np.ndarray:
    """The score of each environment's first game, (num_envs,) float64."""
    scores = np.full(num_envs, np.nan)
    for moment in moments:
        for game in moment.step.finished:
            if np.isnan(scores[game.environment]):
                scores[game.environment] = game.score
    return scores


def _stack(states: np.ndarray | None, frames: np.ndarray, game_starts: np.ndarray) -> np.ndarray:
    """The states (num_envs, 4, 84, 84) that follow: the newest frame last, zeros before a game's start."""
    stacked = np.zeros((len(frames), HISTORY_FRAMES, *frames.shape[1:]), np.uint8)
    if states is not None:
        stacked[:, :-1] = np.where(game_starts[:, None, None, None], 0, states[:, 1:])
    stacked[:, -1] = frames
    return stacked


@torch.no_grad()
def _q_values(network: QNetwork, states: np.ndarray) -> np.ndarray:
    device = next(network.parameters()).device
    return np.asarray(network(torch.from_numpy(states).to(device)).cpu().numpy())
