"""Flags: how a dataclass becomes a command line, and which values its fields may have."""

import contextlib
import dataclasses
import math
import numbers
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro

from runtime.exits import UsageError


@dataclass(frozen=True)
class Bounds:
    """Which finite numbers a flag may be: `Annotated[int, Bounds(1, 256)]`."""

    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def hold(self, value: float) -> bool:
        above = self.low <= value if self.with_low else self.low < value
        below = value <= self.high if self.with_high else value < self.high
        return abs(value) < math.inf and above and below

    def __str__(self) -> str:
        low = f"{'at least' if self.with_low else 'above'} {self.low}"
        if self.high == math.inf:
            return low
        return f"{low} and {'at most' if self.with_high else 'below'} {self.high}"


MOST = 10**15  # of anything that is counted: what NumPy, torch and a clock still take
Count = Annotated[int, Bounds(1, MOST)]
Probability = Annotated[float, Bounds(0, 1)]
Positive = Annotated[float, Bounds(0, 1e30, with_low=False)]  # float32 ends at 3e38

Config = TypeVar("Config")


def flag(name: str) -> str:
    """A field's name as one types it."""
    return f"--{name.replace('_', '-')}"


def check_bounds(config: Any) -> None:
    """Raise `UsageError` for the first flag of a config dataclass that has another type, or lies outside its bounds.

    A command line gives the right types; a notebook or a file may not.
    """
    take_numbers_as_meant(config)
    kinds, marked = get_type_hints(type(config)), get_type_hints(type(config), include_extras=True)
    for field in dataclasses.fields(config):
        value, kind = getattr(config, field.name), kinds[field.name]
        if value is None and type(None) in get_args(kind):
            continue
        expected = _other_type(value, _without_none(kind))
        for mark in getattr(marked[field.name], "__metadata__", ()):
            if expected is None and isinstance(mark, Bounds) and not mark.hold(value):
                expected = str(mark)
        if expected:
            got = f", got {value!r:.50}" if field.repr else ""  # else it is a secret
            raise UsageError(f"{flag(field.name)} must be {expected}{got}")


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "text"}


def _other_type(value: Any, kind: Any) -> str | None:
    """What a value of this type would be, where this one has another; None where it has this type."""
    if get_origin(kind) is Literal:
        return None if value in get_args(kind) else f"one of {', '.join(map(str, get_args(kind)))}"
    if get_origin(kind) is tuple and get_args(kind)[0] is str:
        fits = isinstance(value, tuple | list) and all(isinstance(each, str) for each in value)
        return None if fits else "a list of texts"
    if kind is Path:
        return None if isinstance(value, Path) else "a path"
    return None if kind not in _NAMES or type(value) is kind else _NAMES[kind]


def _without_none(kind: Any) -> Any:
    (bare,) = {*(get_args(kind) if type(None) in get_args(kind) else (kind,))} - {type(None)}
    return bare


def take_numbers_as_meant(config: Any) -> None:
    """Let 1 stand for 1.0, 1e6 for 1_000_000 and NumPy's numbers for Python's, as a notebook may give them."""
    for name, hint in get_type_hints(type(config)).items():
        value, kind = getattr(config, name), _without_none(hint)
        if kind in (int, float) and isinstance(value, numbers.Real) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError, ValueError):  # NaN and infinity stay as they are
                if kind(value) == value:
                    setattr(config, name, kind(value))


def parse(
    kind: type[Config],
    default: Config | None = None,
    arguments: Sequence[str] | None = None,
    about: str | None = None,
) -> Config:
    """The config dataclass that a command line describes, or `arguments`; tyro ends the process where it is wrong.

    about: what --help begins with, in place of the dataclass's own words.
    """
    args = plain_numbers(sys.argv[1:] if arguments is None else arguments)
    defaults: dict[str, Any] = {} if default is None else {"default": default}
    config: Config = tyro.cli(kind, args=args, description=about, **defaults)
    return config


def plain_numbers(arguments: Sequence[str]) -> list[str]:
    """The arguments, with 1e6 as 1000000, which alone is a whole number to tyro."""
    form = re.compile(r"\d+(\.\d+)?e\d{1,2}")
    return [str(int(float(each))) if form.fullmatch(each) and float(each) % 1 == 0 else each for each in arguments]
