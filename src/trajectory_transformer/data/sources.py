"""From the options ``data.*`` to validated episodes: the one way that all data takes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..building import TYPED_BY_USER, build
from ..configuration import DataConfig, require
from ..environments.reference_scores import reference_scores
from ..errors import UserError
from .episode_source import EpisodeSource, StoredSet
from .episodes import Episode, OfflineData
from .minari_set import EmbeddedSet, MinariSet
from .validation import validate_episode

EMBEDDED_NAMESPACE = "embedded/"


def sources_of(config: DataConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> list[EpisodeSource]:
    """The sources that ``data.source`` describes, or those of the ids in ``data.dataset_id``, in order.

    Where ``config`` comes from a file, ``allow`` are the packages that it may name, as of :func:`~..building.build`.

    Raises:
        UserError: ``data.source`` names no :class:`EpisodeSource`, or an option that it lacks; or a set is named twice.
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
    """Refuse data that is not available, as its sources do, in less than 2 s and without importing torch or Minari."""
    for source in sources_of(config, allow):
        source.require_available()


def load_offline_data(
    config: DataConfig, progress: bool = True, allow: Sequence[str] | None = TYPED_BY_USER
) -> OfflineData:
    """Read, join and validate all episodes of ``config``; fetch or simulate what is not on disk.

    Environment and reference scores are those of the first source; ``allow`` as of :func:`sources_of`.

    Raises:
        UserError: a set is named twice, is not available, or is corrupt (named: data set, episode, field);
            the environments or spaces of two sets differ, or spaces cannot become tokens; or a selected observation
            dimension does not exist.
    """
    found = [(source.name, source.read(progress)) for source in sources_of(config, allow)]
    for name, stored in found:
        if len(stored.environment.action.leaves) != 1:
            raise UserError(f"data set '{name}': its actions are a Dict space; only Box and Discrete are supported")
    for other in found[1:]:
        _require_joinable(found[0], other)
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
    episodes = []
    for episode in _validated(found, progress):
        for array in (episode.observations, episode.actions, episode.rewards, np.array([episode.terminated])):
            digest.update(f"{array.shape}{array.dtype}".encode() + array.tobytes())
        if config.observation_indices is not None:
            selected = np.ascontiguousarray(episode.observations[:, config.observation_indices])
            episode = replace(episode, observations=selected)
        episodes.append(episode)
    names = [name for name, _ in found]
    return OfflineData(names, episodes, environment, scores, scores_source, digest.hexdigest())


def _validated(found: Sequence[tuple[str, StoredSet]], progress: bool) -> Iterator[Episode]:
    """All episodes with all observation dimensions, and a progress bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes left"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not (progress and console.is_terminal))
    with bar:
        for name, stored in found:
            for one in bar.track(stored.episodes, total=stored.num_episodes, description=f"reading {name}"):
                try:
                    yield validate_episode(one, stored.environment.observation, stored.environment.action)
                except UserError as error:
                    raise UserError(f"{error}{stored.remedy}") from error


def _require_joinable(first: tuple[str, StoredSet], other: tuple[str, StoredSet]) -> None:
    refusal = f"data sets '{first[0]}' and '{other[0]}' cannot be joined"
    ours, theirs = first[1].environment, other[1].environment
    if ours.env_id and theirs.env_id and ours.env_id != theirs.env_id:
        raise UserError(f"{refusal}: they are of different environments, {ours.env_id} and {theirs.env_id}")
    for field in ("observation", "action"):
        own, others = getattr(ours, field), getattr(theirs, field)
        require(
            own == others and np.array_equal(own.whole, others.whole),
            f"{refusal}: their {field} spaces differ ({own.size} and {others.size} dimensions; names, kinds and bounds "
            "must be equal)",
        )
