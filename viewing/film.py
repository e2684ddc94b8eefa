"""A film that is written whole or not at all, and a folder of what was filmed, picture by picture."""

import os
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path

import imageio_ffmpeg
import numpy as np
from PIL import Image

from atari import FRAMES_PER_SECOND, PAPER_OPTIONS
from runtime.exits import RunError
from runtime.files import failing_clearly, making_folder, replacing

# What the pictures are; after it, what is made of them.
RAW = "-y -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i - -an"
# One palette for the whole GIF, made from the film itself.
GIF = "-vf split[all][some];[some]palettegen=stats_mode=diff[palette];[all][palette]paletteuse=dither=none -f gif"
# yuv420p and an index at the file's start: what browsers want.
MP4 = "-c:v libx264 -pix_fmt yuv420p -crf 18 -preset veryfast -movflags +faststart -f mp4"


class Film:
    """An MP4 (H.264, 60 frames per second) or, by its suffix, a GIF, from pictures of one size; see `filming`."""

    def __init__(self, path: Path, temporary: Path, gif_frames_per_second: float):
        self.path = path
        self.frames = 0
        self._temporary = temporary
        gif = path.suffix == ".gif"
        self._rate = gif_frames_per_second if gif else FRAMES_PER_SECOND
        self._coding = GIF if gif else MP4
        self._messages = tempfile.TemporaryFile()
        self._ffmpeg: subprocess.Popen[bytes] | None = None

    def add(self, picture: np.ndarray) -> None:
        """Append a picture (height, width, 3) uint8; raises `RunError` when ffmpeg has failed."""
        self._ffmpeg = self._ffmpeg or self._start(*picture.shape[:2])
        assert self._ffmpeg.stdin
        try:
            self._ffmpeg.stdin.write(picture.tobytes())
        except OSError:
            self.end()  # its status says why
        self.frames += 1

    def _start(self, height: int, width: int) -> subprocess.Popen[bytes]:
        arguments = f"{RAW.format(width=width, height=height, rate=self._rate)} {self._coding}".split()
        try:
            return subprocess.Popen(
                [imageio_ffmpeg.get_ffmpeg_exe(), *arguments, self._temporary],
                stdin=subprocess.PIPE,
                stderr=self._messages,
                start_new_session=True,  # Ctrl-C in a terminal is for the script; on Windows by the next line
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except (OSError, RuntimeError) as error:
            raise RunError(f"ffmpeg does not start: {error}; IMAGEIO_FFMPEG_EXE may name another one") from None

    def end(self) -> None:
        """Have ffmpeg complete the file; raises `RunError` unless it did."""
        if not self._ffmpeg:
            raise RunError(f"nothing was shown, so {self.path} was not written")
        with suppress(OSError):  # its status says why
            self._ffmpeg.communicate()
        if status := self._ffmpeg.wait():
            self._messages.seek(0)
            last = self._messages.read().decode(errors="replace").strip().rpartition("\n")[2]
            message = re.sub(r"^\[.*?] ", "", last)  # without the part of ffmpeg that says it
            what = f"{self.path} could not be written whole, so nothing was"
            raise RunError(f"{what}: ffmpeg ended with status {status}{message and ': ' + message}")

    def close(self) -> None:
        """Let go of ffmpeg, whether or not the film is complete."""
        if self._ffmpeg:
            self._ffmpeg.kill()
            with suppress(OSError):
                self._ffmpeg.communicate()
        self._messages.close()


@contextmanager
def filming(path: Path, gif_frames_per_second: float = PAPER_OPTIONS.steps_per_second) -> Iterator[Film]:
    """A film that is `path`, whole, once the block has ended well; call `check_output` first."""
    with (
        failing_clearly(path),
        replacing(path, f".{os.getpid()}") as temporary,
        closing(Film(path, temporary, gif_frames_per_second)) as film,
    ):
        yield film
        film.end()


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
    """An album that is the folder `path` once the block has ended well; call `check_new_folder` first."""
    with failing_clearly(path), making_folder(path) as temporary:
        yield Album(path, temporary)
