"""Reader of Minari data sets on disk, in any storage format; no other module reads Minari's files."""

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gymnasium
import h5py
import minari
import numpy as np
from gymnasium.envs.registration import EnvSpec
from minari.dataset.minari_storage import MinariStorage

from ..configuration import require
from ..dataset_folders import dataset_folder
from ..environments.make import space_spec
from ..environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from ..errors import UserError, in_one_line
from ..files import reading_remedy
from .episode_source import StoredEpisode, StoredSet, require_modest

if TYPE_CHECKING:
    import pyarrow

FIELDS_OF_OLD_GYMNASIUM = ("autoreset", "apply_api_compatibility")
FIELDS = ("observations", "actions", "rewards", "terminations", "truncations")  # of an episode as Minari stores it
IGNORED_FILES = ["_", ".", "metadata.json"]  # prefixes that Minari ignores


def read_set(dataset_id: str) -> StoredSet:
    """Open a data set on disk; its episodes are read lazily.

    Raises:
        UserError: its files cannot be read, its metadata is incomplete or disagrees with its episodes, or its spaces
            cannot become tokens; some of these errors are raised only while iterating over the episodes.
    """
    folder, metadata = dataset_folder(dataset_id) / "data", None
    try:
        metadata = json.loads((folder / "metadata.json").read_text(encoding="utf-8"))
        if not isinstance(metadata, dict):
            raise UserError(f"data set '{dataset_id}', metadata: '{folder / 'metadata.json'}' is not a JSON object")
        for field in ("total_episodes", "total_steps"):
            number = metadata.get(field)
            valid = isinstance(number, int) and number is not True and number >= 1
            require(valid, f"data set '{dataset_id}', metadata: {field} is {number!r}, expected a number above 0")
        num_episodes, num_steps = metadata["total_episodes"], metadata["total_steps"]
        for field in ("observation_space", "action_space"):  # else Minari would make the set's environment
            stated = isinstance(metadata.get(field), str)
            require(stated, f"data set '{dataset_id}', metadata: {field} is missing, or is not text")
        size = sum(file.stat().st_size for file in folder.rglob("*"))
        require(
            num_episodes <= size,  # before Minari makes a list of them
            f"data set '{dataset_id}', metadata: total_episodes is {num_episodes}, but its files have {size:,} bytes",
        )
        named = _environment(dataset_id, metadata)
        dataset = minari.load_dataset(dataset_id)
        _require_episodes(dataset_id, dataset.storage, num_episodes)
    except UserError:
        raise
    except Exception as error:  # a broken file makes Minari and the storage libraries raise any exception
        remedy = _remedy(error, metadata, folder)
        raise UserError(
            f"data set '{dataset_id}' in '{folder}' cannot be read ({in_one_line(error)}){remedy}"
        ) from error
    try:
        observation, action = space_spec(dataset.observation_space), space_spec(dataset.action_space)
    except UserError as error:
        raise UserError(f"data set '{dataset_id}': {error}") from error
    environment = EnvironmentSpec(*named, observation, action)
    episodes = _episodes(dataset_id, dataset.storage, num_episodes, num_steps, environment)
    return StoredSet(episodes, num_episodes, environment, metadata, _damaged(folder))


def _damaged(folder: Path) -> str:
    return f"; if the data set is damaged, delete '{folder}' and download or simulate it again"


def _remedy(error: Exception, metadata: object, folder: Path) -> str:
    """Return the remedy for an error raised while the set's files were opened."""
    about = metadata if isinstance(metadata, dict) else {}
    written = about.get("minari_version")
    if isinstance(written, str) and written not in minari.supported_dataset_versions:
        return "; run `pip install --upgrade minari` if the set is newer than Minari, otherwise download it again"
    if about and about.get("data_format") not in ("hdf5", "arrow", "parquet"):
        return f"; Minari {minari.__version__} does not know this data_format: try `pip install --upgrade minari`"
    otherwise = _damaged(folder)
    with contextlib.suppress(OSError):
        names = {path.name for path in folder.iterdir()}
        if "metadata.json" not in names or len(names) == 1:
            otherwise = (
                f"; a file is missing, as after an interrupted download: delete '{folder}' and download it again"
            )
    return reading_remedy(error, folder, otherwise)


def _require_episodes(dataset_id: str, storage: MinariStorage, num_episodes: int) -> None:
    """Raise UserError if the files do not hold exactly the episodes that the metadata counts."""
    if storage.FORMAT == "hdf5":
        with h5py.File(storage.data_path / "main_data.hdf5", "r") as file:
            _require_own_bytes(f"data set '{dataset_id}'", file)
            names = [str(name).removeprefix("episode_") for name in file]
    else:
        names = [path.name for path in storage.data_path.iterdir() if path.is_dir()]
    stored = {int(name) for name in names if name.isdecimal()}
    missing = next((index for index in range(num_episodes) if index not in stored), None)
    if missing is not None:
        raise UserError(
            f"data set '{dataset_id}', episode {missing}: missing, although the metadata's total_episodes is "
            f"{num_episodes} ({len(stored)} are stored)"
        )
    require(
        len(stored) <= num_episodes,
        f"data set '{dataset_id}', metadata: total_episodes is {num_episodes}, but {len(stored)} are stored",
    )


def _require_own_bytes(place: str, file: h5py.File) -> None:
    """Raise UserError for data outside the file (external link, raw file, virtual layout) or of disproportionate size.

    Soft links within the file and objects with two names are refused too: Minari writes neither.
    """
    seen: set[int] = set()
    inflated = stored = 0
    groups: list[tuple[str, h5py.Group]] = [("", file)]
    while groups:
        path, group = groups.pop()
        for name in group:
            at = f"{place}, {path}{name}:"
            linked = isinstance(group.get(name, getlink=True), h5py.HardLink)
            require(linked, f"{at} is a link, and a data set must not choose what else is read")
            found = group[name]
            address = h5py.h5o.get_info(found.id).addr  # pyright: ignore[reportAttributeAccessIssue] - its stubs lack it
            require(address not in seen, f"{at} is already stored under another name")
            seen.add(address)
            if isinstance(found, h5py.Group):
                groups.append((f"{path}{name}/", found))
            elif isinstance(found, h5py.Dataset):
                outside = bool(found.external) or found.is_virtual
                require(not outside, f"{at} lies in another file, and a data set must not choose what else is read")
                inflated += (found.size or 0) * found.dtype.itemsize
                stored += found.id.get_storage_size()
    require_modest(f"{place}, main_data.hdf5:", inflated, stored)


def _environment(dataset_id: str, metadata: Mapping[str, object]) -> tuple[str, str | None]:
    """Return the Gymnasium id and spec of the environment to evaluate in; ("", None) if the set names none."""
    stored = metadata.get("eval_env_spec") or metadata.get("env_spec")
    if not isinstance(stored, str):
        return "", None
    try:
        fields = {name: value for name, value in json.loads(stored).items() if name not in FIELDS_OF_OLD_GYMNASIUM}
        spec_json = json.dumps(fields)
        return EnvSpec.from_json(spec_json).id, spec_json
    except Exception as error:  # an invalid spec makes JSON and Gymnasium raise any exception
        raise UserError(
            f"data set '{dataset_id}', metadata: Gymnasium {gymnasium.__version__} cannot read its env_spec "
            f"({in_one_line(error)}); install the version that it was recorded with, or remove env_spec from "
            "metadata.json and train with evaluation.episodes=0"
        ) from error


def _episodes(
    dataset_id: str, storage: MinariStorage, num_episodes: int, num_steps: int, environment: EnvironmentSpec
) -> Iterator[StoredEpisode]:
    """Yield all episodes in order; the consumer validates each before it takes the next."""
    indices = range(num_episodes)
    hdf5 = storage.FORMAT == "hdf5"
    contents = storage.get_episodes(indices) if hdf5 else (_read_arrow(storage, i, environment) for i in indices)
    stored = zip(contents, storage.get_episode_metadata(indices), strict=True)
    steps = 0
    for index in indices:
        place = f"data set '{dataset_id}', episode {index}"
        try:
            content, metadata = next(stored)
            fields = {field: content[field] for field in FIELDS}
            stated = metadata.get("total_steps")
            total_steps = int(stated) if isinstance(stated, (int, np.integer)) else None
        except UserError:
            raise
        except Exception as error:  # as in read_set
            remedy = reading_remedy(error, storage.data_path, _damaged(storage.data_path))
            raise UserError(f"{place}: cannot be read ({in_one_line(error)}){remedy}") from error
        yield StoredEpisode(place, **fields, total_steps=total_steps)
        steps += len(fields["rewards"])
    require(
        steps == num_steps,
        f"data set '{dataset_id}', metadata: total_steps is {num_steps}, but its episodes have {steps} together",
    )


def _read_arrow(storage: MinariStorage, index: int, environment: EnvironmentSpec) -> Mapping[str, Any]:
    """Read an episode in Arrow or Parquet format, because Minari's reader splits episodes longer than 32,768 rows."""
    import pyarrow.dataset

    folder = storage.data_path / str(index)
    stored = pyarrow.dataset.dataset(str(folder), format=storage.FORMAT, ignore_prefixes=IGNORED_FILES)
    leaves = (*environment.observation.leaves, *environment.action.leaves)
    each = sum(leaf.size * leaf.numbers.itemsize for leaf in leaves) + 3 * 8
    on_disk = sum(file.stat().st_size for file in folder.iterdir() if file.is_file())
    require_modest(f"'{folder}'", stored.count_rows() * each, on_disk)
    table = stored.to_table()
    columns = {field: table.column(field).combine_chunks() for field in FIELDS}
    return {
        "observations": _flat_values(columns["observations"], environment.observation),
        "actions": _flat_values(columns["actions"], environment.action)[:-1],  # stored with an additional row
        **{field: columns[field].to_numpy(zero_copy_only=False)[:-1] for field in FIELDS[2:]},
    }


def _flat_values(values: "pyarrow.Array", spec: SpaceSpec) -> np.ndarray:
    """Return the values of a space as an array (rows, size)."""
    flat = []
    for leaf in spec.leaves:
        if not leaf.usable:
            continue
        column = values
        for key in leaf.path:
            column = column.field(key)
        if str(column.type) in ("binary", "large_binary"):
            flat.append(_decoded_images(column, leaf).reshape(len(values), leaf.size))
            continue
        column = column if leaf.kind == "discrete" else column.flatten()
        flat.append(column.to_numpy(zero_copy_only=False).reshape(len(values), leaf.size))
    return np.concatenate(flat, axis=1)


def _decoded_images(column: "pyarrow.Array", leaf: SpaceLeaf) -> np.ndarray:
    """Decode JPEG images, as which Minari stores spaces of bytes of at least 32 x 32, to (rows, height, width, …).

    Their headers must state the size of the space, so that nothing larger is decoded.
    """
    from PIL import Image, features

    if not features.check("jpg"):
        raise UserError(
            "the data set holds JPEG images, which the Pillow on this machine cannot decode: "
            "pip install --force-reinstall pillow"
        )
    expected = leaf.shape[1::-1], {2: "L", 3: "RGB"}.get(len(leaf.shape))
    images = np.empty((len(column), *leaf.shape), dtype=np.uint8)
    for index, stored in enumerate(column):
        with Image.open(io.BytesIO(stored.as_py()), formats=["JPEG"]) as image:
            if leaf.kind != "box" or (image.size, image.mode) != expected:
                name = leaf.key or "observation"
                raise ValueError(f"step {index}: {name} is an image of {image.size}, {image.mode}, expected {expected}")
            images[index] = np.asarray(image)
    return images
