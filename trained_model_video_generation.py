"""Film a trained network at play: python trained_model_video_generation.py --state-dict model.pt"""

from runtime.exits import StopSignal, UsageError, exit_with  # isort: skip  # first: runtime/ says which Python is needed
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro

from atari import FRAMES_PER_SECOND, MAX_EMULATOR_SEED, display_name
from model import QNetwork
from runtime.files import check_new_folder, check_output
from runtime.flags import Bounds, Count, Probability, check_bounds, parse
from runtime.networks import load_network
from viewing.episodes import EPSILON, MINUTES, EpsilonGreedyPlayer, RenderedStep, open_game, rendered_steps
from viewing.film import Album, Film, collecting, filming
from viewing.filmed_game import FilmedGame
from viewing.panel import SCALE, Panel, Tile, grid_picture
from viewing.window import Window

GIF_SECONDS = 15  # a frame per agent step
GIF_SCALE = 2
GRID_WIDTH, GIF_GRID_WIDTH = 1280, 640
STOPPED = "before the end: no film was written"

Play = Iterator[tuple[RenderedStep, np.ndarray]]  # agent steps of a game, with the Q-values (num_actions,) float32
Scene = Iterator[tuple[RenderedStep, np.ndarray, list[np.ndarray]]]  # the same, with the screens that are filmed


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
    show: bool = False
    """Show it in a window too, at the game's speed."""

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
            check_new_folder(self.frames)
        return path


def make_film(config: FilmConfig) -> Path:
    """Film as `config` says; returns the path. Raises `UsageError`, at a signal KeyboardInterrupt: nothing is left."""
    config.check()
    network = load_network(config.state_dict)
    with ExitStack() as stack:
        games = [stack.enter_context(closing(open_game(config.state_dict, network))) for _ in range(config.grid or 1)]
        rom, rate = games[0].rom, games[0].rules.steps_per_second
        path = config.path(rom)
        stop = stack.enter_context(StopSignal())
        album = stack.enter_context(collecting(config.frames)) if config.frames else None
        film = stack.enter_context(filming(path, rate))
        window = Window(f"{display_name(rom)}, filmed") if config.show else None

        def play(number: int) -> Play:
            return play_game(config, network, games[number % len(games)], stop, number)

        shown = [(0, config.from_seconds or 0.0), *((number, 0.0) for number in range(1, config.episodes))]
        if config.gif and config.from_seconds is None and not config.grid:
            shown = [best_moments(config, play, rate)]
        for number, start_seconds in shown:
            numbers = range(number, number + len(games))
            scenes = [film_scene(config, each, play(each), rate, start_seconds, album) for each in numbers]
            pictures = draw_grid(config, scenes) if config.grid else draw_game(config, games[0], *scenes)
            take_pictures(config, pictures, rate, film, window)
    which = f": game {number + 1}, seed {config.seed + number}" if config.gif and not config.grid else ""
    when = f", seconds {start_seconds:.1f} to {start_seconds + film.frames / rate:.1f}" if config.gif else ""
    print(f"{path}: {film.frames:,} frames, {path.stat().st_size / 1e6:.1f} MB{which}{when}")
    return path


def play_game(config: FilmConfig, network: QNetwork, game: FilmedGame, stop: StopSignal, number: int) -> Play:
    """Play one of the games, 0 for the first, the same every time; KeyboardInterrupt at a signal."""
    seed = (config.seed + number) % MAX_EMULATOR_SEED
    player = EpsilonGreedyPlayer(network, epsilon=config.epsilon, seed=seed)
    for rendered in rendered_steps(player, game, seed=seed):
        if stop:
            raise KeyboardInterrupt(STOPPED)
        yield rendered, player.q_values[0]


def best_moments(config: FilmConfig, play: Callable[[int], Play], steps_per_second: float) -> tuple[int, float]:
    """The game and the second in it where the GIF with the most points begins: the earliest of several, or (0, 0.0)."""
    best, most = (0, 0.0), 0.0
    for number in range(config.episodes):
        scores = [0.0]
        for rendered, _ in play(number):
            scores.append(rendered.score)
        say_score(config, number, rendered)
        length = min(round(GIF_SECONDS * steps_per_second), len(scores) - 1)
        gains = np.subtract(scores[length:], scores[:-length])
        if gains.max() > most:
            most, first = gains.max(), int(gains.argmax())
            # It ends with its last point, and the few that start next hold the same: the middle one shows what follows.
            same = int((np.append(gains[first:], 0) < most).argmax())
            best = number, (first + same // 2) / steps_per_second
    return best


def say_score(config: FilmConfig, number: int, last: RenderedStep) -> None:
    note = f" after {MINUTES} minutes, the paper's limit; the game is not over" if last.cut else ""
    print(f"game {number + 1}, seed {config.seed + number}: score {last.score:,.0f}{note}")


def film_scene(
    config: FilmConfig, number: int, play: Play, rate: float, start_seconds: float, album: Album | None
) -> Scene:
    """A game with what is filmed of it: from that second of play on all, for a GIF one screen per agent step."""
    for step, (rendered, q_values) in enumerate(play):
        filmed = step / rate >= start_seconds
        if filmed and album:
            for screen in rendered.screens:
                album.add(f"game_{number + 1:03}/screen", screen)
            album.add(f"game_{number + 1:03}/state", np.hstack([*rendered.state]))
        # Many games draw a sprite in every other frame only: where frames are left out, take the maximum of two.
        screens = [np.maximum.reduce(rendered.screens[-2:])] if config.gif else rendered.screens
        yield rendered, q_values, screens if filmed else []
    if not filmed:
        game, seconds = f"game {number + 1}" if config.grid else "the game", step / rate
        raise UsageError(f"--from {start_seconds:g}: {game} ends after {seconds:.1f} seconds of play; start earlier")
    if not config.gif:
        say_score(config, number, rendered)


def draw_game(config: FilmConfig, game: FilmedGame, scene: Scene) -> Iterator[np.ndarray]:
    """The pictures of a film of one game, its panel at its side."""
    scale, rate = GIF_SCALE if config.gif else SCALE, game.rules.steps_per_second
    name = display_name(game.rom)
    panel = Panel(name, game.action_names, steps_per_second=rate, scale=scale, plain=config.plain)
    for rendered, q_values, screens in scene:
        panel.update(rendered.state, q_values, rendered.action, rendered.score)  # it follows the whole game
        yield from map(panel.picture, screens)


def draw_grid(config: FilmConfig, scenes: list[Scene]) -> Iterator[np.ndarray]:
    """The pictures of a film of games side by side, until the last one has ended."""

    def tiles(scene: Scene) -> Iterator[Tile]:
        for rendered, _, screens in scene:
            yield from (Tile(screen, rendered.score, ended=False) for screen in screens)
        yield from repeat(Tile(screens[-1], rendered.score, ended=True))

    for row in zip(*map(tiles, scenes), strict=True):
        if all(tile.ended for tile in row):
            return
        yield grid_picture(row, GIF_GRID_WIDTH if config.gif else GRID_WIDTH)


def take_pictures(
    config: FilmConfig, pictures: Iterator[np.ndarray], rate: float, film: Film, window: Window | None
) -> None:
    """Film all of these pictures, or as many as a GIF holds, and show them where there is a window."""
    for picture in islice(pictures, round(GIF_SECONDS * rate) if config.gif else None):
        film.add(picture)
        if window and "q" in window.pressed():
            raise KeyboardInterrupt(STOPPED)
        if window:
            window.show(picture, rate if config.gif else FRAMES_PER_SECOND)


def main() -> None:
    make_film(parse(FilmConfig))


if __name__ == "__main__":
    exit_with(main, smaller="--grid")
