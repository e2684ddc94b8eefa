"""Film a trained network at play: python trained_model_video_generation.py --state-dict model.pt"""

from runtime.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import count, islice, repeat
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from PIL import Image

from atari import MAX_EMULATOR_SEED, display_name
from model import QNetwork
from runtime.files import check_new_folder, check_output, failing_clearly, making_folder
from runtime.flags import Bounds, Count, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, RenderedStep, open_game, rendered_steps
from viewing.film import write_film
from viewing.filmed_game import FilmedGame
from viewing.panel import SCALE, Panel, grid_picture

GIF_SECONDS = 15  # a frame per agent step
GIF_SCALE = 2
GRID_WIDTH, GIF_GRID_WIDTH = 1280, 640
STOPPED = "before the end: no film was written"

# Agent steps of a game, with the Q-values (num_actions,) float32 and the screens that are filmed.
Scene = Iterator[tuple[RenderedStep, np.ndarray, list[np.ndarray]]]


@dataclass
class FilmConfig:
    """Film a trained network at play: every emulator frame in colour, 60 per second, next to what the network sees."""

    state_dict: Path
    """The network: a state dict that a training run wrote, such as runs/.../model.pt. It knows its game."""
    episodes: Count = 1
    """Games to film, one after the other, each from another seed; a game ends after 5 minutes at the latest."""
    grid: Annotated[int | None, Bounds(2, 64)] = None
    """Film so many games side by side, each from another seed, until the last one ends; those that ended are dimmed."""
    epsilon: Probability = EPSILON
    """Probability of a random action (paper, evaluation: 0.05)."""
    seed: Annotated[int, Bounds(0, MAX_EMULATOR_SEED - 1)] = 0
    """Seed of the first game and of its random actions; the next game has the next seed."""
    output: Path | None = None
    """The film. Default: <game>.mp4, or <game>.gif, in the current folder."""
    plain: bool = False
    """The game alone, without the panel of Q-values and frames at its side."""
    gif: bool = False
    """A short, small GIF for a README: the 15 seconds with the most points of all these games; a grid's first 15."""
    from_seconds: Annotated[float | None, tyro.conf.arg(name="from", metavar="SECONDS")] = None
    """Start so many seconds of play into the first game, or each of a grid; default: 0, a GIF's best moments."""
    frames: Path | None = None
    """A new or empty folder for PNG files of each emulator screen and each state (four frames) that is filmed.
    game_001/screen_000000.png, game_001/state_000000.png and so on; with --gif those of its 15 seconds, all screens."""

    def check(self) -> None:
        """Raise `UsageError` for flags out of bounds, or that contradict each other."""
        check_bounds(self)
        longest = 60 * MINUTES  # of a game
        if self.from_seconds is not None and not 0 <= self.from_seconds < longest:
            raise UsageError(f"--from must be from 0 to below {longest}, got {self.from_seconds}")
        if self.gif and self.from_seconds is not None and self.episodes > 1:
            raise UsageError("--gif --from films one game: leave --episodes out, and choose the game by --seed")
        if self.grid and (self.episodes > 1 or self.plain):
            raise UsageError("--grid films its games at once and without panels: leave --episodes and --plain out")

    def path(self, rom: str) -> Path:
        """Where the film goes; raises `UsageError` unless it, and the folder of --frames, can be written there."""
        suffix = ".gif" if self.gif else ".mp4"
        path = self.output or Path(rom + suffix)
        check_output(path, suffix)
        if self.frames:
            if self.frames.resolve() in (path.resolve(), path.resolve().parent):
                raise UsageError(f"--frames {self.frames} is where the film {path} goes; name another folder")
            check_new_folder(self.frames)
        return path


def make_film(config: FilmConfig) -> Path:
    """Film as `config` says; returns the path. Raises `UsageError`, at a signal KeyboardInterrupt: nothing is left."""
    config.check()
    network = load_network(config.state_dict)
    with ExitStack() as stack:
        games = [stack.enter_context(closing(open_game(config.state_dict, network))) for _ in range(config.grid or 1)]
        path, rate = config.path(games[0].rom), games[0].rules.steps_per_second
        stop = stack.enter_context(StopSignal())
        folder = None
        if config.frames:
            stack.enter_context(failing_clearly(config.frames))
            folder = stack.enter_context(making_folder(config.frames))
        filming = Filming(config, network, games, stop, folder)
        number, start_seconds = 0, config.from_seconds or 0.0
        if config.gif and config.from_seconds is None and not config.grid:
            scores = ([0.0, *(rendered.score for rendered, *_ in filming.play(n))] for n in range(config.episodes))
            number, first_step = best_moments(scores, round(GIF_SECONDS * rate))
            start_seconds = first_step / rate
        pictures = filming.draw_grid(start_seconds) if config.grid else filming.draw_games(number, start_seconds)
        if config.gif:
            frames = write_film(path, islice(pictures, round(GIF_SECONDS * rate)), rate)
        else:
            frames = write_film(path, pictures)
    moments = f": game {number + 1}, from second {start_seconds:.1f}" if config.gif and not config.grid else ""
    print(f"{path}: {frames:,} frames, {path.stat().st_size / 1e6:.1f} MB{moments}")
    return path


def best_moments(games: Iterable[list[float]], length_steps: int) -> tuple[int, int]:
    """The game and its agent step where the most points begin: the earliest of several, or (0, 0).

    games: of each the score before its first agent step and after each one.
    """
    best, most = (0, 0), 0.0
    for number, scores in enumerate(games):
        length = min(length_steps, len(scores) - 1)
        gains = np.subtract(scores[length:], scores[:-length])
        if gains.max() > most:
            most, first = gains.max(), int(gains.argmax())
            # It ends with its last point, and the few that start next hold the same: the middle one shows what follows.
            same = int((np.append(gains[first:], 0) < most).argmax())
            best = number, first + same // 2
    return best


@dataclass
class Filming:
    """Plays the games of a film, and draws its pictures; game 0 is the first, and each is the same every time."""

    config: FilmConfig
    network: QNetwork
    games: list[FilmedGame]  # one, or one for each that is seen at once
    stop: StopSignal
    folder: Path | None  # where what is filmed is kept as PNG files

    def play(self, number: int, start_seconds: float = 0.0) -> Iterator[tuple[RenderedStep, np.ndarray, bool]]:
        """The agent steps of a game, their Q-values (num_actions,) float32, and whether the start is reached.

        Raises `UsageError` where the game ends before it, and KeyboardInterrupt at a signal.
        """
        seed, rate = (self.config.seed + number) % MAX_EMULATOR_SEED, self.games[0].rules.steps_per_second
        player = EpsilonGreedyPlayer(self.network, epsilon=self.config.epsilon, seed=seed)
        game = self.games[number % len(self.games)]
        for step, rendered in enumerate(rendered_steps(player, game, seed=seed)):
            if self.stop:
                raise KeyboardInterrupt(STOPPED)
            yield rendered, player.q_values[0], step / rate >= start_seconds
        if step / rate < start_seconds:
            what = f"--from {start_seconds:g}: game {number + 1} ends after {step / rate:.1f} seconds of play"
            raise UsageError(f"{what}; start earlier")
        note = f" after {MINUTES} minutes, the paper's limit; the game is not over" if rendered.cut else ""
        print(f"game {number + 1}, seed {seed}: score {rendered.score:,.0f}{note}")

    def scene(self, number: int, start_seconds: float) -> Scene:
        """A game with what is filmed of it: from that second of play on all, for a GIF one screen per agent step."""
        screen_numbers, state_numbers = count(), count()
        for rendered, q_values, filmed in self.play(number, start_seconds):
            if filmed and self.folder:
                folder = self.folder / f"game_{number + 1:03}"
                save(folder, "screen", screen_numbers, rendered.screens)
                save(folder, "state", state_numbers, [np.hstack([*rendered.state])])
            # Many games draw a sprite in every other frame only: where frames are left out, take the maximum of two.
            screens = [np.maximum.reduce(rendered.screens[-2:])] if self.config.gif else rendered.screens
            yield rendered, q_values, screens if filmed else []

    def draw_games(self, first: int, start_seconds: float) -> Iterator[np.ndarray]:
        """The pictures of one game after the other, or for a GIF of one, each with its panel at its side."""
        config, game = self.config, self.games[0]
        name, rate, scale = display_name(game.rom), game.rules.steps_per_second, GIF_SCALE if config.gif else SCALE
        for number in [first] if config.gif else range(config.episodes):
            panel = Panel(name, game.action_names, steps_per_second=rate, scale=scale, plain=config.plain)
            for rendered, q_values, screens in self.scene(number, start_seconds if number == first else 0.0):
                panel.update(rendered.state, q_values, rendered.action, rendered.score)  # it follows the whole game
                yield from map(panel.picture, screens)

    def draw_grid(self, start_seconds: float) -> Iterator[np.ndarray]:
        """The pictures of games side by side, until the last one has ended."""

        def tiles(number: int) -> Iterator[tuple[np.ndarray, str, bool]]:
            for rendered, _, screens in self.scene(number, start_seconds):
                caption = f"game {number + 1}: {rendered.score:,.0f}"
                yield from ((screen, caption, False) for screen in screens)
            yield from repeat((screens[-1] // 3, f"{caption}, ended", True))

        for row in zip(*map(tiles, range(len(self.games))), strict=True):
            screens, captions, ended = zip(*row, strict=True)
            if all(ended):
                return
            yield grid_picture(screens, captions, GIF_GRID_WIDTH if self.config.gif else GRID_WIDTH)


def save(folder: Path, name: str, numbers: Iterator[int], pictures: list[np.ndarray]) -> None:
    """Save pictures as `name`_000000.png and so on."""
    folder.mkdir(exist_ok=True)
    for picture in pictures:
        Image.fromarray(picture).save(folder / f"{name}_{next(numbers):06}.png")


def main() -> None:
    make_film(parse(FilmConfig))


if __name__ == "__main__":
    exit_with(main, smaller="--grid")
