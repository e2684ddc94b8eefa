"""State dicts and checkpoints: written whole, and read only when they are what was written."""

import hashlib
import io
import os
import stat
import struct
from pathlib import Path
from typing import Any

import torch

from runtime.exits import RunError, UsageError
from runtime.files import replacing, sync

SEAL = b"sha256 "  # begins the comment of a file's ZIP archive, which torch.load and unzip take as it is
SEAL_BYTES = len(SEAL) + 2 * hashlib.sha256().digest_size


def to_cpu(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy with every tensor on the CPU and to_cpu in its own storage."""
    layout, copies = torch.contiguous_format, {**state_dict}
    for name, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            copies[name] = value.detach().cpu().clone(memory_format=layout)
    return copies


def save_state_dict(state_dict: dict[str, Any], path: Path) -> None:
    """Write what `torch.save` gives, whole, of the `to_cpu` copy; raises `OSError`."""
    with replacing(path) as temporary:
        _write_sealed(to_cpu(state_dict), temporary)


def _write_sealed(data: Any, path: Path) -> None:
    buffer = io.BytesIO()
    torch.save(data, buffer)
    # An archive ends with its comment's length, then the comment.
    sealed = buffer.getvalue()[:-2] + struct.pack("<H", SEAL_BYTES)
    path.write_bytes(sealed + SEAL + hashlib.sha256(sealed).hexdigest().encode())


def _seal_of(path: Path) -> bool | None:
    """Whether every byte is as `_write_sealed` wrote it; None for a file that it did not write."""
    content = path.read_bytes()
    sealed, seal = content[:-SEAL_BYTES], content[-SEAL_BYTES:]
    if not seal.startswith(SEAL):
        return None
    return seal == SEAL + hashlib.sha256(sealed).hexdigest().encode()


def load_file(path: Path) -> Any:
    """Plain data that `torch.save` wrote, on the CPU; raises `UsageError` when it is missing, broken or other.

    Where the file carries the checksum of `save_state_dict`, every byte is as it was written.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{path} is no file to load; name a file that a run wrote, such as runs/.../model.pt")
        if _seal_of(path) is False:
            raise UsageError(f"{path} is damaged, its checksum does not match; take another copy or an earlier network")
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; name a file that a run wrote, such as runs/.../model.pt") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch.load raises a different type for each way in which a file can be broken
        raise UsageError(f"{path} is truncated or was not written by this project") from None


def find_mismatch(state: Any, expected: Any, name: str = "") -> str | None:
    """The name of the first part of a loaded state that is missing or other than `expected`'s; None where all fit.

    Dicts are compared key by key, tensors by shape and dtype, all else by type; where None is expected, all
    fits that is there.
    """
    if state is _MISSING:
        return name
    if expected is None:
        return None
    if type(state) is not type(expected):
        return name or "all of it"
    if isinstance(expected, dict):
        inner = (
            find_mismatch(state.get(key, _MISSING), part, f"{name} {key}".strip()) for key, part in expected.items()
        )
        return next(filter(None, inner), None)
    if isinstance(expected, torch.Tensor) and (state.shape, state.dtype) != (expected.shape, expected.dtype):
        return name
    return None


_MISSING = object()


class CheckpointFile:
    """The newest checkpoint of a run and the one before it, each with its checksum."""

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
            _write_sealed(state, temporary)
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
                state = _read_checked(path)
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {error}")
                continue
            self._newest_is_sound = not faults
            return state, "; ".join(faults) or None
        where, why = self.newest.parent, "; ".join(faults)
        raise RunError(f"no checkpoint in {where} can be used ({why}); put a good copy back, or take another --run-dir")


def _read_checked(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise ValueError("missing")
    if not _seal_of(path):
        raise ValueError("damaged, its checksum does not match")
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state
