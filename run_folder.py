"""The folder of a run: who may write in it, what grows there, and how that is cut back to a checkpoint."""

import contextlib
import csv
import fcntl
import json
import os
import threading
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter

from checkpoint import write_text
from errors import RunError, UsageError

GAMES_HEADER = ("game", "agent_step", "frames", "score", "length_steps", "epsilon", "seconds")
EVALUATIONS_HEADER = ("agent_step", "mean", "standard_deviation", "minimum", "maximum", "mean_max_q")


class RunFolder:
    """One training run's files; only one process at a time holds it.

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
            raise UsageError(
                f"the run folder {path} cannot be written: {error.strerror}; choose another --run-dir"
            ) from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise UsageError(f"{path} is in use by another process; wait for it, or choose another --run-dir") from None
        self._tables: dict[str, Any] = {}
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
        for table in self._tables.values():
            table.flush()
        lengths = {}
        for file in self._growing_files():
            with open(file, "rb") as stream:
                os.fsync(stream.fileno())
            lengths[file.name] = file.stat().st_size
        return lengths

    def cut_back(self, lengths: dict[str, int]) -> None:
        """Cut the growing files back to these lengths, remove newer ones, and open them for more.

        Raises `RunError` when a file is shorter than it was: something else has changed it.
        """
        for file in self._growing_files():
            if file.name not in lengths:
                file.unlink()
        for name, length in lengths.items():
            file = self.path / name
            if not file.exists() or file.stat().st_size < length:
                raise RunError(f"{file} has lost rows since the checkpoint was written; put the whole file back")
            os.truncate(file, length)
        for name, header in (("games.csv", GAMES_HEADER), ("evaluations.csv", EVALUATIONS_HEADER)):
            self._tables[name] = open(self.path / name, "a", newline="")
            if name not in lengths:
                self.add_row(name, header)
        self._events = SummaryWriter(str(self.path))

    def add_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Append a row to games.csv or evaluations.csv; readers see whole lines at once."""
        csv.writer(self._tables[table], lineterminator="\n").writerow(row)
        self._tables[table].flush()

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

    def close(self) -> None:
        """Close every file and let others have the folder."""
        for file in (*self._tables.values(), self._events, self._lock):
            with contextlib.suppress(OSError):  # a full disk has been reported; what a checkpoint needs is on the disk
                if file:
                    file.close()
        threading.excepthook = self._excepthook

    def _except_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            self._excepthook(arguments)

    def _growing_files(self) -> list[Path]:
        names = ("games.csv", "evaluations.csv", "events.out.tfevents.*")
        return sorted(file for name in names for file in self.path.glob(name))


def read_config(path: Path) -> dict[str, Any] | None:
    """The config.json of a run folder; None where there is none. Raises `RunError` when it is broken."""
    file = path / "config.json"
    if not os.path.exists(file):  # unlike Path's, False too where one may not look
        return None
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{file} cannot be read ({error}); restore it, or choose another --run-dir") from None
    if not isinstance(config, dict):
        raise RunError(f"{file} is not a run's configuration; restore it, or choose another --run-dir")
    return config
