"""The folder of a run: who may write in it, what grows there, and how that is cut back to a checkpoint."""

import contextlib
import errno
import hashlib
import itertools
import json
import os
import re
import threading
from collections.abc import Set
from pathlib import Path
from typing import Any, Self, TextIO

from torch.utils.tensorboard import SummaryWriter

from runtime.checkpoint import CheckpointFile
from runtime.exits import UsageError
from runtime.files import lock_folder, sync, write_text
from runtime.tables import COLUMNS, append_row

NETWORKS = ("model.pt", "best.pt", "evaluated.pt")
WRITTEN = ("config.json", *NETWORKS, "checkpoint.pt", "checkpoint.previous.pt", "lock", *COLUMNS)
EVENTS = "events.out.tfevents.*"
# What a run may have written before its config.json, and before its first checkpoint; tables but for their first line.
BEFORE_CONFIG = re.compile(r"lock|state_dicts|\..*\.tmp")
BEFORE_CHECKPOINT = re.compile(BEFORE_CONFIG.pattern + r"|config\.json|events\.out\.tfevents\..*")


class RunFolder:
    """One training run's files; only one process at a time holds it. A context manager that lets go of them.

    games.csv, the other tables and TensorBoard's files only grow. A checkpoint keeps their lengths (`lengths`) and the
    tables' checksums (`digests`); going on from it cuts them back (`cut_back`), so that each game stands there once
    however often a run died.
    """

    def __init__(self, path: Path):
        """Create and lock the folder; raises `UsageError` when it cannot be written or another process holds it."""
        self.path = path
        try:
            self._lock = lock_folder(path)
        except OSError as error:
            raise UsageError(f"{path} cannot be written: {error.strerror}; choose another --run-dir") from None
        self.checkpoints = CheckpointFile(path)
        self._tables: dict[str, TextIO] = {}
        # TensorBoard writes in a thread of its own, which would print a traceback when the disk is full; the same error
        # comes up again in the thread that trains, at the next value or at the next checkpoint.
        self._excepthook = threading.excepthook
        threading.excepthook = self._except_in_thread
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

    def digests(self) -> dict[str, str]:
        """SHA-256 of each table, name to digest."""
        return {name: _digest(self.path / name) for name in COLUMNS}

    def check(self, lengths: dict[str, int], digests: dict[str, str]) -> None:
        """Raise `UsageError` unless every file is here, and is the one, with which a checkpoint was written.

        Curves that were lost are no reason not to go on; they are said.
        """
        for name, length in (dict.fromkeys(COLUMNS, 1) | lengths).items():
            file = self.path / name
            size = file.stat().st_size if file.is_file() else -1
            if name not in COLUMNS and size < length:
                print(f"{file} is lost or cut; its curves go on in a new file.")
            elif size < length:
                raise UsageError(f"{file} has lost rows since the checkpoint was written; put the whole file back")
            elif digests.get(name) not in (None, _digest(file, length)):
                raise UsageError(f"{file} is not the table with which the checkpoint was written; put that one back")

    def cut_back(self, lengths: dict[str, int]) -> None:
        """Cut the growing files back to these lengths, behind `check`, and open them for more."""
        (self.path / "state_dicts").mkdir(exist_ok=True)
        for file in self._growing_files():
            if file.name not in (*COLUMNS, *lengths):
                file.unlink()  # curves of after the checkpoint
            elif file.stat().st_size > lengths.get(file.name, 0):
                os.truncate(file, lengths.get(file.name, 0))
        for name, columns in COLUMNS.items():
            self._tables[name] = open(self.path / name, "a", newline="")
            if not lengths.get(name):  # a new run, or one by a version that did not know this table
                append_row(self._tables[name], columns)
        self._events = SummaryWriter(str(self.path))

    def add_row(self, table: str, row: tuple[Any, ...]) -> None:
        """Append a row to one of the tables; raises `OSError`."""
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
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            way_out = f"{'make room' if full else 'mend that'}, or choose another --run-dir"
            raise UsageError(f"{self.path} cannot be written: {error.strerror or error}; {way_out}") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exception: object) -> None:
        for file in (*self._tables.values(), self._events):
            with contextlib.suppress(OSError):  # a full disk has been reported; what a checkpoint needs is on the disk
                if file:
                    file.close()
        self._lock.__exit__(None, None, None)
        threading.excepthook = self._excepthook

    def _except_in_thread(self, arguments: threading.ExceptHookArgs) -> None:
        if not isinstance(arguments.exc_value, OSError):
            self._excepthook(arguments)

    def _growing_files(self) -> list[Path]:
        return sorted(file for name in (*COLUMNS, EVENTS) for file in self.path.glob(name) if file.is_file())


def make_new_folder(path: Path) -> Path:
    """Make a folder that was not there, `path` or, where that name is taken, the first of `path`-2 and so on.

    So no two runs share one, though they begin in the same second or the clock was set back. Raises `UsageError`.
    """
    names = itertools.chain([path.name], (f"{path.name}-{number}" for number in itertools.count(2)))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for name in names:
            with contextlib.suppress(FileExistsError):
                path.with_name(name).mkdir()
                return path.with_name(name)
    except OSError as error:
        raise UsageError(f"{path} cannot be made: {error.strerror}; choose another --run-dir") from None
    raise AssertionError("the names do not end")


def _digest(file: Path, length: int | None = None) -> str:
    return hashlib.sha256(file.read_bytes()[:length]).hexdigest()


def check_is_run_or_new(path: Path) -> None:
    """Raise `UsageError` unless a folder is not there yet, empty, or a run's own; it is looked at only."""
    if "..." in path.parts:
        raise UsageError(f"{path}: the dots stand for a run's name; ls runs lists yours")
    if not os.path.isdir(path):  # unlike Path's, no error where one may not look
        return
    for name in WRITTEN:
        if os.path.isdir(path / name):
            raise UsageError(f"{path / name} is a folder, and a run writes a file there; move it, or take another")
    if os.path.lexists(path / "state_dicts") and not os.path.isdir(path / "state_dicts"):
        raise UsageError(f"{path / 'state_dicts'} is a file, and a run has a folder there; move it, or take another")
    entries = {entry.name for entry in os.scandir(path)}
    if entries & {"checkpoint.pt", "checkpoint.previous.pt"}:
        if "config.json" not in entries:
            raise UsageError(f"{path / 'config.json'} is missing; {_way_back(path)}")
        return
    begun, known = ("config.json" in entries), BEFORE_CHECKPOINT if "config.json" in entries else BEFORE_CONFIG
    bare = {name for name, columns in COLUMNS.items() if begun and name in entries and _is_bare(path / name, columns)}
    networks = os.listdir(path / "state_dicts") if os.path.isdir(path / "state_dicts") else []
    more = [*sorted(name for name in entries - bare if not known.fullmatch(name)), *networks]
    if not more:
        return
    if begun:
        raise UsageError(f"{path} holds {more[0]} but no checkpoint; put checkpoint.pt back, or take another --run-dir")
    raise UsageError(f"{path} is neither new, nor empty, nor a run: it holds {more[0]}; choose another --run-dir")


def _is_bare(table: Path, columns: tuple[str, ...]) -> bool:
    return table.read_bytes() in (b"", (",".join(columns) + "\n").encode())


def _way_back(path: Path) -> str:
    saved = CheckpointFile(path).load()[0].get("config")
    if saved is None:
        return "without it the run cannot go on: put it back, or choose another --run-dir"
    return f"put it back; the checkpoint was made with {json.dumps(saved)}"


def read_config(path: Path, known: Set[str]) -> dict[str, Any] | None:
    """The config.json of a folder, None without one; raises `UsageError` unless its keys are those of `known`."""
    file = path / "config.json"
    if not os.path.lexists(file):
        return None
    try:
        config = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{file} cannot be read ({error}); restore it, or choose another --run-dir") from None
    if not isinstance(config, dict):
        raise UsageError(f"{file} is not a run's configuration; restore it, or choose another --run-dir")
    if odd := sorted(config.keys() ^ known):
        raise UsageError(f"{file} has too many keys or too few ({', '.join(odd)}); restore it")
    return config
