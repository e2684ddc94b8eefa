"""Where pictures go: a film that is written whole or not at all, and a window; and the play they are made of."""

import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import imageio_ffmpeg
import numpy as np

from checkpoint import sync_folder
from errors import UsageError
from evaluate import FRAMES_PER_MINUTE, MINUTES, Player, check_actions, play_games
from model import QNetwork
from wrappers import FRAMES_PER_STEP, FilmedGame

FRAMES_PER_SECOND = 60  # the emulator's
GIF_FRAMES_PER_SECOND = FRAMES_PER_SECOND // FRAMES_PER_STEP


def open_game(path: Path, network: QNetwork) -> FilmedGame:
    """The game that the network in the file `path` plays, at most 5 minutes at a time, as in the paper.

    Raises `UsageError` when there is no such game, or it has another number of actions.
    """
    try:
        game = FilmedGame(network.game, max_frames_per_game=MINUTES * FRAMES_PER_MINUTE)
    except UsageError as error:
        raise UsageError(f"{path} was trained on a game that is not here: {error}") from None
    check_actions(path, network, game)
    return game


@dataclass
class Shot:
    """One agent step to look at.

    screens: the emulator frames (210, 160, 3) uint8 that it showed, before the first step also those of the reset.
    state: (4, 84, 84) uint8, what the player saw. action: what it did. score: the game's so far. over: it has ended;
    cut: not by a game over, but at the 5 minutes of `open_game`.
    """

    screens: list[np.ndarray]
    state: np.ndarray
    action: int
    score: float
    over: bool
    cut: bool


def shots(player: Player, game: FilmedGame, *, seed: int) -> Iterator[Shot]:
    """Play one game through the episode loop of the evaluation, and keep every emulator frame."""
    opening: list[np.ndarray] = []

    def watched(states: np.ndarray) -> np.ndarray:
        if not opening:
            opening.extend(game.screens)
        return player(states)

    score = 0.0
    shown = opening
    for moment in play_games(watched, game, seed=seed):
        score += float(moment.step.rewards[0])
        over = bool(moment.step.game_starts[0])
        cut = over and not bool(moment.step.terminals[0])
        yield Shot(shown + game.screens, moment.states[0], int(moment.actions[0]), score, over, cut)
        shown = []


class Film:
    """An MP4 (H.264, 60 frames per second) or, by its suffix, a GIF (15), from pictures of one size.

    A context manager: the file appears, checked, when the block ends; when it ends by an exception, nothing does.
    """

    def __init__(self, path: Path):
        """Raises `UsageError` at once where the file could not be written at the end."""
        self.path = path
        self.frames = 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        if path.suffix not in (".mp4", ".gif"):
            raise UsageError(f"{path} is neither an .mp4 nor a .gif; films are one or the other")
        if not os.path.isdir(path.parent):
            raise UsageError(f"the folder {path.parent} of {path.name} is not there; make it first, or choose another")
        if os.path.isdir(path):
            raise UsageError(f"{path} is a folder; name a file in it")
        try:
            self._temporary.touch()
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}; choose another folder") from None
        self._encoder: Iterator[None] | None = None

    def add(self, picture: np.ndarray) -> None:
        """Append a picture (height, width, 3) uint8; raises `UsageError` when the disk is full."""
        try:
            if self._encoder is None:
                self._encoder = self._start(picture)
            self._encoder.send(np.ascontiguousarray(picture))  # type: ignore[attr-defined]
        except OSError:
            raise self._failed() from None
        self.frames += 1

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if self._encoder is not None:
                self._encoder.close()  # type: ignore[attr-defined]
            if error is None:
                self._check()
                os.replace(self._temporary, self.path)
                sync_folder(self.path.parent)
        finally:
            self._temporary.unlink(missing_ok=True)

    def _start(self, picture: np.ndarray) -> Iterator[None]:
        height, width = picture.shape[:2]
        if self.path.suffix == ".gif":
            # One palette for the whole film, made from the film itself.
            palette = "split[all][some];[some]palettegen=stats_mode=diff[palette];[all][palette]paletteuse=dither=none"
            pixels, rate, codec, parameters = "pal8", GIF_FRAMES_PER_SECOND, "gif", ["-vf", palette, "-f", "gif"]
        else:
            # yuv420p and an index at the file's start: what browsers want.
            pixels, rate, codec = "yuv420p", FRAMES_PER_SECOND, "libx264"
            parameters = ["-crf", "18", "-preset", "veryfast", "-movflags", "+faststart", "-f", "mp4"]
        encoder: Iterator[None] = imageio_ffmpeg.write_frames(
            str(self._temporary),
            (width, height),
            fps=rate,
            codec=codec,
            pix_fmt_out=pixels,
            quality=None,
            macro_block_size=1,  # any even size will do
            ffmpeg_log_level="quiet",  # what goes wrong is said by `_failed`
            output_params=parameters,
        )
        next(encoder)
        return encoder

    def _check(self) -> None:
        if self.frames == 0:
            raise UsageError(f"nothing was shown, so {self.path} was not written")
        try:
            found, _ = imageio_ffmpeg.count_frames_and_secs(str(self._temporary))
        except RuntimeError:
            raise self._failed() from None
        if found != self.frames:
            raise self._failed()

    def _failed(self) -> UsageError:
        free = shutil.disk_usage(self.path.parent).free >> 20
        return UsageError(
            f"{self.path} could not be written whole, so nothing was: {free:,} MiB are free in its folder, and the "
            "file may not grow further; make room, or choose another folder"
        )


class Window:
    """A window on the screen, with its keys by name ("space", "left", "q"); closing it is the key "q"."""

    def __init__(self, title: str):
        """Raises `UsageError` where there is no display."""
        has_display = any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER"))
        if sys.platform.startswith("linux") and not has_display:
            raise _no_display("neither DISPLAY nor WAYLAND_DISPLAY is set")
        os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
        import pygame  # only who opens a window waits for it

        self._pygame = pygame
        try:
            pygame.display.init()
        except pygame.error as error:
            raise _no_display(str(error)) from None
        pygame.display.set_caption(title)
        self._clock = pygame.time.Clock()
        self.held: list[str] = []
        """The keys that are down now, in the order in which they were pressed."""

    def show(self, picture: np.ndarray, frames_per_second: float) -> None:
        """Show a picture (height, width, 3) uint8 when its time has come."""
        pygame = self._pygame
        size = (picture.shape[1], picture.shape[0])
        surface = pygame.display.get_surface()
        if surface is None or surface.get_size() != size:
            try:
                surface = pygame.display.set_mode(size)
            except pygame.error as error:
                raise _no_display(str(error)) from None
        surface.blit(pygame.image.frombuffer(picture.tobytes(), size, "RGB"), (0, 0))
        pygame.display.flip()
        self._clock.tick(frames_per_second)

    def pressed(self) -> list[str]:
        """The keys that went down since the last call."""
        pygame = self._pygame
        if pygame.display.get_surface() is None:
            return []
        names = []
        for event in pygame.event.get():
            if event.type == pygame.QUIT:
                names.append("q")
            elif event.type == pygame.WINDOWFOCUSLOST:
                self.held.clear()  # their release goes to another window
            elif event.type in (pygame.KEYDOWN, pygame.KEYUP):
                name = pygame.key.name(event.key)
                self.held = [key for key in self.held if key != name]
                if event.type == pygame.KEYDOWN:
                    self.held.append(name)
                    names.append(name)
        return names

    def close(self) -> None:
        """Close the window."""
        self._pygame.display.quit()


def _no_display(reason: str) -> UsageError:
    return UsageError(
        f"there is no display to open a window on ({reason}); make a film instead: "
        "python trained_model_video_generation.py --state-dict MODEL.pt"
    )
