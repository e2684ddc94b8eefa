"""The table of runs that stands in the terminal while they go on; where there is no terminal, a line per change."""

import csv
import datetime
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

import numpy as np

from machine.files import write_csv

LINE_EVERY_SECONDS = 60.0  # where there is no terminal
TAIL_BYTES = 16_384  # of a table hold its last 100 rows
RECENT_GAMES = 100
GOING_ON = ("training", "evaluating")


@dataclass
class Row:
    """A run as the table shows it."""

    run: str
    game: str
    seed: int
    value: str = ""
    state: str = "waiting"
    agent_steps: int = 0
    games: int = 0
    mean_of_100: float | None = None
    steps_per_second: float | None = None
    seconds_left: float | None = None
    message: str = ""

    def look(self, folder: Path, steps_limit: int) -> None:
        """Read from the run's files how far it is."""
        games, logged = last_rows(folder / "games.csv"), last_rows(folder / "training.csv")
        self.games, of_game = (int(games[-1][0]), int(games[-1][1])) if games else (0, 0)
        self.agent_steps = max(of_game, int(logged[-1][0]) if logged else 0)
        self.mean_of_100 = float(np.mean([float(row[3]) for row in games[-RECENT_GAMES:]])) if games else None
        left, rate = max(0, steps_limit - self.agent_steps), float(logged[-1][-1]) if logged else None
        training = self.state == "training"
        self.steps_per_second = rate if training else None
        self.seconds_left = left / rate if training and rate else None

    def cells(self) -> tuple[str, ...]:
        """What is shown of a run beside its name, in the order of `HEADINGS`."""
        mean = "" if self.mean_of_100 is None else f"{self.mean_of_100:,.1f}"
        rate = "" if self.steps_per_second is None else f"{self.steps_per_second:,.0f}"
        left = "" if self.seconds_left is None else str(datetime.timedelta(seconds=round(self.seconds_left)))
        return f"{self.agent_steps:,}", mean, rate, left, f"{self.state} {self.message}".rstrip()


HEADINGS = ("agent steps", "mean of 100", "steps/s", "time left", "state")
COLUMNS = tuple(field.name for field in fields(Row))


def last_rows(table: Path) -> list[list[str]]:
    """The last rows of a table of a run, about 100, as far as they are written; none where there is none."""
    try:
        with open(table, "rb") as file:
            file.seek(max(0, os.path.getsize(table) - TAIL_BYTES))
            lines = file.read().decode(errors="replace").split("\n")[1:-1]  # the first is cut, or names the columns
    except OSError:
        return []
    return list(csv.reader(lines))


class Board:
    """Shows the rows, and keeps them in a CSV file; a context manager."""

    def __init__(self, rows: Mapping[str, Row], file: Path, named_by: tuple[str, ...] = ("run",)):
        """`rows` by run; more may come. named_by: what of a row names it in the first columns of the table."""
        self._rows = rows
        self._named_by = named_by
        self._file = file
        self._live: Any = None
        self._said: dict[str, str] = {}
        self._said_at = time.monotonic()

    def __enter__(self) -> Self:
        if sys.stdout.isatty():
            from rich.live import Live

            self._live = Live(auto_refresh=False)
            self._live.start()
        return self

    def __exit__(self, *_exception: object) -> None:
        if self._live:
            self._live.stop()

    def show(self) -> None:
        """Write the file and refresh the table; raises `RunError`."""
        write_csv(self._file, COLUMNS, [vars(row) for row in self._rows.values()])
        if self._live:
            self._live.update(self._table(), refresh=True)
            return
        all_due = time.monotonic() - self._said_at > LINE_EVERY_SECONDS
        for row in self._rows.values():
            if self._said.get(row.run) != row.state or (all_due and row.state in GOING_ON):
                named = zip(HEADINGS[:-1], row.cells()[:-1], strict=True)
                print(f"{row.run}: {row.cells()[-1]}", *(f"{name} {cell}" for name, cell in named if cell), sep=", ")
                self._said[row.run] = row.state
        if all_due:
            self._said_at = time.monotonic()

    def _table(self) -> Any:
        from rich.markup import escape
        from rich.table import Table

        table = Table(*self._named_by, *HEADINGS, box=None, pad_edge=False)
        order = {"training": 0, "evaluating": 0, "failed": 1, "waiting": 2}  # what does not fit is what is done
        for row in sorted(self._rows.values(), key=lambda row: order.get(row.state, 3)):
            table.add_row(*(escape(str(getattr(row, name))) for name in self._named_by), *map(escape, row.cells()))
        return table
