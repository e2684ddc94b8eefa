"""State dicts and checkpoints: written whole, and read only when they are what was written."""

import io
import os
import zipfile
from pathlib import Path
from typing import Any

import torch

from runtime.exits import RunError, UsageError
from runtime.files import replacing, sync


def to_cpu(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy with every tensor on the CPU, contiguous and in its own storage."""
    return {
        name: value.detach().cpu().clone(memory_format=torch.contiguous_format) if torch.is_tensor(value) else value
        for name, value in state_dict.items()
    }


def save_state_dict(state_dict: dict[str, Any], path: Path) -> None:
    """Write what `torch.save` gives, whole, of the `to_cpu` copy; raises `OSError`."""
    with replacing(path) as temporary:
        _save(to_cpu(state_dict), temporary)


def _save(data: Any, path: Path) -> None:
    buffer = io.BytesIO()  # into a file, torch.save would make a RuntimeError of a full disk
    torch.save(data, buffer)
    path.write_bytes(buffer.getbuffer())


def _load(path: Path) -> Any:
    """Plain data that `torch.save` wrote, on the CPU; raises `OSError`, and `ValueError` where it is damaged."""
    with open(path, "rb") as file:
        try:
            with zipfile.ZipFile(file) as archive:
                damaged = archive.testzip()  # by its checksums, which torch.load ignores
            if damaged is None:
                return torch.load(path, map_location="cpu", weights_only=True)
        except Exception:  # of a different type for each way in which a file can be broken
            pass
    raise ValueError("damaged")


def load_file(path: Path) -> Any:
    """Plain data that `torch.save` wrote, on the CPU; raises `UsageError` when it is missing, broken or other."""
    try:
        if path.is_file():
            return _load(path)
        fault = "is not there; name a file that a run wrote, such as runs/.../model.pt"
    except OSError as error:
        fault = f"is not readable: {error.strerror}"
    except ValueError:
        fault = "is damaged or was not written by this project; use another copy or an earlier network"
    raise UsageError(f"{path} {fault}")


class CheckpointFile:
    """The newest checkpoint of a run and the one before it."""

    def __init__(self, folder: Path):
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"
        self._newest_is_sound = True

    def exists(self) -> bool:
        return os.path.lexists(self.newest) or os.path.lexists(self.previous)

    def save(self, state: dict[str, Any]) -> None:
        """Write `state` as the newest checkpoint and keep the one before it; raises `OSError`.

        Killed between the two renames, a run is left with the one before it alone, which `load` then takes.
        """
        with replacing(self.newest) as temporary:
            _save(state, temporary)
            sync(temporary)  # before the one before it goes
            if self.newest.exists() and self._newest_is_sound:  # a damaged one must not push out a sound one
                os.replace(self.newest, self.previous)
        self._newest_is_sound = True

    def load(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest sound checkpoint, and a line that says what was wrong with the newest, if it was.

        Raises `RunError` when there are checkpoints and none is sound; nothing is changed on disk.
        """
        faults = []
        for path in (self.newest, self.previous):
            try:
                state = _load(path)
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {getattr(error, 'strerror', None) or error}")
                continue
            self._newest_is_sound = not faults
            return state, "; ".join(faults) or None
        what = f"{self.newest.parent} has no usable checkpoint ({'; '.join(faults)})"
        raise RunError(f"{what}; restore a good copy, or choose another --run-dir")
