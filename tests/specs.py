"""Descriptions of objects, as options hold them."""

from dataclasses import asdict
from typing import Any


def spec_of(built: Any) -> dict[str, Any]:
    """The description that ``build`` makes an equal object from, for a dataclass of plain values."""
    return {"_target_": f"{type(built).__module__}.{type(built).__qualname__}", **asdict(built)}
