"""Film a trained network at play: python trained_model_video_generation.py --state-dict model.pt"""

from machine.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np

from atari import FRAMES_PER_SECOND, MAX_EMULATOR_SEED, display_name
from machine.files import check_output
from machine.flags import Bounds, Count, Probability, check_bounds, parse
from model import QNetwork, load_network
from showing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, Shot, open_game, shots
from showing.film import GIF_FRAMES_PER_SECOND, KINDS, Film, filming
from showing.panel import SCALE, Panel
from showing.window import Window
from wrappers import FilmedGame

GIF_SECONDS = 15
GIF_FRAMES = GIF_SECONDS * GIF_FRAMES_PER_SECOND
GIF_SCALE = 2


@dataclass
class FilmConfig:
    """Film a trained network at play: every emulator frame in colour, 60 per second, beside what the network sees."""

    state_dict: Path
    """The network: a state dict that a training run wrote, such as runs/.../model.pt. It knows its game."""
    episodes: Count = 1
    """Games to film, one after the other, each from another seed; a game ends after 5 minutes at the latest."""
    epsilon: Probability = EPSILON
    """Probability of a random action (paper, evaluation: 0.05)."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the first game and of its random actions; the next game has the next seed."""
    output: Path | None = None
    """The film. Default: <game>.mp4, or <game>.gif, in the current folder."""
    plain: bool = False
    """The game alone, without the panel of Q-values and frames at its side."""
    gif: bool = False
    """A short, small GIF for a README: the first 15 seconds, 15 frames per second."""
    show: bool = False
    """Show it in a window too, at the game's speed."""

    def check(self) -> None:
        check_bounds(self)
        suffix = ".gif" if self.gif else ".mp4"
        if self.output and self.output.suffix != suffix:
            raise UsageError(f"--output {self.output} must end in {suffix}" + ("" if self.gif else ", or add --gif"))
        if self.output:
            check_output(self.output, KINDS[suffix])


def make_film(config: FilmConfig) -> Path:
    """Film as `config` says; returns the path. Raises `UsageError`, at a signal KeyboardInterrupt: then nothing is."""
    config.check()
    network = load_network(config.state_dict)
    game = open_game(config.state_dict, network)
    path = config.output or Path(f"{game.rom}.gif" if config.gif else f"{game.rom}.mp4")
    with StopSignal() as stop, closing(game), filming(path) as film:
        window = Window(f"{display_name(game.rom)}, filmed") if config.show else None
        for number in range(config.episodes):
            if config.gif and film.frames == GIF_FRAMES:
                break
            last = film_game(config, network, game, number, film, window, stop)
            limit = f"{MINUTES} minutes, the paper's limit" if last.cut else f"the {GIF_SECONDS} seconds of a GIF"
            note = "" if last.over and not last.cut else f" after {limit}; the game is not over"
            print(f"game {number + 1}, seed {config.seed + number}: score {last.score:,.0f}{note}")
    print(f"{path}: {film.frames:,} frames, {path.stat().st_size / 1e6:.1f} MB")
    return path


def film_game(
    config: FilmConfig,
    network: QNetwork,
    game: FilmedGame,
    number: int,
    film: Film,
    window: Window | None,
    stop: StopSignal,
) -> Shot:
    """Film one game, or as much of it as a GIF holds; returns its last shot."""
    seed = (config.seed + number) % MAX_EMULATOR_SEED
    player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=seed)
    scale = GIF_SCALE if config.gif else SCALE
    panel = Panel(display_name(game.rom), game.action_names, scale=scale, plain=config.plain)
    for shot in shots(player, game, seed=seed):
        panel.update(shot.state, player.q_values[0], shot.action, shot.score)
        # Many games draw a sprite in every other frame only: where frames are left out, take the maximum of two.
        screens = [np.maximum.reduce(shot.screens[-2:])] if config.gif else shot.screens
        for screen in screens:
            picture = panel.picture(screen)
            film.add(picture)
            if stop or (window and "q" in window.pressed()):
                raise KeyboardInterrupt("before the end: no film was written")
            if window:
                window.show(picture, GIF_FRAMES_PER_SECOND if config.gif else FRAMES_PER_SECOND)
        if shot.over or (config.gif and film.frames == GIF_FRAMES):
            break
    return shot


def main() -> None:
    make_film(parse(FilmConfig))


if __name__ == "__main__":
    exit_with(main)
