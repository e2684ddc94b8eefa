"""Files written whole or not at all, and read only when they are what was written."""

import hashlib
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from errors import RunError, UsageError

DIGEST_BYTES = 32  # SHA-256, behind the archive that torch.save wrote


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` fill a temporary file beside `path`, then sync it and rename it to `path`.

    Whenever the process dies, `path` holds its old content or its new one, whole. Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        write(temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all; raises `OSError`."""
    write_atomically(path, lambda temporary: _write(temporary, text.encode()))


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power cut, as fsync does a file's content."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def save_state_dict(state_dict: dict[str, Any], path: Path) -> None:
    """Write what `torch.save(state_dict)` gives, atomically, every tensor on the CPU and dense in its own storage.

    Raises `OSError` when the file cannot be written.
    """
    dense = {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if isinstance(value, torch.Tensor)
        else value
        for name, value in state_dict.items()
    }
    write_atomically(path, lambda temporary: _write(temporary, _archive(dense)))


def load_file(path: Path) -> Any:
    """Read a file that `torch.save` wrote, on the CPU, with `weights_only=True`.

    Raises `UsageError` when it is missing, unreadable, truncated, or holds anything but plain data.
    """
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(
            f"{path} is not there; name a file that a training run wrote, such as runs/.../model.pt"
        ) from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch.load raises a different type for each way in which a file can be broken
        raise UsageError(f"{path} is truncated or was not written by this project") from None


class CheckpointFile:
    """The newest checkpoint of a run and the one before it, each with a checksum at its end."""

    def __init__(self, folder: Path):
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"
        self._newest_is_sound = True

    def exists(self) -> bool:
        """Whether there is a checkpoint, sound or not."""
        return self.newest.exists() or self.previous.exists()

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the newest checkpoint and keep the one before it; raises `OSError`.

        Killed between the two renames, a run is left with the one before it alone, which `load` then takes.
        """
        archive = _archive(state)

        def write(temporary: Path) -> None:
            _write(temporary, archive + hashlib.sha256(archive).digest())
            if self.newest.exists() and self._newest_is_sound:  # a damaged one must not push out a sound one
                os.replace(self.newest, self.previous)

        write_atomically(self.newest, write)
        self._newest_is_sound = True

    def load(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest sound checkpoint, and a line that says what was wrong with the newest, if it was.

        Raises `RunError` when there are checkpoints and none is sound; nothing is changed on disk.
        """
        faults = []
        for path in (self.newest, self.previous):
            try:
                state = _read_checked(path)
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {error}")
            else:
                self._newest_is_sound = not faults
                return state, "; ".join(faults) or None
        raise RunError(
            f"no checkpoint in {self.newest.parent} can be used ({'; '.join(faults)}). Nothing was changed: "
            "put a good copy back, or start anew with another --run-dir"
        )


def _archive(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def _write(path: Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _read_checked(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError("missing")
    content = path.read_bytes()
    archive, digest = content[:-DIGEST_BYTES], content[-DIGEST_BYTES:]
    if hashlib.sha256(archive).digest() != digest:
        raise ValueError("damaged, its checksum does not match")
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(archive), map_location="cpu", weights_only=True)
    except Exception:  # whole, so another version wrote it; torch raises various types
        raise ValueError("not readable by this version") from None
    return state
