"""A film that is written whole or not at all."""

import subprocess
import tempfile
from collections.abc import Iterable
from itertools import chain
from pathlib import Path

import imageio_ffmpeg
import numpy as np

from atari import FRAMES_PER_SECOND
from runtime.exits import RunError
from runtime.files import writing_output

# What the pictures are; after it, what is made of them.
RAW = "-y -v error -f rawvideo -pix_fmt rgb24 -s {width}x{height} -r {rate} -i - -an"
# One palette for the whole GIF, made from the film itself.
GIF = "-vf split[all][some];[some]palettegen=stats_mode=diff[palette];[all][palette]paletteuse=dither=none -f gif"
# yuv420p and an index at the file's start: what browsers want.
MP4 = "-c:v libx264 -pix_fmt yuv420p -crf 18 -preset veryfast -movflags +faststart -f mp4"


def write_film(path: Path, pictures: Iterable[np.ndarray], rate: float = FRAMES_PER_SECOND) -> int:
    """Write an MP4 (H.264) or, by its suffix, a GIF, and return how many pictures it has; call `check_output` first.

    pictures: (height, width, 3) uint8, of one size. rate: of the pictures, per second. Raises `RunError`.
    """
    pictures = iter(pictures)
    first = next(pictures, None)
    if first is None:
        raise RunError(f"nothing was shown, so {path} was not written")
    raw = RAW.format(width=first.shape[1], height=first.shape[0], rate=rate)
    with writing_output(path) as temporary, tempfile.TemporaryFile() as messages:
        try:
            command = [imageio_ffmpeg.get_ffmpeg_exe(), *raw.split(), *(GIF if path.suffix == ".gif" else MP4).split()]
            ffmpeg = subprocess.Popen(
                [*command, temporary],
                stdin=subprocess.PIPE,
                stderr=messages,
                start_new_session=True,  # Ctrl-C in a terminal is for the script; on Windows by the next line
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except (OSError, RuntimeError) as error:
            raise RunError(f"ffmpeg does not start: {error}; IMAGEIO_FFMPEG_EXE may name another one") from None
        assert ffmpeg.stdin
        frames = 0
        try:
            for picture in chain([first], pictures):
                frames += 1
                try:
                    ffmpeg.stdin.write(picture.tobytes())
                except OSError:  # it has ended; its status says why
                    break
            ffmpeg.communicate()
        finally:
            ffmpeg.kill()  # where the pictures were broken off; else it has ended
            ffmpeg.communicate()
        if ffmpeg.returncode:
            messages.seek(0)
            last = messages.read().decode(errors="replace").strip().rpartition("\n")[2]
            what = f"{path} could not be written whole, so nothing was"
            raise RunError(f"{what}: ffmpeg ended with status {ffmpeg.returncode}{last and ': ' + last}")
    return frames
