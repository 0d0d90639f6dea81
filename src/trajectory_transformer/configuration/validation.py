"""Checks that the option classes share: one validation of a record by its fields' types and ranges."""

import dataclasses
import difflib
import functools
import math
from collections.abc import Iterable, Mapping
from numbers import Integral, Real
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from ..errors import UserError

LARGEST = 1e18  # of a real option or value: float32 holds its square
LARGEST_WHOLE = 2**63 - 1  # what torch and NumPy count with
SHOWN_LENGTH = 80  # characters of a wrong value that a message repeats


def within(
    default: Any, low: float | None = None, high: float | None = None, *, above: float | None = None,
    below: float | None = None,
) -> Any:  # fmt: skip
    """A dataclass's field of a number (or null, where its type says so) in [low, high] or (above, below)."""
    return dataclasses.field(default=default, metadata={"range": Range(low, high, above, below)})


def one_of(default: Any, choices: tuple[str, ...]) -> Any:
    """A dataclass's field of one of these texts; a function, where the field's type allows it, is not compared."""
    return dataclasses.field(default=default, metadata={"choices": choices})


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, ``above`` one and ``below`` another; None: no such bound."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __str__(self) -> str:
        """The range as a clause, such as "in [1, 1000]", "in (0, 1]" or "≥ 1"; empty without bounds."""
        shown = {
            name: _plain(bound) for name, bound in vars(self).items() if bound is not None and abs(bound) < LARGEST
        }
        low, high = shown.get("low", shown.get("above")), shown.get("high", shown.get("below"))
        if low is not None and high is not None:
            return f"in {'(' if 'above' in shown else '['}{low}, {high}{')' if 'below' in shown else ']'}"
        signs = {"low": "≥", "above": ">", "high": "≤", "below": "<"}
        return "".join(f"{signs[name]} {bound}" for name, bound in shown.items())

    def wrong(self, value: float) -> str | None:
        """What a number outside must do, as the end of a sentence; None for one within."""
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
    """A bound without needless decimals."""
    return int(bound) if abs(bound) < LARGEST and bound == int(bound) else bound


def validate(prefix: str, record: Any) -> None:
    """Refuse a dataclass with a field not of its type, not finite, out of range or not among its choices.

    Ranges are those of :func:`within`, choices those of :func:`one_of`.

    A whole number serves as a real one. ``prefix`` begins the names in messages, such as "planner.".

    Raises:
        UserError: one sentence about the first such field.
    """
    for name, kind, limits, choices in _fields(type(record)):
        value = getattr(record, name)
        validate_value(f"{prefix}{name}", value, kind, limits)
        if choices and not callable(value):
            require_choice(f"{prefix}{name}", str(value), choices)


def validate_value(name: str, value: object, kind: Any, limits: Range | None = None) -> None:
    """Refuse, with a UserError that names it, a value that is not of a type, finite and within limits."""
    options = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    if not any(_fits(value, option) for option in options):
        raise UserError(f"{name} must be {' or '.join(map(_described, options))}, got {shown(value)}")
    if isinstance(value, Real) and not isinstance(value, bool):
        if isinstance(value, Integral):
            require(abs(int(value)) <= LARGEST_WHOLE, f"{name}={shown(value)} is too large a number")
        require(math.isfinite(value), f"{name}={value} must be finite")
        if limits is not None and (wrong := limits.wrong(float(value))):
            raise UserError(f"{name}={value} {wrong}{', or null' if NoneType in options else ''}")


def shown(value: object) -> str:
    """A wrong value for a message, in one line and not at length."""
    try:
        text = " ".join(repr(value).split())
    except (ValueError, RecursionError):  # a number of too many digits, lists within lists
        return f"a {type(value).__name__} too large to be shown"
    return text if len(text) <= SHOWN_LENGTH else f"{text[:SHOWN_LENGTH]}…"


@functools.cache
def _fields(record: type) -> tuple[tuple[str, Any, Range | None, tuple[str, ...]], ...]:
    """Name, type, range and choices (empty: any text) of a dataclass's fields."""
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


def _described(kind: Any) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", NoneType: "null"}
    origin, arguments = get_origin(kind) or kind, get_args(kind)
    if origin in (list, tuple):
        return f"a list, each entry {_described(arguments[0])}"
    return names.get(origin) or ("a mapping" if issubclass(origin, Mapping) else f"a {origin.__name__}")


def require(condition: bool, message: str) -> None:
    """Raise :class:`UserError` with ``message`` unless ``condition`` holds."""
    if not condition:
        raise UserError(message)


def require_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """Refuse a ``value`` that is none of ``choices``, offering the nearest."""
    if value not in choices:
        near = difflib.get_close_matches(value, choices, n=1)
        hint = f"; did you mean '{near[0]}'?" if near else ""
        raise UserError(f"{name}='{value}' is not one of {', '.join(choices)}{hint}")


def require_module_names(option: str, names: Iterable[str]) -> None:
    """Refuse what cannot be the dotted name of a module or package."""
    for name in names:
        valid = all(part.isidentifier() for part in name.split("."))
        require(valid, f"{option}: '{name}' is not the name of a module, such as my_package.environments")


def require_target(name: str, spec: object, kind: str) -> None:
    """Refuse a ``spec`` that names no class, before anything is imported; ``kind`` says what is needed instead."""
    named = isinstance(spec, Mapping) and isinstance(spec.get("_target_"), str)
    require(named, f"{name}={spec!r} is no mapping with a _target_; it needs {kind}")
