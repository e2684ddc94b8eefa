"""Files written whole or not at all."""

import csv
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from runtime.exits import RunError, UsageError, is_out_of_memory
from runtime.tables import COLUMNS

OF_RUNS = ("config.json", *COLUMNS)  # no output replaces these


def check_output(path: Path, suffix: str) -> None:
    """Raise `UsageError` unless a file with this suffix can be written to `path`; called before the work starts.

    A file of that name is replaced; a folder is not, nor is a file with another suffix, nor one that a run writes.
    """
    if path.suffix != suffix:
        raise UsageError(f"{path} must end in {suffix}")
    if path.name in OF_RUNS:
        raise UsageError(f"{path.name} is the name of a run's own file; choose another name than {path}")
    if os.path.isdir(path):
        raise UsageError(f"{path} is a folder; name a file in it")
    try:
        temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        temporary.touch()
        temporary.unlink()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"cannot write {path}: {reason}; choose another folder or name") from None


def check_new_folder(path: Path) -> None:
    """Raise `UsageError` unless `path` can become a folder of new files: it does not exist yet, or is empty."""
    if not path.parent.is_dir():
        raise UsageError(f"the folder {path.parent} of {path.name} does not exist; create it first, or choose another")
    if os.path.lexists(path) and not (path.is_dir() and not os.listdir(path)):
        raise UsageError(f"{path} exists and is not empty; name a new or an empty folder")


# No library that is kept up does this with the folder synced.
@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A temporary file next to `path` to fill in the block; after it, it is synced and becomes `path`.

    Whenever the process dies, `path` holds its old content or its new one, whole; a block that raises leaves the old
    one and nothing else. `mark` keeps apart what several processes write. Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # where nothing can be written, the first error is the one to report
            temporary.unlink()
        raise
    if os.name == "posix":  # Windows opens no folder
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)  # the names in a folder must survive a power cut, as a file's content does
        finally:
            os.close(descriptor)


def sync(path: Path) -> None:
    """Have the content of a file on the disk; raises `OSError`."""
    with open(path, "r+b") as file:  # Windows syncs only what may be written
        os.fsync(file.fileno())


@contextmanager
def making_folder(path: Path) -> Iterator[Path]:
    """`replacing` for a folder: a temporary one next to `path`, which replaces none or an empty one."""
    temporary = path.parent / f".{path.name}.{os.getpid()}.tmp"
    temporary.mkdir()
    try:
        yield temporary
        if os.path.lexists(path):
            path.rmdir()  # Windows replaces no folder, not even an empty one
        os.replace(temporary, path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


@contextmanager
def failing_clearly(path: Path) -> Iterator[None]:
    """Raise `RunError`, naming `path`, where the block raises `OSError`, but for memory that ran out."""
    try:
        yield
    except OSError as error:
        if is_out_of_memory(error):
            raise
        raise RunError(f"cannot write {path}: {error.strerror or error}") from None


@contextmanager
def writing_output(path: Path) -> Iterator[Path]:
    """`replacing` for a file that the user asked for, after `check_output`; raises `RunError` where it fails."""
    with failing_clearly(path), replacing(path, f".{os.getpid()}") as temporary:
        yield temporary


def lock_folder(path: Path) -> AbstractContextManager[object]:
    """Make a folder where none is, and lock it until the block of the returned context ends, or the process.

    Raises `OSError`, and `UsageError` where another process holds it.
    """
    path.mkdir(parents=True, exist_ok=True)
    try:
        return FileLock(path / "lock").acquire(blocking=False)
    except Timeout:
        raise UsageError(f"{path} is in use by another process; wait for it, or choose another --run-dir") from None


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all; raises `OSError`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write a table whole or not at all, the `columns` of each row; raises `RunError`."""
    with writing_output(path) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
