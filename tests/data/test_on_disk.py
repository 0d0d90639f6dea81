"""Data on disk: the same batches as in memory, from a cache that is shared and checked for damage."""

import errno
import os
import signal
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from trajectory_transformer.configuration import DataConfig, DiscretizerConfig
from trajectory_transformer.data import on_disk, windows
from trajectory_transformer.data.discretizer import QuantileDiscretizer
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.data.on_disk import forget, joined_rows, kept_rows
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.data.transitions import TransitionTable
from trajectory_transformer.data.windows import TokenWindows
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule

ROWS = np.arange(60, dtype=np.uint8).reshape(20, 3)
KEY = "0123"


def chunks() -> Iterator[np.ndarray]:
    yield from (ROWS[:7], ROWS[7:])


def never() -> Iterator[np.ndarray]:
    raise AssertionError("they are kept")


def kept(folder: Path, make: Callable[[], Iterator[np.ndarray]] = chunks) -> np.ndarray:
    return kept_rows(folder, KEY, make, ROWS.dtype, ROWS.shape)


# ---- what is kept ------------------------------------------------------------------------------------------------


def test_rows_are_made_once(tmp_path: Path) -> None:
    np.testing.assert_array_equal(kept(tmp_path), ROWS)
    found = kept(tmp_path, never)
    np.testing.assert_array_equal(found, ROWS)
    forget(found)
    np.testing.assert_array_equal(found, ROWS)
    assert [file.name for file in tmp_path.iterdir()] == [f"{KEY}.tokens"]


def flip(content: bytearray) -> bytearray:
    content[40] ^= 1
    return content


@pytest.mark.parametrize(
    "damage",
    [flip, lambda content: content[:-1], lambda content: content + b"0", lambda content: bytearray()],
    ids=["a bit", "cut", "longer", "empty"],
)
def test_a_damaged_file_is_made_again(tmp_path: Path, damage: Callable[[bytearray], bytearray]) -> None:
    kept(tmp_path)
    file = tmp_path / f"{KEY}.tokens"
    file.write_bytes(damage(bytearray(file.read_bytes())))
    with pytest.warns(UserWarning, match=rf"{KEY}\.tokens' is damaged and is written again"):
        np.testing.assert_array_equal(kept(tmp_path), ROWS)
    kept(tmp_path, never)


def test_a_file_under_another_key_is_not_taken_for_this_one(tmp_path: Path) -> None:
    kept(tmp_path)
    (tmp_path / f"{KEY}.tokens").rename(tmp_path / "4567.tokens")
    with pytest.warns(UserWarning, match="is damaged"):
        kept_rows(tmp_path, "4567", chunks, ROWS.dtype, ROWS.shape)


def test_a_writer_that_breaks_down_leaves_nothing(tmp_path: Path) -> None:
    def broken() -> Iterator[np.ndarray]:
        yield ROWS[:7]
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(UserError, match=r"data\.cache=.* cannot be written \(No space left on device\)"):
        kept(tmp_path, broken)
    assert not [file.name for file in tmp_path.iterdir() if file.name != f".{KEY}.lock"]
    kept(tmp_path)


@pytest.mark.slow
def test_a_killed_writer_leaves_nothing_that_is_trusted(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, numpy as np; from pathlib import Path\n"
        "from trajectory_transformer.data.on_disk import kept_rows\n"
        "def chunks():\n"
        "    yield np.zeros((7, 3), np.uint8)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        f"kept_rows(Path(sys.argv[1]), {KEY!r}, chunks, np.dtype(np.uint8), (20, 3))"
    )
    assert subprocess.run([sys.executable, "-c", script, str(tmp_path)]).returncode == -signal.SIGKILL
    assert list(tmp_path.glob(".*.partial"))
    np.testing.assert_array_equal(kept(tmp_path), ROWS)
    assert [file.name for file in tmp_path.iterdir()] == [f"{KEY}.tokens"]


def test_of_two_at_once_one_makes_them_and_the_other_waits(tmp_path: Path) -> None:
    begun, waited = threading.Event(), threading.Event()
    found: list[np.ndarray] = []

    def slowly() -> Iterator[np.ndarray]:
        begun.set()
        assert waited.wait(10)
        yield ROWS

    def second() -> None:
        found.append(kept(tmp_path, never))

    first = threading.Thread(target=lambda: found.append(kept(tmp_path, slowly)))
    first.start()
    assert begun.wait(10)
    other = threading.Thread(target=second)
    other.start()
    waited.set()
    first.join()
    other.join()
    assert len(found) == 2
    np.testing.assert_array_equal(found[0], found[1])


def test_joined_rows_have_no_name_on_disk(tmp_path: Path) -> None:
    found = joined_rows(chunks(), tmp_path)
    np.testing.assert_array_equal(found, joined_rows(chunks(), None))
    assert not list(tmp_path.iterdir())


# ---- windows -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_bins", [20, 300])
@pytest.mark.parametrize("goal", [False, True])
def test_batches_are_those_from_memory(
    tmp_path: Path, num_bins: int, goal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(windows, "ROWS_PER_CHUNK", 50)
    generator = np.random.default_rng(0)
    lengths = generator.integers(1, 9, size=40)
    values = generator.standard_normal((int(lengths.sum()), 3)).astype(np.float32)
    table = TransitionTable(values, lengths, generator.random(40) < 0.5)
    discretizer = QuantileDiscretizer(num_bins).fit(values)
    goals = torch.arange(120).reshape(40, 3) % num_bins if goal else None
    memory = TokenWindows(table, discretizer, 5, goals=goals)
    disk = TokenWindows(table, discretizer, 5, goals=goals, cache=tmp_path)
    indices = torch.from_numpy(generator.permutation(len(values)))
    disk.expect(indices)
    for expected, found in zip(memory.gather(indices), disk.gather(indices), strict=True):
        assert expected.dtype == found.dtype
        assert torch.equal(expected, found)
    TokenWindows(table, QuantileDiscretizer(num_bins).fit(values + 1), 5, cache=tmp_path)  # other bins, another key
    assert len(list(tmp_path.iterdir())) == 2
    monkeypatch.setattr(QuantileDiscretizer, "encode", None)
    assert torch.equal(TokenWindows(table, discretizer, 1, cache=tmp_path).gather(indices[:1]).mask, torch.ones(1, 2))


# ---- whole data sets ---------------------------------------------------------------------------------------------

NPZ = "trajectory_transformer.data.npz_folder.NpzFolder"
OBSERVATIONS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 episodes of 1,000 steps: 10 MB."""
    folder = tmp_path_factory.mktemp("episodes")
    generator = np.random.default_rng(0)
    for number in range(60):
        observations = generator.standard_normal((1001, OBSERVATIONS), dtype=np.float32)
        actions = generator.standard_normal((1000, 1), dtype=np.float32)
        rewards = generator.standard_normal(1000, dtype=np.float32)
        np.savez(folder / f"{number}.npz", observations=observations, actions=actions, rewards=rewards,
                 terminated=np.array(number % 2 == 0))  # fmt: skip
    return folder


def options(folder: Path, **others: object) -> DataConfig:
    source = {"_target_": NPZ, "path": str(folder), "env_id": None}
    bins = DiscretizerConfig(num_bins=8)
    return DataConfig(source=source, discretizer=bins, **others)  # pyright: ignore[reportArgumentType]


def test_episodes_on_disk_are_those_in_memory(folder: Path, tmp_path: Path) -> None:
    def load(**others: object) -> OfflineData:
        return load_offline_data(options(folder, observation_indices=[3, 1], **others), progress=False)

    memory, disk = load(), load(cache=str(tmp_path / "made"))
    assert (disk.fingerprint, disk.environment) == (memory.fingerprint, memory.environment)
    np.testing.assert_array_equal(disk.returns, memory.returns)
    for expected, found in zip(memory.episodes, disk.episodes, strict=True):
        assert expected.terminated == found.terminated
        for field in ("observations", "actions", "rewards"):
            np.testing.assert_array_equal(getattr(expected, field), getattr(found, field))


@pytest.mark.parametrize("goal_conditioned", [False, True])
def test_a_data_module_gives_the_same_batches(folder: Path, tmp_path: Path, goal_conditioned: bool) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(3):
        (few / f"{number}.npz").symlink_to(folder / f"{number}.npz")
    modules = [
        TrajectoryDataModule(options(few, cache=cache), 0, goal_conditioned)
        for cache in (None, str(tmp_path / "cache"))
    ]
    for module in modules:
        module.setup()
    memory, disk = modules
    assert torch.equal(memory.discretizer.edges, disk.discretizer.edges)
    for part in ("train_examples", "validation_examples"):
        expected, found = (getattr(module, part).gather(torch.arange(1000)) for module in modules)
        assert all(map(torch.equal, expected, found))


def test_little_of_a_set_on_disk_is_in_memory(folder: Path, tmp_path: Path) -> None:
    module = TrajectoryDataModule(options(folder, cache=str(tmp_path)), seed=0)
    tracemalloc.start()
    module.setup()
    windows = module.train_examples
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(windows) == 54_000
    values = 60_000 * (OBSERVATIONS + 3) * 4
    assert peak < values / 2  # of which a chunk's tokens are the most


def test_a_folder_that_cannot_be_written_is_refused(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"data\.cache=.*file cannot be written \(File exists\)"):
        load_offline_data(options(folder, cache=str(tmp_path / "file")), progress=False)


def test_reading_ahead_reaches_no_further_than_the_file(tmp_path: Path) -> None:
    on_disk.read_ahead(kept(tmp_path), [0, 19], 4)
    on_disk.read_ahead(ROWS, [0], 1)  # in memory, nothing to do
