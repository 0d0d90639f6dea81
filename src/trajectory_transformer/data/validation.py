"""Checks of stored episodes; every refusal names the episode's place and the field."""

import numpy as np

from ..environments.spec import SpaceSpec
from ..errors import UserError
from .episode_source import StoredEpisode
from .episodes import Episode


def validate_episode(stored: StoredEpisode, observation: SpaceSpec, action: SpaceSpec) -> Episode:
    """An :class:`Episode` with all dimensions of its observations, if everything in it is as it must be.

    Args:
        stored: the episode.
        observation, action: its spaces.

    Raises:
        UserError: a length of 0, lengths that do not fit together (observations must be one more than actions), a shape
            other than the space's, NaN or infinite values, a Discrete value outside its space, a termination before
            the last step.
    """
    where = stored.place
    actions = _flatten(where, "actions", stored.actions, action)
    observations = _flatten(where, "observations", stored.observations, observation)
    rewards = _row(where, "rewards", stored.rewards)
    steps = len(actions)
    if steps == 0:
        raise UserError(f"{where}, actions: the episode has length 0")
    if len(observations) != steps + 1:
        raise UserError(f"{where}, observations: {len(observations)} for {steps} actions, expected {steps + 1}")
    terminations = _flags(where, "terminations", stored.terminations, steps)
    truncations = _flags(where, "truncations", False if stored.truncations is None else stored.truncations, steps)
    for field, row in (("rewards", rewards), ("terminations", terminations), ("truncations", truncations)):
        if len(row) != steps:
            raise UserError(f"{where}, {field}: {len(row)} for {steps} actions, expected as many")
    if stored.total_steps is not None and stored.total_steps != steps:
        raise UserError(
            f"{where}, total_steps: its metadata says {stored.total_steps}, but {steps} actions and "
            f"{len(observations)} observations are stored"
        )
    _check_finite(where, "observations", observations, observation.names())
    _check_finite(where, "actions", actions, action.names())
    _check_finite(where, "rewards", rewards[:, None], ["rewards"])
    _check_discrete(where, "observations", observations, observation)
    _check_discrete(where, "actions", actions, action)
    early = np.flatnonzero(terminations[:-1])
    if len(early):
        raise UserError(
            f"{where}, terminations: true at step {early[0]} of {steps}, before the last; episodes must end there"
        )
    return Episode(observations, actions, rewards, terminated=bool(terminations[-1]))


def _flatten(where: str, field: str, values: object, spec: SpaceSpec) -> np.ndarray:
    """(rows, size) float32 of a space's values, which may have been flattened before."""
    if isinstance(values, np.ndarray) and values.ndim == 2 and (spec.leaves[0].path or values.shape[1] == spec.size):
        if values.shape[1] != spec.size:
            raise UserError(f"{where}, {field}: has {values.shape[1]} columns, the flattened space {spec.size}")
        return _numbers(where, field, values)
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return spec.flatten(values)
    except KeyError as error:
        raise UserError(f"{where}, {field}: key {error.args[0]!r} of the space is missing") from error
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{where}, {field}: {error}") from error


def _row(where: str, field: str, values: object) -> np.ndarray:
    """(T,) float32 of one entry for each step."""
    row = _numbers(where, field, values)
    if row.shape[1:] not in ((), (1,)) or row.ndim == 0:
        raise UserError(f"{where}, {field}: has shape {row.shape}, expected one number for each step")
    return row.reshape(len(row))


def _flags(where: str, field: str, values: object, steps: int) -> np.ndarray:
    """(T,) flags; a single one is the last step's."""
    if np.ndim(values) == 0:  # pyright: ignore[reportArgumentType]
        return np.append(np.zeros(steps - 1, dtype=np.float32), _numbers(where, field, values))
    return _row(where, field, values)


def _numbers(where: str, field: str, values: object) -> np.ndarray:
    try:
        with np.errstate(over="ignore"):
            return np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}, {field}: {error}") from error


def _check_finite(where: str, field: str, values: np.ndarray, names: list[str]) -> None:
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        step, column = bad[0]
        raise UserError(f"{where}, {field}: {values[step, column]} at step {step}, dimension {names[column]}")


def _check_discrete(where: str, field: str, values: np.ndarray, spec: SpaceSpec) -> None:
    discrete = np.array([leaf.kind == "discrete" for leaf in spec.leaves for _ in range(leaf.size)])
    indices, low, high = values[:, discrete], spec.low[discrete], spec.high[discrete]
    bad = np.argwhere((indices != np.rint(indices)) | (indices < low) | (indices > high))
    if len(bad):
        step, column = bad[0]
        raise UserError(
            f"{where}, {field}: {indices[step, column]:g} at step {step}, outside the Discrete space's "
            f"{low[column]:g} to {high[column]:g}"
        )
