"""Gymnasium spaces as plain :class:`SpaceSpec` data."""

import gymnasium as gym
import numpy as np

from ..errors import UserError
from .spec import SpaceLeaf, SpaceSpec


def space_spec(space: gym.Space) -> SpaceSpec:
    """Describe a Box, a Discrete, or a (nested) Dict of them.

    Raises:
        UserError: another kind of space, named with its key, or a space without any dimension.
    """
    spec = SpaceSpec(tuple(_leaves(space, ())))
    if spec.size == 0:
        raise UserError(f"the space {space} has no dimension")
    return spec


def _leaves(space: gym.Space, path: tuple[str, ...]) -> list[SpaceLeaf]:
    if isinstance(space, gym.spaces.Dict):
        return [leaf for key in sorted(space.spaces) for leaf in _leaves(space.spaces[key], (*path, key))]
    if isinstance(space, gym.spaces.Box):
        low, high = (tuple(bound.astype(np.float64).ravel().tolist()) for bound in (space.low, space.high))
        return [SpaceLeaf(path, "box", tuple(space.shape), low, high)]
    if isinstance(space, gym.spaces.Discrete):
        first = float(space.start)
        return [SpaceLeaf(path, "discrete", (), (first,), (first + float(space.n) - 1.0,))]
    where = f"key '{'.'.join(path)}'" if path else "the space"
    raise UserError(f"{where} is a {type(space).__name__} space; only Box, Discrete and Dict spaces become tokens")
