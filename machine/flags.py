"""Flags: the bounds that stand beside them, and one wording for every refusal."""

import dataclasses
import math
import numbers
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_type_hints

from machine.exits import UsageError


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
        return math.isfinite(value) and above and below

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"{self.low} or more" if self.with_low else f"a finite number above {self.low}"
        if self.with_low:
            return f"from {self.low} to {'' if self.with_high else 'below '}{self.high}"
        return f"above {self.low} and {'at most' if self.with_high else 'below'} {self.high}"


Count = Annotated[int, Bounds(1)]
Probability = Annotated[float, Bounds(0, 1)]
Positive = Annotated[float, Bounds(0, with_low=False)]


def flag(name: str) -> str:
    """A field's name as one types it."""
    return f"--{name.replace('_', '-')}"


def check_bounds(config: Any) -> None:
    """Raise `UsageError` for the first flag of a config dataclass that lies outside its bounds."""
    for name, kind in get_type_hints(type(config), include_extras=True).items():
        value = getattr(config, name)
        for bounds in get_args(kind)[1:]:
            if isinstance(bounds, Bounds) and not bounds.hold(value):
                raise UsageError(f"{flag(name)} {value} cannot be: it must be {bounds}")


def take_numbers_as_meant(config: Any) -> None:
    """Let 1 stand for 1.0, 1e6 for 1_000_000 and NumPy's numbers for Python's, as a notebook may give them."""
    for field in dataclasses.fields(config):
        kind, value = type(field.default), getattr(config, field.name)
        is_number = isinstance(value, numbers.Real) and math.isfinite(value)
        if kind in (int, float) and is_number and kind(value) == value:
            setattr(config, field.name, kind(value))
