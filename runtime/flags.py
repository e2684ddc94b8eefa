"""Flags: how a dataclass becomes a command line, and which values its fields may have."""

import contextlib
import dataclasses
import inspect
import math
import numbers
import re
from collections.abc import Mapping, Sequence
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
    *,
    default: Config | None = None,
    groups: Mapping[str, Sequence[str]] = {},
    arguments: Sequence[str] | None = None,
    about: str | None = None,
) -> Config:
    """The config dataclass that the command line, or `arguments`, describes; tyro ends the process where it is wrong.

    groups: heading to fields, all of them, for --help; without, they stand in one box. about: what --help begins with.
    """
    more: dict[str, Any] = {"args": arguments, "registry": NUMBERS, "description": about}
    if not groups:
        return tyro.cli(kind, **more) if default is None else tyro.cli(kind, default=default, **more)
    values = tyro.cli(_in_groups(kind, default, groups), config=(tyro.conf.OmitArgPrefixes,), **more)
    return kind(**{name: getattr(getattr(values, group), name) for group in groups for name in groups[group]})


def _in_groups(kind: type[Any], default: Any, groups: Mapping[str, Sequence[str]]) -> type[Any]:
    # tyro makes a box of each dataclass inside a dataclass, so the flat one is taken apart for it.
    hints: dict[str, Any] = get_type_hints(kind, include_extras=True)
    defaults = kind() if default is None else default
    docs: dict[str, str] = {}
    for each in kind.__mro__[-2::-1]:  # the string below a field, which Python itself does not keep
        docs |= dict(re.findall(r'^    (\w+): .*\n    """((?s:.*?))"""', inspect.getsource(each), re.MULTILINE))

    def in_group(name: str) -> tuple[str, Any, Any]:
        described: Any = Annotated[hints[name], tyro.conf.arg(help=" ".join(docs[name].split()))]
        return name, described, dataclasses.field(default=getattr(defaults, name))

    boxes = {group: dataclasses.make_dataclass(group, map(in_group, names)) for group, names in groups.items()}
    for box in boxes.values():
        box.__doc__ = ""
    parts = [(group, box, dataclasses.field(default_factory=box)) for group, box in boxes.items()]
    whole = dataclasses.make_dataclass(kind.__name__, parts)
    whole.__doc__ = kind.__doc__
    return whole


NUMBERS = tyro.constructors.ConstructorRegistry()  # lets tyro take 1e6 as a whole number


@NUMBERS.primitive_rule
def _number_rule(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    kind = info.type
    if kind is not int:
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="INT",
        instance_from_str=lambda texts: _whole_number(texts[0]),
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    )


def _whole_number(text: str) -> int:
    with contextlib.suppress(ValueError):
        return int(text)
    with contextlib.suppress(ValueError, OverflowError):
        if int(float(text)) == float(text):
            return int(float(text))
    raise ValueError(f"'{text}' is not a whole number")
