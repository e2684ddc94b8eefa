"""The folder of a run: who may write in it, what grows there, and how that is cut back to a checkpoint."""

import contextlib
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from machine.checkpoint import CheckpointFile
from machine.exits import RunError, UsageError
from machine.files import write_text
from machine.tables import COLUMNS, append_row


class RunFolder:
    """One training run's files; only one process at a time holds it. A context manager that lets go of them.

    games.csv, evaluations.csv and TensorBoard's files only grow. A checkpoint keeps their lengths (`lengths`), and
    going on from it cuts them back (`cut_back`), so that each game stands there once however often a run died.
    """

    def __init__(self, path: Path):
        """Create and lock the folder; raises `UsageError` when it cannot be written or another process holds it."""
        self.path = path
        try:
            path.mkdir(parents=True, exist_ok=True)
            (path / "state_dicts").mkdir(exist_ok=True)
            self._lock = open(path / "lock", "w")
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}; choose another --run-dir") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"{path} is in use by another process; wait for it, or choose another --run-dir") from None
        self.checkpoints = CheckpointFile(path)
        self._tables: dict[str, TextIO] = {}
        # TensorBoard writes in a thread of its own, which would print a traceback when the disk is full; the same error
        # comes up again in the thread that trains, at the next value or at the next checkpoint.
        self._excepthook = threading.excepthook
        threading.excepthook = self._except_in_thread
        self._events: SummaryWriter | None = None

    def holds_games(self) -> bool:
        """Whether there are games, or a table or curves that no run of this project left here."""
        table = self.path / "games.csv"
        foreign = bool(self._growing_files()) and not (self.path / "config.json").exists()
        return foreign or (table.exists() and len(table.read_text().splitlines()) > 1)

    def lengths(self) -> dict[str, int]:
        """Bytes of each growing file, name to length, all of them on the disk."""
        if self._events:
            self._events.flush()
        lengths = {}
        for file in self._growing_files():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            lengths[file.name] = file.stat().st_size
        return lengths

    def cut_back(self, lengths: dict[str, int]) -> None:
        """Cut the growing files back to these lengths and open them for more; raises `RunError` where one is short."""
        for file in self._growing_files():
            if file.name not in lengths:
                file.unlink()
        for name, length in lengths.items():
            file = self.path / name
            if not file.exists() or file.stat().st_size < length:
                raise RunError(f"{file} has lost rows since the checkpoint was written; put the whole file back")
            os.truncate(file, length)
        for name, columns in COLUMNS.items():
            self._tables[name] = open(self.path / name, "a", newline="")
            if name not in lengths:
                append_row(self._tables[name], columns)
        self._events = SummaryWriter(str(self.path))

    def add_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Append a row to games.csv or evaluations.csv; raises `OSError`."""
        append_row(self._tables[table], row)

    def add_scalars(self, step: int, **values: float | None) -> None:
        """Append values to TensorBoard at an agent step; None is left out."""
        assert self._events is not None
        for name, value in values.items():
            if value is not None:
                self._events.add_scalar(name, value, step)

    def write_config(self, config: dict[str, Any]) -> None:
        """Write config.json; raises `UsageError` when that cannot be done."""
        try:
            write_text(self.path / "config.json", json.dumps(config, indent=2) + "\n")
        except OSError as error:
            raise UsageError(f"{self.path}: {error.strerror}; make room, or choose another --run-dir") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for file in (*self._tables.values(), self._events, self._lock):
            with contextlib.suppress(OSError):  # a full disk has been reported; what a checkpoint needs is on the disk
                if file:
                    file.close()
        threading.excepthook = self._excepthook

    def _except_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            self._excepthook(arguments)

    def _growing_files(self) -> list[Path]:
        return sorted(file for name in (*COLUMNS, "events.out.tfevents.*") for file in self.path.glob(name))


def read_config(path: Path, known: dict[str, Any]) -> dict[str, Any] | None:
    """The config.json of a folder, None without one; raises `RunError` unless keys and types are those of `known`."""
    file = path / "config.json"
    if not os.path.exists(file):  # unlike Path's, False too where one may not look
        return None
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); restore it, or choose another --run-dir") from None
    if not isinstance(config, dict):
        raise RunError(f"{file} is not a run's configuration; restore it, or choose another --run-dir")
    odd = config.keys() ^ known.keys() or {name for name in known if type(config[name]) is not type(known[name])}
    if odd:
        raise RunError(f"{file} is from another version of this project ({', '.join(sorted(odd))}); use that version")
    return config
