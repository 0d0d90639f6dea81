"""What must hold of stored episodes; every refusal names data set, episode and field."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from ..environments.spec import SpaceSpec
from ..errors import UserError
from .episodes import Episode


@dataclass(frozen=True)
class StoredEpisode:
    """One episode as a data set stores it, not yet to be trusted.

    Attributes:
        observations, actions: arrays, or nested dicts of arrays, as their spaces have them.
        rewards, terminations, truncations: one entry for each step.
        total_steps: the number of steps that the episode's own metadata states, or None.
    """

    observations: object
    actions: object
    rewards: np.ndarray
    terminations: np.ndarray
    truncations: np.ndarray
    total_steps: int | None


@dataclass(frozen=True)
class DatasetTotals:
    """What a data set's metadata states of the whole."""

    episodes: int
    steps: int


def read_totals(dataset_id: str, metadata: Mapping[str, object]) -> DatasetTotals:
    """``total_episodes`` and ``total_steps`` of a data set's metadata.

    Raises:
        UserError: either is missing or not a number above 0.
    """
    numbers = []
    for field in ("total_episodes", "total_steps"):
        number = metadata.get(field)
        if not isinstance(number, int) or number < 1:
            raise UserError(f"data set '{dataset_id}', metadata: {field} is {number!r}, expected a number above 0")
        numbers.append(number)
    return DatasetTotals(*numbers)


def check_stored_episodes(dataset_id: str, stored: Collection[int], totals: DatasetTotals) -> None:
    """Refuse a data set whose episodes are not just those that its metadata counts.

    Raises:
        UserError: an episode is missing, or there are more of them.
    """
    missing = sorted(set(range(totals.episodes)) - set(stored))
    if missing:
        raise UserError(
            f"data set '{dataset_id}', episode {missing[0]}: missing, although the metadata's total_episodes is "
            f"{totals.episodes} ({len(stored)} are stored)"
        )
    if len(stored) > totals.episodes:
        raise UserError(
            f"data set '{dataset_id}', metadata: total_episodes is {totals.episodes}, but {len(stored)} are stored"
        )


def check_total_steps(dataset_id: str, steps: int, totals: DatasetTotals) -> None:
    """Refuse a data set whose episodes have other than ``total_steps`` steps together.

    Raises:
        UserError: the two differ.
    """
    if steps != totals.steps:
        raise UserError(
            f"data set '{dataset_id}', metadata: total_steps is {totals.steps}, but its episodes have {steps} together"
        )


def validate_episode(
    dataset_id: str, index: int, stored: StoredEpisode, observation: SpaceSpec, action: SpaceSpec
) -> Episode:
    """An :class:`Episode` with all dimensions of its observations, if everything in it is as it must be.

    Args:
        dataset_id, index: named in errors.
        stored: the episode.
        observation, action: its spaces.

    Raises:
        UserError: a length of 0, lengths that do not fit together (observations must be one more than actions), a shape
            other than the space's, NaN or infinite values, a Discrete value outside its space, a termination before
            the last step.
    """
    where = f"data set '{dataset_id}', episode {index}"
    actions = _flatten(where, "actions", stored.actions, action)
    observations = _flatten(where, "observations", stored.observations, observation)
    rewards = _row(where, "rewards", stored.rewards)
    terminations = _row(where, "terminations", stored.terminations)
    truncations = _row(where, "truncations", stored.truncations)
    steps = len(actions)
    if steps == 0:
        raise UserError(f"{where}, actions: the episode has length 0")
    if len(observations) != steps + 1:
        raise UserError(f"{where}, observations: {len(observations)} for {steps} actions, expected {steps + 1}")
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
    try:
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is refused as such
            return spec.flatten(values)
    except KeyError as error:
        raise UserError(f"{where}, {field}: key {error.args[0]!r} of the space is missing") from error
    except (ValueError, TypeError, IndexError) as error:
        raise UserError(f"{where}, {field}: {error}") from error


def _row(where: str, field: str, values: object) -> np.ndarray:
    """(T,) float32 of one entry for each step."""
    try:
        with np.errstate(over="ignore"):
            row = np.asarray(values, dtype=np.float32)
    except (ValueError, TypeError) as error:
        raise UserError(f"{where}, {field}: {error}") from error
    if row.shape[1:] not in ((), (1,)) or row.ndim == 0:
        raise UserError(f"{where}, {field}: has shape {row.shape}, expected one number for each step")
    return row.reshape(len(row))


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
