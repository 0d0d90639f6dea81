"""Minari's storage formats, episode by episode; nothing here is validated yet."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import h5py
import numpy as np
from minari.dataset.minari_storage import MinariStorage

from ..environments.spec import SpaceLeaf, SpaceSpec
from .validation import StoredEpisode

if TYPE_CHECKING:
    import pyarrow

IGNORED_FILES = ["_", ".", "metadata.json"]  # prefixes, as Minari ignores them


def stored_indices(storage: MinariStorage) -> set[int]:
    """Numbers of the episodes that the files hold, whatever the metadata says."""
    if storage.FORMAT == "hdf5":
        with h5py.File(storage.data_path / "main_data.hdf5", "r") as file:
            names = [str(name).removeprefix("episode_") for name in file]
    else:
        names = [path.name for path in storage.data_path.iterdir() if path.is_dir()]
    return {int(name) for name in names if name.isdecimal()}


def iterate_episodes(
    storage: MinariStorage, count: int, observation: SpaceSpec, action: SpaceSpec
) -> Iterator[StoredEpisode]:
    """Episodes 0 to ``count`` - 1. Any exception may come from a damaged file; iteration ends there."""
    metadata = iter(storage.get_episode_metadata(range(count)))
    if storage.FORMAT == "hdf5":
        for content in storage.get_episodes(range(count)):
            yield _from_minari(content, next(metadata))
    else:
        for index in range(count):
            yield _from_arrow(storage, index, next(metadata), (observation, action))


def _from_minari(content: Mapping[str, object], metadata: Mapping[str, object]) -> StoredEpisode:
    return StoredEpisode(
        content["observations"],
        content["actions"],
        np.asarray(content["rewards"]),
        np.asarray(content["terminations"]),
        np.asarray(content["truncations"]),
        _total_steps(metadata),
    )


def _from_arrow(
    storage: MinariStorage, index: int, metadata: Mapping[str, object], spaces: tuple[SpaceSpec, SpaceSpec]
) -> StoredEpisode:
    """Arrow and Parquet. Minari's own reader cuts episodes longer than 32,768 rows and gives the rest as the next."""
    import pyarrow.dataset

    folder = storage.data_path / str(index)
    table = pyarrow.dataset.dataset(str(folder), format=storage.FORMAT, ignore_prefixes=IGNORED_FILES).to_table()
    observation, action = spaces

    def column(name: str) -> "pyarrow.Array":
        return table.column(name).combine_chunks()

    def steps(name: str) -> np.ndarray:
        return column(name).to_numpy(zero_copy_only=False)[:-1]

    rows = len(table)
    return StoredEpisode(
        _space_values(column("observations"), observation, rows),
        _space_values(column("actions"), action, max(rows - 1, 0)),  # stored with one row more, as rewards are
        steps("rewards"),
        steps("terminations"),
        steps("truncations"),
        _total_steps(metadata),
    )


def _space_values(values: "pyarrow.Array", spec: SpaceSpec, rows: int) -> object:
    """The first ``rows`` values of a space: an array (rows, …), or nested dicts of them."""
    if spec.leaves[0].path == ():
        return _leaf_values(values, spec.leaves[0])[:rows]
    tree: dict[str, object] = {}
    for leaf in spec.leaves:
        node, column = tree, values
        for key in leaf.path[:-1]:
            node, column = node.setdefault(key, {}), column.field(key)
            assert isinstance(node, dict)
        node[leaf.path[-1]] = _leaf_values(column.field(leaf.path[-1]), leaf)[:rows]
    return tree


def _leaf_values(values: "pyarrow.Array", leaf: SpaceLeaf) -> np.ndarray:
    """(rows, *shape) of one leaf."""
    if leaf.kind == "discrete":
        return values.to_numpy(zero_copy_only=False)
    return values.flatten().to_numpy(zero_copy_only=False).reshape(len(values), *leaf.shape)


def _total_steps(metadata: Mapping[str, object]) -> int | None:
    steps = metadata.get("total_steps")
    return int(steps) if isinstance(steps, (int, np.integer)) else None
