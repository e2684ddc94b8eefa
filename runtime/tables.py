"""The tables of a run, games.csv and so on: their columns, writing a row, reading them back."""

import csv
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from runtime.exits import UsageError

GAME_COLUMNS = ("game", "agent_step", "frames", "score", "length_steps", "epsilon", "seconds")
EVALUATION_COLUMNS = ("agent_step", "mean", "standard_deviation", "minimum", "maximum", "mean_max_q")
TRAINING_COLUMNS = (
    *("agent_step", "loss", "mean_q", "deviation_q", "mean_q_held_out", "deviation_q_held_out"),
    *("learning_rate", "epsilon", "steps_per_second"),
)
COLUMNS = {"games.csv": GAME_COLUMNS, "evaluations.csv": EVALUATION_COLUMNS, "training.csv": TRAINING_COLUMNS}


def evaluation_row(agent_step: int, scores: np.ndarray, mean_max_q: float | None) -> tuple[Any, ...]:
    """A row of evaluations.csv, in the order of its columns."""
    return agent_step, scores.mean(), scores.std(), scores.min(), scores.max(), mean_max_q


# Not pandas or genfromtxt: they name neither line nor column of a wrong value, and do not expect unfinished lines.
Row = TypeVar("Row")


def read_rows(
    path: Path, columns: tuple[str, ...], parse: Callable[[int, dict[str, str]], Row], *, growing: bool = False
) -> list[Row]:
    """What `parse` makes of each line (its number, its values by column) of a CSV file that has these columns.

    A `growing` file may be written at this moment: an unfinished last line is left out. Raises `UsageError`
    for a file that cannot be read, lacks a column, or has a line on which `parse` raises `ValueError`.
    """
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from None
    if growing or not lines[-1]:
        del lines[-1]  # what follows the end of the last line
    if not lines and growing:
        return []
    header = next(csv.reader(lines[:1]), [])
    if missing := [column for column in columns if column not in header]:
        raise UsageError(f"{path} has no column {', '.join(missing)}; name the table that has them")
    rows = []
    for number, line in enumerate(lines[1:], start=2):
        try:
            values = next(csv.reader([line]), [])
            if len(values) != len(header):
                raise ValueError(f"{len(values)} values for {len(header)} columns")
            rows.append(parse(number, dict(zip(header, values, strict=True))))
        except (ValueError, csv.Error) as error:
            if growing and number == len(lines):
                break
            raise UsageError(f"{path}, line {number} is broken: {error}; correct or remove the line") from None
    return rows


def number_in(row: dict[str, str], column: str) -> float:
    """The finite number in a column of a row; raises `ValueError` with both."""
    try:
        value = float(row[column])
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{column} is '{row[column]}', not a number")
    return value
