"""Validation of stored episodes; every message names the episode's place and the field."""

import warnings
from collections.abc import Callable
from functools import partial

import numpy as np

from ..configuration import LARGEST, require
from ..environments.spec import SpaceSpec
from ..errors import UserError
from .episode_source import StoredEpisode
from .episodes import Episode

_as_float32 = partial(np.asarray, dtype=np.float32)


def validate_episode(stored: StoredEpisode, observation: SpaceSpec, action: SpaceSpec) -> Episode:
    """Return a stored episode as an :class:`Episode` with all observation dimensions, if it conforms to its spaces.

    Raises:
        UserError: a length of 0, inconsistent lengths (there must be one more observation than actions), a shape other
            than the space's, NaN or infinite values, a Discrete value outside its space, or a termination before the
            last step.
    """
    at = f"{stored.place}, "
    actions = _flatten(f"{at}actions", stored.actions, action)
    observations = _flatten(f"{at}observations", stored.observations, observation)
    rewards = _row(f"{at}rewards", stored.rewards)
    steps = len(actions)
    require(steps > 0, f"{at}actions: the episode has length 0")
    if len(observations) != steps + 1:
        raise UserError(f"{at}observations: {len(observations)} for {steps} actions, expected {steps + 1}")
    terminations = _flags(f"{at}terminations", stored.terminations, steps)
    truncations = _flags(f"{at}truncations", False if stored.truncations is None else stored.truncations, steps)
    for field, row in (("rewards", rewards), ("terminations", terminations), ("truncations", truncations)):
        require(len(row) == steps, f"{at}{field}: {len(row)} for {steps} actions, expected as many")
    require(
        stored.total_steps in (None, steps),
        f"{at}total_steps: its metadata says {stored.total_steps}, but {steps} actions and {steps + 1} observations "
        "are stored",
    )
    _check_finite(f"{at}observations", observations, observation.names())
    _check_finite(f"{at}actions", actions, action.names())
    _check_finite(f"{at}rewards", rewards[:, None], ["rewards"])
    _check_whole(f"{at}observations", observations, observation)
    _check_whole(f"{at}actions", actions, action)
    for early in np.flatnonzero(terminations[:-1]):
        raise UserError(f"{at}terminations: true at step {early} of {steps}, before the last; episodes must end there")
    return Episode(observations, actions, rewards, terminated=bool(terminations[-1]))


def _flatten(where: str, values: object, spec: SpaceSpec) -> np.ndarray:
    """Flatten a space's values, which may already be flat, to (rows, size) float32."""
    if isinstance(values, np.ndarray) and values.ndim == 2 and (spec.leaves[0].path or values.shape[1] == spec.size):
        columns = values.shape[1]
        require(columns == spec.size, f"{where}: has {columns} columns, the flattened space {spec.size}")
        return _converted(where, values, _as_float32)
    return _converted(where, values, spec.flatten)


def _row(where: str, values: object) -> np.ndarray:
    """Convert one number for each step to (T,) float32."""
    row = _converted(where, values, _as_float32)
    if row.shape[1:] not in ((), (1,)) or row.ndim == 0:
        raise UserError(f"{where}: has shape {row.shape}, expected one number for each step")
    return row.reshape(len(row))


def _flags(where: str, values: object, steps: int) -> np.ndarray:
    """Convert flags to (T,) float32; a single flag is that of the last step."""
    if np.ndim(values) == 0:  # pyright: ignore[reportArgumentType]
        return np.append(np.zeros(steps - 1, dtype=np.float32), _converted(where, values, _as_float32))
    return _row(where, values)


def _converted(where: str, values: object, convert: Callable[[object], np.ndarray]) -> np.ndarray:
    if isinstance(values, np.ndarray) and values.dtype.kind not in "biuf":
        raise UserError(f"{where}: are of type {values.dtype}, expected real numbers")
    try:
        # Numbers beyond float32 become infinite and are refused as such.
        with np.errstate(over="ignore"), warnings.catch_warnings():
            warnings.simplefilter("error", np.exceptions.ComplexWarning)
            return convert(values)
    except KeyError as error:
        raise UserError(f"{where}: key {error.args[0]!r} of the space is missing") from error
    except (ValueError, TypeError, IndexError, OverflowError, np.exceptions.ComplexWarning) as error:
        raise UserError(f"{where}: {error}") from error


def _check_finite(where: str, values: np.ndarray, names: list[str]) -> None:
    for step, column in np.argwhere(~np.isfinite(values)):
        raise UserError(f"{where}: {values[step, column]} at step {step}, dimension {names[column]}")
    for step, column in np.argwhere(np.abs(values) > LARGEST):
        raise UserError(
            f"{where}: {values[step, column]} at step {step}, dimension {names[column]}, is beyond ±{LARGEST:g}, the "
            "largest number whose square fits into float32; scale the data down"
        )


def _check_whole(where: str, values: np.ndarray, spec: SpaceSpec) -> None:
    """Raise UserError for fractions in a space of whole numbers, and for values outside a Discrete space."""
    chosen = np.flatnonzero(spec.whole)
    numbers, low, high, discrete = values[:, chosen], spec.low[chosen], spec.high[chosen], spec.discrete[chosen]
    outside = discrete & ((numbers < low) | (numbers > high))
    for step, column in np.argwhere((numbers != np.rint(numbers)) | outside):
        found = f"{where}: {numbers[step, column]:g} at step {step}"
        if discrete[column]:
            raise UserError(f"{found}, outside the Discrete space's {low[column]:g} to {high[column]:g}")
        raise UserError(f"{found}, dimension {spec.names()[chosen[column]]}, whose space holds whole numbers only")
