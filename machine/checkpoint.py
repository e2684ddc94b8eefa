"""State dicts and checkpoints: written whole, and read only when they are what was written."""

import hashlib
import io
import os
import stat
import struct
from pathlib import Path
from typing import Any

import torch

from machine.exits import RunError, UsageError
from machine.files import replacing

FORMAT = 1  # of what a checkpoint holds; see q_agent_train.Run
DIGEST_BYTES = 32  # SHA-256, behind the archive that torch.save wrote
SEAL = b"sha256 "  # begins the comment of a state dict's ZIP archive, which torch.load and unzip take as it is
SEAL_BYTES = len(SEAL) + 2 * DIGEST_BYTES


def dense(state_dict: dict[str, Any]) -> dict[str, Any]:
    """A copy with every tensor on the CPU and dense in its own storage."""
    layout, copies = torch.contiguous_format, {**state_dict}
    for name, value in state_dict.items():
        if isinstance(value, torch.Tensor):
            copies[name] = value.detach().cpu().clone(memory_format=layout)
    return copies


def save_state_dict(state_dict: dict[str, Any], path: Path) -> None:
    """Write what `torch.save` gives, whole, of the `dense` copy; raises `OSError`."""
    archive = _archive(dense(state_dict))
    sealed = archive[:-2] + struct.pack("<H", SEAL_BYTES)  # an archive ends with its comment's length, then the comment
    with replacing(path) as temporary:
        temporary.write_bytes(sealed + SEAL + hashlib.sha256(sealed).hexdigest().encode())


def load_file(path: Path) -> Any:
    """Plain data that `torch.save` wrote, on the CPU; raises `UsageError` when it is missing, broken or other.

    Where the file carries the checksum of `save_state_dict`, every byte is as it was written.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise UsageError(f"{path} is no file to load; name a file that a run wrote, such as runs/.../model.pt")
        _check_seal(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; name a file that a run wrote, such as runs/.../model.pt") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch.load raises a different type for each way in which a file can be broken
        raise UsageError(f"{path} is truncated or was not written by this project") from None


def _check_seal(path: Path) -> None:
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(size - SEAL_BYTES, 0))
        seal = file.read()
        if not seal.startswith(SEAL):
            return  # from before there were seals, or not from here
        file.seek(0)
        digest = hashlib.sha256(file.read(size - SEAL_BYTES)).hexdigest().encode()
    if seal != SEAL + digest:
        raise UsageError(f"{path} is damaged, its checksum does not match; take another copy or an earlier network")


def misfit(state: Any, expected: Any, name: str = "") -> str | None:
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
        inner = (misfit(state.get(key, _MISSING), part, f"{name} {key}".strip()) for key, part in expected.items())
        return next(filter(None, inner), None)
    if isinstance(expected, torch.Tensor) and (state.shape, state.dtype) != (expected.shape, expected.dtype):
        return name
    return None


_MISSING = object()


class CheckpointFile:
    """The newest checkpoint of a run and the one before it, each with its format and a checksum at its end."""

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
        archive = _archive({"format": FORMAT} | state)
        with replacing(self.newest) as temporary:
            with open(temporary, "wb") as file:
                file.write(archive + hashlib.sha256(archive).digest())
                file.flush()
                os.fsync(file.fileno())  # before the one before it goes
            if self.newest.exists() and self._newest_is_sound:  # a damaged one must not push out a sound one
                os.replace(self.newest, self.previous)
        self._newest_is_sound = True

    def load(self) -> tuple[dict[str, Any], str | None]:
        """Return the newest sound checkpoint, and a line that says what was wrong with the newest, if it was.

        Raises `RunError` when there are checkpoints and none is sound, or it is of a later format than this version
        knows; nothing is changed on disk.
        """
        faults = []
        for path in (self.newest, self.previous):
            try:
                state = _read_checked(path)
            except (OSError, ValueError) as error:
                faults.append(f"{path.name}: {error}")
                continue
            self._newest_is_sound = not faults
            if state["format"] > FORMAT:
                raise RunError(f"{path} has format {state['format']}, this version knows {FORMAT}; use a newer version")
            return state, "; ".join(faults) or None
        where, why = self.newest.parent, "; ".join(faults)
        raise RunError(f"no checkpoint in {where} can be used ({why}); put a good copy back, or take another --run-dir")


def _archive(state: dict[str, Any]) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


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
    if not isinstance(state, dict) or not isinstance(state.get("format"), int):
        raise ValueError("without a format, so not a checkpoint of this project")
    return state
