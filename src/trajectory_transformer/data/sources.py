"""From the options ``data.*`` to validated episodes: the one way that all data takes."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..building import TYPED_BY_USER, build
from ..configuration import DataConfig
from ..environments.reference_scores import reference_scores
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .episode_source import EpisodeSource, StoredSet
from .episodes import Episode, OfflineData
from .minari_set import EmbeddedSet, MinariSet
from .validation import validate_episode

EMBEDDED_NAMESPACE = "embedded/"


def sources_of(config: DataConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> list[EpisodeSource]:
    """The sources that ``data.source`` describes, or those of the ids in ``data.dataset_id``, in order.

    Args:
        config: which data.
        allow: as of :func:`~..building.build`: where ``config`` comes from a file, packages that it may name.

    Raises:
        UserError: ``data.source`` names no :class:`EpisodeSource`, or an option that it lacks; or a set is to be joined
            with itself, so that its episodes would be trained on and validated on at once.
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
    if repeated:
        raise UserError(f"{option} names {', '.join(repeated)} more than once; name each data set once")
    return sources


def require_available(config: DataConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> None:
    """Refuse data that is not available, in less than 2 s and without importing torch or Minari.

    Args:
        config, allow: as of :func:`sources_of`.

    Raises:
        UserError: as :func:`sources_of` and each source's :meth:`~.episode_source.EpisodeSource.require_available`.
    """
    for source in sources_of(config, allow):
        source.require_available()


def load_offline_data(
    config: DataConfig, progress: bool = True, allow: Sequence[str] | None = TYPED_BY_USER
) -> OfflineData:
    """Read, join and validate all episodes of ``config``; fetch or simulate what is not on disk.

    Args:
        config: sources, and observation selection.
        progress: show a progress bar, where there is a terminal.
        allow: as of :func:`sources_of`.

    Returns:
        Their episodes, in the order of the sources, with the first one's environment and reference scores.

    Raises:
        UserError: a set is named twice, is not available, or is corrupt (named: data set, episode, field);
            the environments or spaces of two sets differ, or spaces cannot become tokens; or a selected observation
            dimension does not exist.
    """
    sources = sources_of(config, allow)
    found = [(source.name, source.read(progress)) for source in sources]
    for name, stored in found:
        if len(stored.environment.action.leaves) != 1:
            raise UserError(f"data set '{name}': its actions are a Dict space; only Box and Discrete are supported")
    for other in found[1:]:
        _require_joinable(found[0], other)
    name, first = found[0]
    environment = _select_dimensions(first.environment, config.observation_indices, name)
    scores, scores_source = reference_scores(first.metadata, environment.env_id)
    digest = hashlib.sha256()
    episodes = []
    for episode in _validated(found, progress):
        _add_to_fingerprint(digest, episode)
        episodes.append(_select(episode, environment.observation_indices))
    names = [source.name for source in sources]
    return OfflineData(names, episodes, environment, scores, scores_source, digest.hexdigest())


def _validated(found: Sequence[tuple[str, StoredSet]], progress: bool) -> Iterator[Episode]:
    """All episodes with all observation dimensions, and a progress bar."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes left"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not (progress and console.is_terminal))
    with bar:
        for name, stored in found:
            task = bar.add_task(f"reading {name}", total=stored.num_episodes)
            for one in stored.episodes:
                try:
                    episode = validate_episode(one, stored.environment.observation, stored.environment.action)
                except UserError as error:
                    raise UserError(f"{error}{stored.remedy}") from error
                bar.advance(task)
                yield episode


def _require_joinable(first: tuple[str, StoredSet], other: tuple[str, StoredSet]) -> None:
    (name, one), (other_name, another) = first, other
    refusal = f"data sets '{name}' and '{other_name}' cannot be joined"
    ours, theirs = one.environment, another.environment
    if ours.env_id and theirs.env_id and ours.env_id != theirs.env_id:
        raise UserError(f"{refusal}: they are of different environments, {ours.env_id} and {theirs.env_id}")
    for field, own, others in (
        ("observation", ours.observation, theirs.observation),
        ("action", ours.action, theirs.action),
    ):
        if own != others:
            raise UserError(
                f"{refusal}: their {field} spaces differ ({own.size} and {others.size} dimensions; names, kinds and "
                "bounds must be equal)"
            )


def _select_dimensions(environment: EnvironmentSpec, indices: list[int] | None, name: str) -> EnvironmentSpec:
    if indices is None:
        return environment
    size = environment.observation.size
    if max(indices) >= size:
        raise UserError(
            f"data.observation_indices has {max(indices)}, but the observations of '{name}' have {size} dimensions "
            f"(0 to {size - 1})"
        )
    return replace(environment, observation_indices=tuple(indices))


def _select(episode: Episode, indices: tuple[int, ...] | None) -> Episode:
    if indices is None:
        return episode
    return replace(episode, observations=np.ascontiguousarray(episode.observations[:, list(indices)]))


def _add_to_fingerprint(digest: "hashlib._Hash", episode: Episode) -> None:
    for array in (episode.observations, episode.actions, episode.rewards, np.array([episode.terminated])):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())
