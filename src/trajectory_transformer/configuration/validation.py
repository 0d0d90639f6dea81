"""Checks that the option classes share."""

import difflib
import math
from collections.abc import Mapping
from typing import Any

from ..errors import UserError


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


def require_probability(name: str, value: float) -> None:
    require(0.0 <= value < 1.0, f"{name}={value} must lie in [0, 1)")


def require_target(name: str, spec: object, kind: str) -> None:
    """Refuse a ``spec`` that names no class, before anything is imported; ``kind`` says what is needed instead."""
    named = isinstance(spec, Mapping) and isinstance(spec.get("_target_"), str)
    require(named, f"{name}={spec!r} is no mapping with a _target_; it needs {kind}")


def require_finite(prefix: str, options: Any) -> None:
    """Refuse NaN and infinity in any real field of a dataclass."""
    for name, value in vars(options).items():
        require(not isinstance(value, float) or math.isfinite(value), f"{prefix}.{name}={value} must be finite")
