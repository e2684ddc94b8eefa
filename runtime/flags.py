"""Flags: how a dataclass becomes a command line, the bounds of its values, and one wording for every refusal."""

import contextlib
import dataclasses
import difflib
import math
import numbers
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_args, get_origin, get_type_hints

import tyro
from tyro import _errors  # not public, but the one place that tells an error from its picture; tyro is pinned
from tyro._docstrings import get_field_docstring

from runtime.exits import UsageError


@dataclass(frozen=True)
class Bounds:
    """Which finite numbers a flag may be, beside its type: `Annotated[int, Bounds(1, 256)]`."""

    low: float
    high: float = math.inf
    with_low: bool = True
    with_high: bool = True

    def hold(self, value: float) -> bool:
        above = self.low <= value if self.with_low else self.low < value
        below = value <= self.high if self.with_high else value < self.high
        return abs(value) < math.inf and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{self.low} or more" if self.with_low else f"a finite number above {self.low}"
        if self.with_low:
            return f"from {self.low} to {'' if self.with_high else 'below '}{self.high}"
        return f"above {self.low} and {'at most' if self.with_high else 'below'} {self.high}"


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
    check_types(config)
    for name, hint in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for mark in getattr(hint, "__metadata__", ()):
            if isinstance(mark, Bounds) and value is not None and not mark.hold(value):
                raise UsageError(f"{flag(name)} {value} cannot be: it must be {mark}")


def check_types(config: Any) -> None:
    """Raise `UsageError` for the first flag of a config dataclass that has another type; numbers are taken as meant."""
    take_numbers_as_meant(config)
    secret = {field.name for field in dataclasses.fields(config) if not field.repr}
    for name, kind in get_type_hints(type(config)).items():
        value = getattr(config, name)
        may_be_none = value is None and type(None) in get_args(kind)
        if not may_be_none and (fault := _type_fault(value, _without_none(kind))):
            shown = "of another type" if name in secret else f"{value!r:.50}"
            raise UsageError(f"{flag(name)} {shown} cannot be: it must be {fault}")


_NAMES = {int: "a whole number", float: "a number", bool: "True or False", str: "a text"}


def _type_fault(value: Any, kind: Any) -> str | None:
    """What a value of this type must be, where this one is not; None where it is."""
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
            with contextlib.suppress(OverflowError, ValueError):  # what is no finite number stays as it is
                if kind(value) == value:
                    setattr(config, name, kind(value))


def parse(
    kind: type[Config],
    *,
    default: Config | None = None,
    groups: Mapping[str, Sequence[str]] = {},
    words: Sequence[str] | None = None,
) -> Config:
    """The config dataclass that the command line, or `words`, describes; raises `UsageError` where it describes none.

    groups: heading to fields, all of them, for --help; without, they stand in one box.
    """
    with clear_errors(kind):
        if not groups:
            return tyro.cli(kind, args=words) if default is None else tyro.cli(kind, args=words, default=default)
        values = tyro.cli(_in_groups(kind, default, groups), config=(tyro.conf.OmitArgPrefixes,))
    return kind(**{name: getattr(getattr(values, group), name) for group in groups for name in groups[group]})


def _in_groups(kind: type[Any], default: Any, groups: Mapping[str, Sequence[str]]) -> type[Any]:
    # tyro makes a box of each dataclass inside a dataclass, so the flat one is taken apart for it.
    hints: dict[str, Any] = get_type_hints(kind, include_extras=True)
    defaults = kind() if default is None else default

    def in_group(name: str) -> tuple[str, Any, Any]:
        helped = tyro.conf.arg(help=get_field_docstring(kind, name, ()))
        described: Any = Annotated[hints[name], helped]
        return name, described, dataclasses.field(default=getattr(defaults, name))

    boxes = {group: dataclasses.make_dataclass(group, map(in_group, names)) for group, names in groups.items()}
    for box in boxes.values():
        box.__doc__ = ""
    parts = [(group, box, dataclasses.field(default_factory=box)) for group, box in boxes.items()]
    whole = dataclasses.make_dataclass(kind.__name__, parts)
    whole.__doc__ = kind.__doc__
    return whole


@contextlib.contextmanager
def clear_errors(*kinds: type[Any]) -> Iterator[None]:
    """Let tyro, in the block, take 1e6 as a whole number and say in one line, as a `UsageError`, what is wrong.

    kinds: the config dataclasses whose flags may be meant by a misspelt one.
    """
    flags = sorted({flag(field.name) for kind in kinds for field in dataclasses.fields(kind)})
    with _REGISTRY, _errors.on_parse_error(lambda error: _refuse(error, flags)):
        yield


def _refuse(error: _errors.ParseErrorEvent, flags: list[str]) -> None:
    tokens = getattr(error, "tokens", None) or getattr(error, "unrecognized_tokens", [])
    tokens = [re.sub("://.*", "://...", token) for token in tokens]  # the address of a webhook is a secret
    missing = [argument.arg.display_name() for argument in getattr(error, "missing_arguments", [])]
    if unknown := [token for token in tokens if token.startswith("-")]:
        near = difflib.get_close_matches(flag(unknown[0].split("=")[0].lstrip("-")), flags, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "--help lists the flags"
        raise UsageError(f"{unknown[0]} is no flag here; {hint}")
    if tokens:
        hint = f"is it meant for {missing[0]}?" if missing else "--help lists the flags"
        raise UsageError(f"'{tokens[0]}' belongs to no flag; {hint}")
    if missing:
        raise UsageError(f"{', '.join(missing)} is missing; --help says what it is")
    argument = getattr(error, "argument", None)
    name = f"{argument.display_name()}: " if argument else ""
    if isinstance(error, _errors.InvalidChoice):
        raise UsageError(f"{name}'{error.value}' cannot be chosen; there are {', '.join(error.choices)}")
    reason = " ".join(str(getattr(error, "message", "it needs a value")).split())
    raise UsageError(f"{name}{reason}; --help says what can be given")


_REGISTRY = tyro.constructors.ConstructorRegistry()


@_REGISTRY.primitive_rule
def _numbers(info: tyro.constructors.PrimitiveTypeInfo) -> tyro.constructors.PrimitiveConstructorSpec[Any] | None:
    kind = info.type
    if kind not in (int, float):
        return None
    return tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar=kind.__name__.upper(),
        instance_from_str=lambda words: _number(words[0], kind),
        is_instance=lambda value: isinstance(value, kind),
        str_from_instance=lambda value: [str(value)],
    )


def _number(word: str, kind: type[float]) -> float:
    with contextlib.suppress(ValueError):
        return kind(word)
    with contextlib.suppress(ValueError, OverflowError):
        if int(float(word)) == float(word):
            return int(float(word))
    raise ValueError(f"'{word}' is not {_NAMES[kind]}")
