"""A film that is written whole or not at all, and a folder of what was filmed, picture by picture."""

import os
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import imageio.v3 as iio
import imageio_ffmpeg
import numpy as np
from PIL import Image

from atari import FRAMES_PER_SECOND, PAPER_RULES
from machine import files
from machine.exits import RunError, UsageError
from machine.files import check_output, failing_clearly, making_folder, replacing

# One palette for the whole GIF, made from the film itself.
PALETTE = "split[all][some];[some]palettegen=stats_mode=diff[palette];[all][palette]paletteuse=dither=none"
GIF_OUTPUT = ["-vf", PALETTE, "-f", "gif"]
GIF = {"codec": "gif", "pixelformat": "pal8", "output_params": GIF_OUTPUT}
# yuv420p and an index at the file's start: what browsers want.
MP4_OUTPUT = ["-crf", "18", "-preset", "veryfast", "-movflags", "+faststart", "-f", "mp4"]
MP4 = {"fps": FRAMES_PER_SECOND, "codec": "libx264", "pixelformat": "yuv420p", "output_params": MP4_OUTPUT}

KINDS = {".mp4": files.MP4, ".gif": files.GIF}


class Film:
    """An MP4 (H.264, 60 frames per second) or, by its suffix, a GIF, from pictures of one size; see `filming`."""

    def __init__(self, path: Path, temporary: Path, gif_frames_per_second: float):
        self.path = path
        self.frames = 0
        self._temporary = temporary
        # By the path's own extension imageio would not let ffmpeg write a temporary file, nor a GIF.
        file = iio.imopen(temporary, "w", plugin="FFMPEG", extension=".mp4", legacy_mode=True)
        self._writer: Any = file.legacy_get_writer(
            quality=None,
            macro_block_size=1,  # any even size will do
            ffmpeg_log_level="quiet",  # what goes wrong is said by `_failed`
            **(GIF | {"fps": gif_frames_per_second} if path.suffix == ".gif" else MP4),
        )

    def add(self, picture: np.ndarray) -> None:
        """Append a picture (height, width, 3) uint8; raises `RunError` when the disk is full."""
        try:
            self._writer.append_data(picture)
        except OSError:
            raise self._failed() from None
        self.frames += 1

    def close(self) -> None:
        self._writer.close()

    def check(self) -> None:
        """Raise `RunError` unless the file holds every picture."""
        if self.frames == 0:
            raise RunError(f"nothing was shown, so {self.path} was not written")
        try:
            found, _ = imageio_ffmpeg.count_frames_and_secs(str(self._temporary))
        except RuntimeError:
            raise self._failed() from None
        if found != self.frames:
            raise self._failed()

    def _failed(self) -> RunError:
        free = f"{shutil.disk_usage(self.path.parent).free >> 20:,} MiB are free there"
        return RunError(f"{self.path} could not be written whole, so nothing was: {free}; make room, or go elsewhere")


@contextmanager
def filming(path: Path, gif_frames_per_second: float = PAPER_RULES.steps_per_second) -> Iterator[Film]:
    """A film that is `path`, whole, once the block has ended well; raises `UsageError` at once where it cannot be."""
    if path.suffix not in KINDS:
        raise UsageError(f"{path} is neither an .mp4 nor a .gif; films are one or the other")
    check_output(path, KINDS[path.suffix])
    with failing_clearly(path), replacing(path, f".{os.getpid()}") as temporary:
        film = Film(path, temporary, gif_frames_per_second)
        try:
            yield film
        finally:
            film.close()
        film.check()


class Album:
    """A folder of PNG pictures, counted from 0 in each of its folders and for each name; see `collecting`."""

    def __init__(self, path: Path, temporary: Path):
        self._path = path
        self._temporary = temporary
        self._counts: Counter[str] = Counter()

    def add(self, name: str, picture: np.ndarray) -> None:
        """Append a picture, (height, width, 3) or (height, width) uint8, as `name`_000000.png and so on.

        `name` may begin with folders. Raises `RunError` when the disk is full.
        """
        file = self._temporary / f"{name}_{self._counts[name]:06}.png"
        with failing_clearly(self._path):
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture).save(file)
        self._counts[name] += 1


@contextmanager
def collecting(path: Path) -> Iterator[Album]:
    """An album that is the folder `path` once the block has ended well, behind `check_new_folder`."""
    with failing_clearly(path), making_folder(path) as temporary:
        yield Album(path, temporary)
        os.sync()  # thousands of small files at once
