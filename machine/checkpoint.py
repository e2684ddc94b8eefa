"""State dicts and checkpoints: written whole, and read only when they are what was written."""

import hashlib
import io
import os
from pathlib import Path
from typing import Any

import torch

from machine.exits import RunError, UsageError
from machine.files import replacing

FORMAT = 1  # of what a checkpoint holds; see q_agent_train.Run
DIGEST_BYTES = 32  # SHA-256, behind the archive that torch.save wrote


def save_state_dict(state_dict: dict[str, Any], path: Path) -> None:
    """Write what `torch.save` gives, whole, every tensor on the CPU and dense in its own storage; raises `OSError`."""
    tensors = {name: value for name, value in state_dict.items() if isinstance(value, torch.Tensor)}
    dense = {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(_archive({**state_dict, **dense}))


def load_file(path: Path) -> Any:
    """Plain data that `torch.save` wrote, on the CPU; raises `UsageError` when it is missing, broken or other."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UsageError(f"{path} is not there; name a file that a run wrote, such as runs/.../model.pt") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    except Exception:  # torch.load raises a different type for each way in which a file can be broken
        raise UsageError(f"{path} is truncated or was not written by this project") from None


class CheckpointFile:
    """The newest checkpoint of a run and the one before it, each with its format and a checksum at its end."""

    def __init__(self, folder: Path):
        self.newest = folder / "checkpoint.pt"
        self.previous = folder / "checkpoint.previous.pt"
        self._newest_is_sound = True

    def exists(self) -> bool:
        return self.newest.exists() or self.previous.exists()

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
    return state
