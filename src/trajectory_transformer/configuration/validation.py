"""Validation of dataclasses by their fields' types, ranges and choices."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import UserError

LARGEST = 1e18  # limit of a real option or value, whose square float32 can hold
LARGEST_WHOLE = 2**63 - 1  # the largest integer of torch and NumPy
SHOWN_LENGTH = 80  # maximum characters of a wrong value quoted in a message


def within(
    default: Any, low: float | None = None, high: float | None = None, *, above: float | None = None,
    below: float | None = None,
) -> Any:  # fmt: skip
    """Declare a dataclass field for a number in [low, high] or (above, below), or null if its type permits it."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, above, below)})


def one_of(default: Any, choices: tuple[str, ...]) -> Any:
    """Declare a dataclass field for one of ``choices``; a callable is also accepted if the field's type permits it."""
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclasses.dataclass(frozen=True)
class Range:
    """Range of numbers, with inclusive (``low``, ``high``) or exclusive (``above``, ``below``) bounds or None."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        """Return the range as a clause, such as "in [1, 1000]", "in (0, 1]" or "≥ 1"; empty without bounds."""
        shown = {
            name: _plain(bound) for name, bound in vars(self).items() if bound is not None and abs(bound) < LARGEST
        }
        low, high = shown.get("low", shown.get("above")), shown.get("high", shown.get("below"))
        if low is not None and high is not None:
            return f"in {'(' if 'above' in shown else '['}{low}, {high}{')' if 'below' in shown else ']'}"
        signs = {"low": "≥", "above": ">", "high": "≤", "below": "<"}
        return "".join(f"{signs[name]} {bound}" for name, bound in shown.items())

    def wrong(self, value: float) -> str | None:
        """Return the end of a message on a number outside the range, such as "must be at least 1"; None if inside."""
        low, high, above, below = (
            None if bound is None else _plain(bound) for bound in (self.low, self.high, self.above, self.below)
        )
        too_small = (low is not None and value < low) or (above is not None and value <= above)
        if not too_small and (high is None or value <= high) and (below is None or value < below):
            return None
        start = f"({above}" if above is not None else f"[{low}"
        if below is not None or high == 1:
            return f"must lie in {start}, {high}]" if below is None else f"must lie in {start}, {below})"
        if not too_small:
            return f"must be at most {high}"
        if above is not None:
            return "must be positive" if above == 0 else f"must be above {above}"
        return "must not be negative" if low == 0 else f"must be at least {low}"


def _plain(bound: float) -> float:
    """Return a whole bound as an int, so that it is printed without decimals."""
    return int(bound) if abs(bound) < LARGEST and bound == int(bound) else bound


def validate(prefix: str, record: Any) -> None:
    """Raise UserError for the first field of a dataclass of a wrong type, not finite, out of range or no valid choice.

    Ranges are those of :func:`within`, choices those of :func:`one_of`. A whole number is accepted as a real one.
    ``prefix`` begins the names in messages, such as "planner.".
    """
    for name, kind, limits, choices in _fields(type(record)):
        value = getattr(record, name)
        validate_value(f"{prefix}{name}", value, kind, limits)
        if choices and not callable(value):
            require_choice(f"{prefix}{name}", str(value), choices)


def validate_value(name: str, value: object, kind: Any, limits: Range | None = None) -> None:
    """Raise UserError, naming the option, if a value has the wrong type, is not finite or not within ``limits``."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if not any(_fits(value, option) for option in options):
        raise UserError(f"{name} must be {described(kind)}, got {shown(value)}")
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            require(abs(int(value)) <= LARGEST_WHOLE, f"{name}={shown(value)} is too large a number")
        require(math.isfinite(value), f"{name}={value} must be finite")
        if limits is not None and (wrong := limits.wrong(float(value))):
            raise UserError(f"{name}={value} {wrong}{', or null' if NoneType in options else ''}")


def shown(value: object) -> str:
    """Return a wrong value in one line, shortened for a message."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number with too many digits, deeply nested lists
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}…"


@functools.cache
def _fields(record: type) -> tuple[tuple[str, Any, Range | None, tuple[str, ...]], ...]:
    """Return the name, type, range and choices (empty: any text) of each field of a dataclass."""
    hints = get_type_hints(record)
    return tuple(
        (f.name, hints[f.name], f.metadata.get("range"), f.metadata.get("choices", ()))
        for f in dataclasses.fields(record)
    )


def _fits(value: object, kind: Any) -> bool:
    if kind is Any:
        return True
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (int, float):
        return isinstance(value, Integral if origin is int else Real) and not isinstance(value, bool)
    if not isinstance(value, origin):
        return False
    if origin is list and isinstance(value, list):
        return all(_fits(entry, arguments[0]) for entry in value)
    if origin is tuple and isinstance(value, tuple):
        kinds = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(kinds) == len(value) and all(map(_fits, value, kinds))
    if isinstance(value, Mapping) and arguments:
        return all(_fits(key, arguments[0]) and _fits(entry, arguments[1]) for key, entry in value.items())
    return True


def described(kind: Any) -> str:
    """Return the values that a type permits in words, such as "a whole number or null"."""
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (Union, UnionType):
        return " or ".join(map(described, arguments))
    if origin in (list, tuple):
        return f"a list, each entry {described(arguments[0])}"
    if issubclass(origin, Mapping) or dataclasses.is_dataclass(origin):
        return "a mapping"
    return names.get(origin, f"a {origin.__name__}")


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Raise UserError if ``value`` is not one of ``choices``, offering the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{name}={shown(value)} is not one of {', '.join(choices)}{hint}")


def require_module_names(option: str, names: Iterable[str]) -> None:
    """Raise UserError for a text that cannot be the dotted name of a module or package."""
    for name in names:
        valid = all(part.isidentifier() for part in name.split("."))
        require(valid, f"{option}: '{name}' is not the name of a module, such as my_package.environments")


def require_target(name: str, spec: object, kind: str) -> None:
    """Raise UserError if ``spec`` names no class, without importing anything; ``kind`` describes the needed class."""
    named = isinstance(spec, Mapping) and isinstance(spec.get("_target_"), str)
    require(named, f"{name}={shown(spec)} is not a mapping with a _target_; give {kind}")
