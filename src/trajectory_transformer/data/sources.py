"""Loading of validated episodes as described by the options ``data.*``; all data is loaded here."""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ..available_memory import available_memory, require_memory
from ..building import TYPED_BY_USER, build
from ..configuration import DataConfig, require
from ..environments.reference_scores import reference_scores
from ..environments.spec import EnvironmentSpec, SpaceSpec
from ..errors import UserError
from ..files import writable_folder
from ..progress import WorkProgress
from .episode_source import EpisodeSource, StoredEpisode, StoredSet
from .episodes import Episode, OfflineData
from .minari_set import EmbeddedSet, MinariSet
from .on_disk import joined_rows
from .validation import validate_episode

log = logging.getLogger(__name__)

EMBEDDED_NAMESPACE = "embedded/"


def sources_of(config: DataConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> list[EpisodeSource]:
    """Return the sources that ``data.source`` describes, or those of the ids in ``data.dataset_id``, in order.

    If ``config`` was read from a file, ``allow`` are the packages that it may name, as in :func:`~..building.build`.

    Raises:
        UserError: ``data.source`` is not an :class:`EpisodeSource` or has an unknown option; or a set is named twice.
    """
    if config.source is None:
        option = "data.dataset_id"
        sources: list[EpisodeSource] = [
            EmbeddedSet(name) if name.startswith(EMBEDDED_NAMESPACE) else MinariSet(name, config.download)
            for name in config.dataset_ids
        ]
    else:
        option = "data.source"
        specs = config.source if isinstance(config.source, (list, tuple)) else [config.source]
        sources = [build(spec, EpisodeSource, option, allow) for spec in specs]
    names = [source.name for source in sources]
    repeated = sorted({name for name in names if names.count(name) > 1})
    require(not repeated, f"{option} names {', '.join(repeated)} more than once; name each data set once")
    return sources


def require_available(config: DataConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> None:
    """Raise UserError if data is not available, in less than 2 s per source and without importing torch or Minari."""
    for source in sources_of(config, allow):
        source.require_available()


def load_offline_data(
    config: DataConfig, progress: bool = True, allow: Sequence[str] | None = TYPED_BY_USER
) -> OfflineData:
    """Read, join and validate all episodes of ``config``; sets that are not on disk are downloaded or simulated.

    Environment and reference scores are those of the first source; ``allow`` as in :func:`sources_of`. With
    ``data.cache`` the arrays are files on disk, and only a small part of the set is in memory at any time.

    Raises:
        UserError: a set is named twice, not available, or corrupt (the message names data set, episode and field);
            the environments or spaces of two sets differ, or spaces cannot become tokens; or a selected observation
            key or dimension does not exist.
    """
    found: list[tuple[str, StoredSet]] = []
    for source in sources_of(config, allow):
        stored = source.read(progress)
        if any(leaf.path for leaf in stored.environment.action.leaves):
            raise UserError(
                f"data set '{source.name}': its actions are a Dict space; only Box and Discrete are supported"
            )
        found.append((source.name, _with_keys(source.name, stored, config.observation_keys)))
    for other in found[1:]:
        _require_joinable(found[0], other)
    folder = None if config.cache is None else writable_folder("data.cache", config.cache)
    for name, stored in found if folder is None else ():
        _require_memory(name, stored, config.observation_indices)
    name, first = found[0]
    environment = first.environment
    if config.observation_indices is not None:
        size, largest = environment.observation.size, max(config.observation_indices)
        require(
            largest < size,
            f"data.observation_indices has {largest}, but the observations of '{name}' have {size} dimensions (0 to "
            f"{size - 1})",
        )
        environment = replace(environment, observation_indices=tuple(config.observation_indices))
    scores, scores_source = reference_scores(first.metadata, environment.env_id)
    digest = hashlib.sha256()

    def selected() -> Iterator[Episode]:
        for episode in _validated(found, progress):
            for array in (episode.observations, episode.actions, episode.rewards, np.array([episode.terminated])):
                digest.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
            if config.observation_indices is not None:
                chosen = np.ascontiguousarray(episode.observations[:, config.observation_indices])
                episode = replace(episode, observations=chosen)
            yield episode

    episodes = list(selected()) if folder is None else _on_disk(selected(), folder)
    names = [name for name, _ in found]
    return OfflineData(names, episodes, environment, scores, scores_source, digest.hexdigest())


def _on_disk(episodes: Iterator[Episode], folder: Path) -> list[Episode]:
    """Return the same episodes with their arrays in a file in ``folder``."""
    facts: list[tuple[int, int, int, bool]] = []

    def numbers() -> Iterator[np.ndarray]:
        for episode in episodes:
            arrays = episode.observations, episode.actions, episode.rewards
            facts.append((arrays[0].size, arrays[1].size, len(episode), episode.terminated))
            yield from (array.reshape(-1) for array in arrays)

    stored = joined_rows(numbers(), folder)
    found, first = [], 0
    for seen, acted, steps, terminated in facts:
        last = first + seen + acted + steps
        observations, actions, rewards = np.split(stored[first:last], [seen, seen + acted])
        found.append(Episode(observations.reshape(steps + 1, -1), actions.reshape(steps, -1), rewards, terminated))
        first = last
    return found


def _validated(found: Sequence[tuple[str, StoredSet]], progress: bool) -> Iterator[Episode]:
    """Yield all validated episodes, with all observation dimensions, showing progress."""
    with WorkProgress("{task.completed:.0f}/{task.total:.0f} episodes", progress) as bar:
        for name, stored in found:
            episodes = bar.track(stored.episodes, total=stored.num_episodes, description=f"reading {name}")
            outside = _OutOfBounds(stored.environment.action)
            for number, one in enumerate(episodes):
                if number == 0:
                    _require_same_widths(one, stored.environment)
                try:
                    episode = validate_episode(one, stored.environment.observation, stored.environment.action)
                except UserError as error:
                    raise UserError(f"{error}{stored.remedy}") from error
                outside.count(episode.actions)
                yield episode
            outside.warn(name)


class _OutOfBounds:
    """Counts actions outside the bounds of their Box. They are kept, because many environments clip them."""

    def __init__(self, space: SpaceSpec) -> None:
        self._names, self._low, self._high = space.names(), space.low, space.high
        self._total, self._outside = 0, np.zeros(space.size, dtype=np.int64)
        self._lowest, self._highest = np.full(space.size, np.inf), np.full(space.size, -np.inf)

    def count(self, actions: np.ndarray) -> None:
        """Count the rows (steps, size) of an episode, in each dimension; rounding does not count."""
        slack = 1e-5 * np.maximum(1.0, np.abs(actions))
        self._outside += ((actions < self._low - slack) | (actions > self._high + slack)).sum(axis=0)
        self._total += len(actions)
        self._lowest = np.minimum(self._lowest, actions.min(axis=0))
        self._highest = np.maximum(self._highest, actions.max(axis=0))

    def warn(self, name: str) -> None:
        """Warn in one line, naming the dimensions, if there were any."""
        parts = [
            f"dimension {self._names[i]}: {self._outside[i]} of {self._total}, with values from {self._lowest[i]:g} to "
            f"{self._highest[i]:g}, bounds {self._low[i]:g} and {self._high[i]:g}"
            for i in np.flatnonzero(self._outside)
        ]
        if parts:
            log.warning(
                "data set '%s' has actions outside the bounds of its action space (%s); they are trained on as they "
                "are, but an action that is taken is clipped to the bounds",
                name,
                "; ".join(parts),
            )


def _require_same_widths(first: StoredEpisode, environment: EnvironmentSpec) -> None:
    """Raise UserError, naming the environment, if a set's first episode has rows of another width than its spaces."""
    for field, values, space in (
        ("observations", first.observations, environment.observation),
        ("actions", first.actions, environment.action),
    ):
        if environment.env_id and isinstance(values, np.ndarray) and values.ndim == 2:
            require(
                values.shape[1] == space.size,
                f"{first.place}: {field} have the shape ({values.shape[1]},) in each step, but the environment "
                f"{environment.env_id} has {field} of shape ({space.size},); give the environment in which the "
                "episodes were recorded",
            )


def _with_keys(name: str, stored: StoredSet, keys: Sequence[str] | None) -> StoredSet:
    """Return the set with only these keys of its Dict observations; raises UserError for an unknown or unusable key."""
    whole = stored.environment.observation
    kept = whole if keys is None else whole.under(keys)
    for key in keys or ():
        require(
            len(whole.under([key]).leaves) > 0,
            f"data.observation_keys has '{key}', but the observations of '{name}' "
            + (f"have {', '.join(leaf.key for leaf in whole.leaves)}" if whole.leaves[0].path else "are not a Dict"),
        )
    kept.require_usable(f"data set '{name}': ")
    if keys is None:
        return stored
    columns = whole.columns(kept)

    def narrowed(episode: StoredEpisode) -> StoredEpisode:
        values = episode.observations
        if isinstance(values, np.ndarray) and values.ndim == 2 and values.shape[1] == whole.size:  # already flattened
            return replace(episode, observations=values[:, columns])
        return episode

    environment = replace(stored.environment, observation=kept)
    return replace(stored, environment=environment, episodes=map(narrowed, stored.episodes))


def _require_memory(name: str, stored: StoredSet, indices: Sequence[int] | None) -> None:
    """Raise UserError for a set whose metadata state more steps than fit into memory, before its episodes are read."""
    steps = stored.metadata.get("total_steps")
    if isinstance(steps, int):
        seen = stored.environment.observation.size if indices is None else len(indices)
        dimensions = seen + stored.environment.action_dim + 2
        require_memory(
            2 * 4 * steps * dimensions,  # float32; stored twice, as episodes and as rows
            available_memory(),
            f"data set '{name}' has {steps:,} steps of {dimensions:,} numbers, which take",
            "keep it on disk with data.cache=FOLDER, select fewer dimensions with data.observation_keys or "
            "data.observation_indices, or take a smaller set",
        )


def _require_joinable(first: tuple[str, StoredSet], other: tuple[str, StoredSet]) -> None:
    refusal = f"data sets '{first[0]}' and '{other[0]}' cannot be joined"
    ours, theirs = first[1].environment, other[1].environment
    if ours.env_id and theirs.env_id and ours.env_id != theirs.env_id:
        raise UserError(f"{refusal}: their environments differ, {ours.env_id} and {theirs.env_id}")
    for field in ("observation", "action"):
        own, others = getattr(ours, field), getattr(theirs, field)
        require(
            own == others and np.array_equal(own.whole, others.whole),
            f"{refusal}: their {field} spaces differ ({own.size} and {others.size} dimensions; names, kinds and bounds "
            "must be equal)",
        )
