"""Environments and their spaces as plain data that a checkpoint can store; does not import Gymnasium."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from operator import attrgetter
from typing import Any

import numpy as np

from ..errors import UserError


@dataclass(frozen=True)
class SpaceLeaf:
    """A non-Dict space within a (possibly nested Dict) space."""

    path: tuple[str, ...]  # keys from the root to this leaf; empty if the root is the leaf
    kind: str  # "box", "discrete", or, without dimensions, a class that cannot become tokens, such as "Text"
    shape: tuple[int, ...]  # shape of a Box; empty for Discrete, which becomes one dimension holding the index
    low: tuple[float, ...]  # bounds of each flattened dimension (±inf allowed); for Discrete its first index
    high: tuple[float, ...]  # likewise; for Discrete its last index
    # Type of the values, such as "int64"; empty in earlier checkpoints: float32, or int64 for Discrete.
    dtype: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        if self.numbers.kind not in "biuf" or (self.low and not self.usable):
            raise ValueError(f"a {self.kind} space of {self.dtype or 'unknown values'} has no numbers")

    @property
    def numbers(self) -> np.dtype:
        """Type of the values."""
        return np.dtype(self.dtype or ("int64" if self.kind == "discrete" else "float32"))

    @property
    def key(self) -> str:
        """Dotted path, such as ``goal.position``."""
        return ".".join(self.path)

    @property
    def usable(self) -> bool:
        """True if the space can become tokens."""
        return self.kind in ("box", "discrete")

    @property
    def size(self) -> int:
        return len(self.low)


@dataclass(frozen=True)
class SpaceSpec:
    """A space as a sequence of leaves, whose dimensions are concatenated when flattened.

    Dict keys are visited depth first in alphabetical order, as Gymnasium sorts them and Minari stores them.
    """

    leaves: tuple[SpaceLeaf, ...]

    @property
    def structure(self) -> list[SpaceLeaf]:
        """The leaves without the bounds of a Box: what must be equal for one space to stand for the other."""
        return [replace(leaf, low=(), high=()) if leaf.kind == "box" else leaf for leaf in self.leaves]

    @property
    def size(self) -> int:
        """Number of flattened dimensions."""
        return sum(leaf.size for leaf in self.leaves)

    def under(self, keys: Sequence[str]) -> "SpaceSpec":
        """Return the space of the leaves at or below the dotted ``keys``; "" selects a root that is a leaf."""
        return SpaceSpec(tuple(leaf for leaf in self.leaves if any(_is_under(leaf.key, key) for key in keys)))

    def columns(self, kept: "SpaceSpec") -> np.ndarray:
        """Return the indices, among this space's flattened dimensions, of the leaves that :meth:`under` kept."""
        paths = {leaf.path for leaf in kept.leaves}
        return np.flatnonzero([leaf.path in paths for leaf in self.leaves for _ in range(leaf.size)])

    def require_usable(self, place: str) -> None:
        """Raise UserError, naming the key, for a leaf that cannot become tokens."""
        for leaf in self.leaves:
            if not leaf.usable:
                others = ",".join(other.key for other in self.leaves if other.usable)
                raise UserError(
                    f"{place}key '{leaf.key}' is a {leaf.kind} space, and only Box, Discrete and Dict spaces become "
                    f"tokens; data.observation_keys=[{others}] leaves it out"
                )

    @property
    def low(self) -> np.ndarray:
        """Lower bounds, (size,) float64."""
        return np.array([bound for leaf in self.leaves for bound in leaf.low])

    @property
    def high(self) -> np.ndarray:
        """Upper bounds, (size,) float64."""
        return np.array([bound for leaf in self.leaves for bound in leaf.high])

    @property
    def discrete(self) -> np.ndarray:
        """Mask (size,) of the dimensions that hold the index of a Discrete space."""
        return np.array([leaf.kind == "discrete" for leaf in self.leaves for _ in range(leaf.size)], dtype=bool)

    @property
    def whole(self) -> np.ndarray:
        """Mask (size,) of the dimensions that hold whole numbers, including those of a Box of integers."""
        return np.array([leaf.numbers.kind != "f" for leaf in self.leaves for _ in range(leaf.size)], dtype=bool)

    def names(self) -> list[str]:
        """Return a name for each flattened dimension, such as ``desired_goal[0]``."""
        return [
            f"{leaf.key}[{i}]" if leaf.kind == "box" else leaf.key or "index"
            for leaf in self.leaves
            for i in range(leaf.size)
        ]

    def flatten(self, values: Any) -> np.ndarray:
        """Flatten batched values of the space, (batch, …) in each leaf, to one (batch, size) float32 array.

        Raises:
            KeyError: a Dict key is missing.
            ValueError: a leaf has another shape, or does not hold real numbers.
        """
        columns = []
        for leaf in filter(attrgetter("usable"), self.leaves):
            value = values
            for key in leaf.path:
                value = value[key]
            array = np.asarray(value)
            if array.dtype.kind not in "biuf":
                raise ValueError(f"{leaf.key or 'space'} holds values of type {array.dtype}, expected real numbers")
            if array.shape[1:] != leaf.shape:
                raise ValueError(f"{leaf.key or 'space'} has shape {array.shape[1:]}, expected {leaf.shape}")
            columns.append(array.astype(np.float32, copy=False).reshape(len(array), leaf.size))
        return np.concatenate(columns, axis=1)

    def to_environment(self, flat: np.ndarray) -> np.ndarray:
        """Convert flat actions (batch, size) to those of a vector environment; only for a space of a single leaf.

        They are clipped to the bounds, rounded if the space holds whole numbers, and converted to the space's type and
        shape.
        """
        (leaf,) = self.leaves
        high = np.array(leaf.high)
        if leaf.numbers.kind in "iu":  # as a float, the largest int64 would be rounded up beyond its range
            high = np.minimum(high, np.nextafter(float(np.iinfo(leaf.numbers).max), 0))
        clipped = np.clip(flat, np.array(leaf.low), high)
        rounded = clipped if leaf.numbers.kind == "f" else np.rint(clipped)
        return rounded.astype(leaf.numbers).reshape(len(flat), *leaf.shape)


@dataclass(frozen=True)
class EnvironmentSpec:
    """The environment of a data set, with all that is needed to rebuild it and convert its data."""

    env_id: str  # Gymnasium id, such as Hopper-v5; empty if the data set names none
    spec_json: str | None  # Gymnasium's EnvSpec.to_json() of the environment to evaluate in, or None
    observation: SpaceSpec  # with all dimensions
    action: SpaceSpec
    observation_indices: tuple[int, ...] | None = None  # flattened dimensions that the model sees; None: all

    @property
    def observation_names(self) -> list[str]:
        """Names of the observation dimensions that the model sees."""
        names = [f"observation{name}" if name.startswith("[") else name for name in self.observation.names()]
        chosen = self.observation_indices
        return names if chosen is None else [names[index] for index in chosen]

    @property
    def observation_dim(self) -> int:
        """Number of observation dimensions that the model sees."""
        return self.observation.size if self.observation_indices is None else len(self.observation_indices)

    @property
    def action_dim(self) -> int:
        return self.action.size

    def finite_action_bounds(self, learner: str) -> tuple[list[float], list[float]]:
        """Return the lower and upper bounds of actions, for a learner's policy; UserError unless all are finite."""
        (leaf,) = self.action.leaves
        if leaf.kind != "box" or not np.isfinite([*leaf.low, *leaf.high]).all():
            raise UserError(
                f"learner={learner} needs actions from a Box with finite bounds, which environment '{self.env_id}' "
                "does not have; its policy and its scaling depend on them"
            )
        return list(leaf.low), list(leaf.high)

    def observations(self, values: Any) -> np.ndarray:
        """Convert batched raw observations to the (batch, observation_dim) float32 array that the model sees."""
        flat = self.observation.flatten(values)
        return flat if self.observation_indices is None else flat[:, list(self.observation_indices)]

    @property
    def goal_dimensions(self) -> tuple[int, ...]:
        """Dimensions fixed by a goal, among those that the model sees: ``achieved_goal``, or all if there is none.

        Raises:
            UserError: the model sees part of ``desired_goal``, or not all of ``achieved_goal``.
        """
        keys = [leaf.path[-1:] for leaf in self.observation.leaves for _ in range(leaf.size)]
        seen = range(len(keys)) if self.observation_indices is None else self.observation_indices
        desired, achieved = (
            [index for index, key in enumerate(keys) if key == (name,)] for name in ("desired_goal", "achieved_goal")
        )
        if set(desired) & set(seen) or not set(achieved) <= set(seen):
            raise UserError(
                f"a model trained to reach goals must see the achieved goal and not the desired one: "
                f"data.observation_indices must contain {achieved} (achieved_goal) and none of {desired} (desired_goal)"
            )
        return tuple(list(seen).index(index) for index in achieved) or tuple(range(len(seen)))

    def to_dict(self) -> dict[str, Any]:
        """Return plain lists, strings and numbers, from which :meth:`from_dict` restores the spec."""
        return json.loads(json.dumps(asdict(self)))  # converts tuples to lists

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "EnvironmentSpec":
        observation, action = (
            SpaceSpec(tuple(SpaceLeaf(**_with_tuples(leaf)) for leaf in data[space]["leaves"]))
            for space in ("observation", "action")
        )
        indices = _with_tuples(data)["observation_indices"]
        return cls(data["env_id"], data["spec_json"], observation, action, indices)


def _is_under(key: str, chosen: str) -> bool:
    return key == chosen or (chosen != "" and key.startswith(f"{chosen}."))


def _with_tuples(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
