"""Film a trained network at play: python trained_model_video_generation.py --state-dict model.pt"""

from machine.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: Ctrl-C is one line now
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from atari import FRAMES_PER_SECOND, MAX_EMULATOR_SEED, display_name
from machine.files import check_output
from machine.flags import Bounds, Count, Probability, check_bounds, parse
from model import QNetwork, load_network
from showing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, Shot, open_game, shots
from showing.film import KINDS, Film, filming
from showing.panel import SCALE, Panel
from showing.window import Window
from wrappers import FilmedGame

GIF_SECONDS = 15  # a frame per agent step
GIF_SCALE = 2
STOPPED = "before the end: no film was written"

Play = Iterator[tuple[Shot, np.ndarray]]  # agent steps of a game, with the Q-values (num_actions,) float32


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
    """A short, small GIF for a README: the 15 seconds with the most points of all these games."""
    from_seconds: Annotated[float | None, tyro.conf.arg(name="from", metavar="SECONDS")] = None
    """Start so many seconds of play into the first game; default: at its start, and a GIF at the best moments."""
    show: bool = False
    """Show it in a window too, at the game's speed."""

    def check(self) -> None:
        check_bounds(self)
        bounds = Bounds(0, 60 * MINUTES, with_high=False)  # as long as a game may last
        if self.from_seconds is not None and not bounds.hold(self.from_seconds):
            raise UsageError(f"--from {self.from_seconds} cannot be: it must be {bounds}")
        if self.gif and self.from_seconds is not None and self.episodes > 1:
            raise UsageError("--gif --from films one game: leave --episodes out, and choose the game by --seed")
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
    rate = game.rules.steps_per_second
    with StopSignal() as stop, closing(game), filming(path, rate) as film:
        window = Window(f"{display_name(game.rom)}, filmed") if config.show else None
        play = partial(play_game, config, network, game, stop)
        scenes = [(0, config.from_seconds or 0.0), *((number, 0.0) for number in range(1, config.episodes))]
        if config.gif and config.from_seconds is None:
            scenes = [best_moments(config, play, rate)]
        for number, start_seconds in scenes:
            last = film_game(config, game, play(number), film, window, start_seconds)
            if not config.gif:
                say_score(config, number, last)
    made = f"{path}: {film.frames:,} frames, {path.stat().st_size / 1e6:.1f} MB"
    if config.gif:
        end_seconds = start_seconds + film.frames / rate
        made += f": game {number + 1}, seed {config.seed + number}, seconds {start_seconds:.1f} to {end_seconds:.1f}"
    print(made)
    return path


def play_game(config: FilmConfig, network: QNetwork, game: FilmedGame, stop: StopSignal, number: int) -> Play:
    """Play one of the games, 0 for the first, the same every time; KeyboardInterrupt at a signal."""
    seed = (config.seed + number) % MAX_EMULATOR_SEED
    player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=seed)
    for shot in shots(player, game, seed=seed):
        if stop:
            raise KeyboardInterrupt(STOPPED)
        yield shot, player.q_values[0]


def best_moments(config: FilmConfig, play: Callable[[int], Play], steps_per_second: float) -> tuple[int, float]:
    """The game and the second in it where the GIF with the most points begins: the earliest of several, or (0, 0.0)."""
    best, most = (0, 0.0), 0.0
    for number in range(config.episodes):
        scores = [0.0]
        for shot, _ in play(number):
            scores.append(shot.score)
        say_score(config, number, shot)
        length = min(round(GIF_SECONDS * steps_per_second), len(scores) - 1)
        gains = np.subtract(scores[length:], scores[:-length])
        if gains.max() > most:
            most, first = gains.max(), int(gains.argmax())
            # It ends with its last point, and the few that start next hold the same: the middle one shows what follows.
            same = int((np.append(gains[first:], 0) < most).argmax())
            best = number, (first + same // 2) / steps_per_second
    return best


def say_score(config: FilmConfig, number: int, last: Shot) -> None:
    note = f" after {MINUTES} minutes, the paper's limit; the game is not over" if last.cut else ""
    print(f"game {number + 1}, seed {config.seed + number}: score {last.score:,.0f}{note}")


def film_game(
    config: FilmConfig, game: FilmedGame, play: Play, film: Film, window: Window | None, start_seconds: float
) -> Shot:
    """Film a game from that second of play on, or as much of it as a GIF holds; returns its last shot."""
    scale, rate = GIF_SCALE if config.gif else SCALE, game.rules.steps_per_second
    name = display_name(game.rom)
    panel = Panel(name, game.action_names, steps_per_second=rate, scale=scale, plain=config.plain)
    for step, (shot, q_values) in enumerate(play):
        panel.update(shot.state, q_values, shot.action, shot.score)
        seconds = step / rate
        if seconds < start_seconds:
            continue  # the panel follows the whole game
        # Many games draw a sprite in every other frame only: where frames are left out, take the maximum of two.
        screens = [np.maximum.reduce(shot.screens[-2:])] if config.gif else shot.screens
        for screen in screens:
            picture = panel.picture(screen)
            film.add(picture)
            if window and "q" in window.pressed():
                raise KeyboardInterrupt(STOPPED)
            if window:
                window.show(picture, rate if config.gif else FRAMES_PER_SECOND)
        if config.gif and film.frames == round(GIF_SECONDS * rate):
            break
    if film.frames == 0:
        raise UsageError(f"--from {start_seconds:g}: the game ends after {seconds:.1f} seconds of play; start earlier")
    return shot


def main() -> None:
    make_film(parse(FilmConfig))


if __name__ == "__main__":
    exit_with(main)
