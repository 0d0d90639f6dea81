"""Minari data sets on disk, simulated or downloaded, as validated episodes."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ..configuration import DataConfig
from ..dataset_folders import dataset_folder
from ..environments.reference_scores import reference_scores
from ..environments.spaces import space_spec
from ..environments.spec import EnvironmentSpec, SpaceSpec
from ..errors import UserError
from .episodes import Episode, OfflineData
from .fetch import obtain, require_distinct
from .stored_episodes import iterate_episodes, stored_indices
from .validation import DatasetTotals, check_stored_episodes, check_total_steps, read_totals, validate_episode

ENVIRONMENT_FIELDS_OF_OLD_GYMNASIUM = ("autoreset", "apply_api_compatibility")


@dataclass(frozen=True)
class OpenDataset:
    """A data set whose metadata makes sense."""

    dataset_id: str
    dataset: minari.MinariDataset
    metadata: Mapping[str, object]
    totals: DatasetTotals
    observation: SpaceSpec
    action: SpaceSpec


def load_offline_data(config: DataConfig, progress: bool = True) -> OfflineData:
    """Read and validate all data sets of ``config``, one after the other; fetch or simulate what is not on disk.

    Args:
        config: ids, observation selection, and whether downloads are allowed.
        progress: show a progress bar, where there is a terminal.

    Returns:
        Their episodes, in the order of the ids, with the first one's environment and reference scores.

    Raises:
        UserError: a set is named twice, is missing and cannot be had, or is corrupt (named: data set, episode, field);
            the environments or spaces of two sets differ, or spaces cannot become tokens; or a selected observation
            dimension does not exist.
    """
    require_distinct(config.dataset_ids)
    for dataset_id in config.dataset_ids:
        obtain(dataset_id, config.download, progress)
    opened = [open_dataset(dataset_id) for dataset_id in config.dataset_ids]
    for other in opened[1:]:
        _require_joinable(opened[0], other)
    environment = _environment(opened[0], config.observation_indices)
    scores, source = reference_scores(opened[0].metadata, environment.env_id)
    digest = hashlib.sha256()
    episodes = []
    for episode in _read_all(opened, progress):
        _add_to_fingerprint(digest, episode)
        episodes.append(_select(episode, environment.observation_indices))
    return OfflineData(config.dataset_ids, episodes, environment, scores, source, digest.hexdigest())


def open_dataset(dataset_id: str) -> OpenDataset:
    """Open a data set that is on disk, without reading its episodes.

    Raises:
        UserError: its files cannot be read, its metadata lacks something, its episodes are not those that the metadata
            counts, or its spaces cannot become tokens.
    """
    folder = dataset_folder(dataset_id) / "data"
    try:
        raw = json.loads((folder / "metadata.json").read_text())
        if not isinstance(raw, dict):
            raise UserError(f"data set '{dataset_id}', metadata: '{folder / 'metadata.json'}' is not a JSON object")
        totals = read_totals(dataset_id, raw)
        dataset = minari.load_dataset(dataset_id)
        check_stored_episodes(dataset_id, stored_indices(dataset.storage), totals)
    except UserError:
        raise
    except Exception as error:  # Minari and the storage libraries raise whatever the broken file leads them to
        raise UserError(
            f"data set '{dataset_id}' in '{folder}' cannot be read ({_one_line(error)}); "
            "if it is damaged, delete that folder and fetch or make it again"
        ) from error
    try:
        observation, action = space_spec(dataset.observation_space), space_spec(dataset.action_space)
    except UserError as error:
        raise UserError(f"data set '{dataset_id}': {error}") from error
    if len(action.leaves) != 1:
        raise UserError(f"data set '{dataset_id}': its actions are a Dict space; only Box and Discrete are supported")
    return OpenDataset(dataset_id, dataset, raw, totals, observation, action)


def _read_all(opened: list[OpenDataset], progress: bool) -> Iterator[Episode]:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("episodes left"))
    bar = Progress(*columns, TimeRemainingColumn(), console=console, disable=not (progress and console.is_terminal))
    with bar:
        for one in opened:
            task = bar.add_task(f"reading {one.dataset_id}", total=one.totals.episodes)
            for episode in read_episodes(one):
                bar.advance(task)
                yield episode


def read_episodes(opened: OpenDataset) -> Iterator[Episode]:
    """Validated episodes of one data set, with all observation dimensions.

    Raises:
        UserError: anything is wrong with one of them, or with their number of steps together.
    """
    stored = iterate_episodes(opened.dataset.storage, opened.totals.episodes, opened.observation, opened.action)
    steps = 0
    for index in range(opened.totals.episodes):
        try:
            raw = next(stored)
        except Exception as error:  # as above
            raise UserError(
                f"data set '{opened.dataset_id}', episode {index}: cannot be read ({_one_line(error)})"
            ) from error
        episode = validate_episode(opened.dataset_id, index, raw, opened.observation, opened.action)
        steps += len(episode)
        yield episode
    check_total_steps(opened.dataset_id, steps, opened.totals)


def _require_joinable(first: OpenDataset, other: OpenDataset) -> None:
    ours, theirs = (_environment(opened, None).env_id for opened in (first, other))
    if ours and theirs and ours != theirs:
        raise UserError(
            f"data sets '{first.dataset_id}' and '{other.dataset_id}' cannot be joined: they are of different "
            f"environments, {ours} and {theirs}"
        )
    for field, ours, theirs in (
        ("observation", first.observation, other.observation),
        ("action", first.action, other.action),
    ):
        if ours != theirs:
            raise UserError(
                f"data sets '{first.dataset_id}' and '{other.dataset_id}' cannot be joined: their {field} spaces "
                f"differ ({ours.size} and {theirs.size} dimensions; names, kinds and bounds must be equal)"
            )


def _environment(opened: OpenDataset, indices: list[int] | None) -> EnvironmentSpec:
    if indices is not None and max(indices) >= opened.observation.size:
        raise UserError(
            f"data.observation_indices has {max(indices)}, but the observations of '{opened.dataset_id}' have "
            f"{opened.observation.size} dimensions (0 to {opened.observation.size - 1})"
        )
    env_id, spec_json = "", None
    stored = opened.metadata.get("eval_env_spec") or opened.metadata.get("env_spec")
    if isinstance(stored, str):
        fields = json.loads(stored)
        for field in ENVIRONMENT_FIELDS_OF_OLD_GYMNASIUM:
            fields.pop(field, None)
        spec_json = json.dumps(fields)
        env_id = EnvSpec.from_json(spec_json).id
    selected = None if indices is None else tuple(indices)
    return EnvironmentSpec(env_id, spec_json, opened.observation, opened.action, selected)


def _select(episode: Episode, indices: tuple[int, ...] | None) -> Episode:
    if indices is None:
        return episode
    selected = np.ascontiguousarray(episode.observations[:, list(indices)])
    return Episode(selected, episode.actions, episode.rewards, episode.terminated)


def _add_to_fingerprint(digest: "hashlib._Hash", episode: Episode) -> None:
    for array in (episode.observations, episode.actions, episode.rewards, np.array([episode.terminated])):
        digest.update(f"{array.shape}{array.dtype}".encode())
        digest.update(array.tobytes())


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())
