"""Descriptions of objects, as options hold them, and of spaces."""

from dataclasses import asdict
from typing import Any

from trajectory_transformer.environments.spec import SpaceLeaf, SpaceSpec


def spec_of(built: Any) -> dict[str, Any]:
    """The description that ``build`` makes an equal object from, for a dataclass of plain values."""
    return {"_target_": f"{type(built).__module__}.{type(built).__qualname__}", **asdict(built)}


def box(size: int, low: float = -1.0, high: float = 1.0) -> SpaceSpec:
    return SpaceSpec((SpaceLeaf((), "box", (size,), (low,) * size, (high,) * size),))
