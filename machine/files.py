"""Files written whole or not at all. (No library that is kept up does this with the folder synced.)"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path, mark: str = "") -> Iterator[Path]:
    """A temporary file beside `path` to fill in the block; after it, it is synced and becomes `path`.

    Whenever the process dies, `path` holds its old content or its new one, whole; a block that raises leaves the old
    one and nothing else. `mark` keeps apart what several processes write. Raises `OSError`.
    """
    temporary = path.with_name(f".{path.name}{mark}.tmp")
    try:
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with suppress(OSError):  # where nothing can be written, the first error is the one to hear of
            temporary.unlink()
        raise
    descriptor = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(descriptor)  # the names in a folder must survive a power cut, as a file's content does
    finally:
        os.close(descriptor)


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` whole or not at all; raises `OSError`."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
