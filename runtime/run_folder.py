"""The folder of a run: who may write in it, what grows there, and how that is cut back to a checkpoint."""

import contextlib
import csv
import json
import os
from collections.abc import Set
from pathlib import Path
from typing import Any, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from runtime.checkpoint import CheckpointFile
from runtime.exits import UsageError
from runtime.files import lock_folder, sync, write_text
from runtime.tables import COLUMNS

EVENTS = "events.out.tfevents."  # TensorBoard's files begin with it


class RunFolder:
    """One training run's files; only one process at a time holds it. A context manager that lets go of them.

    games.csv, the other tables and TensorBoard's files only grow. A checkpoint keeps their lengths (`lengths`);
    resuming from it cuts them back (`cut_back`), so that each game is listed once however often a run died.
    """

    def __init__(self, path: Path):
        """Create and lock the folder; raises `UsageError` when it is not writable or another process holds it."""
        self.path = path
        try:
            self._lock = lock_folder(path)
        except OSError as error:
            raise UsageError(f"cannot create a run in {path}: {error.strerror}; choose another --run-dir") from None
        self.checkpoints = CheckpointFile(path)
        self._tables: dict[str, TextIO] = {}
        self._events: SummaryWriter | None = None

    def lengths(self) -> dict[str, int]:
        """Bytes of each growing file, name to length, all of them on the disk."""
        if self._events:
            self._events.flush()
        lengths = {}
        for file in self._growing_files():
            sync(file)
            lengths[file.name] = file.stat().st_size
        return lengths

    def check(self, lengths: dict[str, int]) -> None:
        """Raise `UsageError` unless every table has at least the rows with which a checkpoint was written."""
        for name in COLUMNS.keys() & lengths.keys():  # the first checkpoint is written before any table
            file = self.path / name
            if not file.is_file() or file.stat().st_size < lengths[name]:
                raise UsageError(f"{file} has lost rows since the checkpoint was written; restore the whole file")

    def cut_back(self, lengths: dict[str, int]) -> None:
        """Cut the growing files back to these lengths, after `check`, and open them for more."""
        (self.path / "state_dicts").mkdir(exist_ok=True)
        for file in self._growing_files():
            if file.name not in lengths:
                file.unlink()  # from after the checkpoint
            elif file.stat().st_size > lengths[file.name]:
                os.truncate(file, lengths[file.name])
        for name, columns in COLUMNS.items():
            self._tables[name] = open(self.path / name, "a", newline="")
            if not lengths.get(name):
                self.add_row(name, columns)
        self._events = SummaryWriter(str(self.path))

    def add_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Append a whole row to one of the tables; readers see it at once. Raises `OSError`."""
        csv.writer(self._tables[table], lineterminator="\n").writerow(row)
        self._tables[table].flush()

    def add_scalars(self, step: int, **values: float | None) -> None:
        """Append values to TensorBoard at an agent step; None is left out."""
        assert self._events is not None
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json; raises `OSError`."""
        write_text(self.path / "config.json", json.dumps(config, indent=2) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for file in (*self._tables.values(), self._events):
            with contextlib.suppress(OSError):  # a full disk was reported; what a checkpoint needs is on the disk
                if file:
                    file.close()
        self._lock.__exit__(None, None, None)

    def _growing_files(self) -> list[Path]:
        return sorted(file for name in (*COLUMNS, f"{EVENTS}*") for file in self.path.glob(name) if file.is_file())


def check_is_run_or_new(path: Path) -> None:
    """Raise `UsageError` unless a folder does not exist yet, is empty, or is a run's own; nothing is changed."""
    entries = set(os.listdir(path)) if os.path.isdir(path) else set()
    if "config.json" in entries and entries & {"checkpoint.pt", "checkpoint.previous.pt"}:
        return
    # A run that was killed before its first checkpoint has left no more than these.
    if foreign := {name for name in entries - {"lock", "config.json"} if not name.startswith(".")}:
        what = f"{path} holds {min(foreign)} but no config.json or checkpoint.pt of a run"
        raise UsageError(f"{what}; restore them, or choose another --run-dir")


def read_config(path: Path, known: Set[str]) -> dict[str, Any] | None:
    """The config.json of a folder, None without one; raises `UsageError` unless its keys are those of `known`."""
    file = path / "config.json"
    if not os.path.lexists(file):
        return None
    try:
        config = json.loads(file.read_text())
        odd = sorted(config.keys() ^ known)
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        raise UsageError(f"{file} is not a run's config ({error}); restore it, or choose another --run-dir") from None
    if odd:
        raise UsageError(f"{file} has missing or unknown keys ({', '.join(odd)}); restore it")
    return config
