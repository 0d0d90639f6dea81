import errno
import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import minari
import numpy as np
import pytest

from trajectory_transformer.data import collect as collect_module
from trajectory_transformer.data.collect import collect, main, parse_arguments
from trajectory_transformer.dataset_folders import is_on_disk
from trajectory_transformer.errors import UserError
from trajectory_transformer.simulation import RECIPES, Recipe
from trajectory_transformer.simulation import storage as storage_module
from trajectory_transformer.simulation.simulate import SimulatedEpisode, simulate

HOPPER, POINTMAZE, GOAL_MAZE = (RECIPES[name] for name in ("hopper_mixed", "pointmaze_umaze", "goal_umaze"))


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's folder, empty."""
    folder = tmp_path / "datasets"
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(folder))
    return folder


def seeds(dataset_id: str) -> list[int]:
    dataset = minari.load_dataset(dataset_id)
    return [metadata["seed"] for metadata in dataset.storage.get_episode_metadata(range(dataset.total_episodes))]


@pytest.mark.parametrize("recipe", [HOPPER, POINTMAZE, GOAL_MAZE], ids=lambda recipe: recipe.name)
def test_collected_set_is_a_genuine_minari_dataset(recipe: Recipe) -> None:
    assert collect(recipe, steps=700, progress=False) == recipe.dataset_id
    dataset = minari.load_dataset(recipe.dataset_id)
    episodes = list(dataset.iterate_episodes())
    assert dataset.total_episodes == len(episodes)
    assert dataset.total_steps == sum(len(episode) for episode in episodes) >= 700
    assert dataset.total_steps - len(episodes[-1]) < 700
    assert dataset.env_spec is not None
    assert dataset.env_spec.id == recipe.env_id
    assert dataset.spec.dataset_id == recipe.dataset_id
    for episode in episodes:
        assert dataset.action_space.contains(episode.actions[0])
        assert bool(episode.terminations[-1]) != bool(episode.truncations[-1])
        assert not episode.terminations[:-1].any()
        assert not episode.truncations[:-1].any()
    assert list(minari.list_local_datasets()) == [recipe.dataset_id]


def test_dataset_carries_reference_scores_and_behaviors() -> None:
    collect(POINTMAZE, steps=600, progress=False)
    dataset = minari.load_dataset(POINTMAZE.dataset_id)
    normalized = minari.get_normalized_score(dataset, np.array(POINTMAZE.reference_scores))
    np.testing.assert_allclose(normalized, [0.0, 1.0])
    behaviors = [metadata["behavior"] for metadata in dataset.storage.get_episode_metadata([0, 1])]
    assert behaviors == [POINTMAZE.behavior(0).name, POINTMAZE.behavior(1).name]
    assert POINTMAZE.reference_note in str(dataset.storage.metadata["description"])


def test_goal_is_part_of_the_stored_observation() -> None:
    collect(POINTMAZE, steps=1, progress=False)
    (episode,) = minari.load_dataset(POINTMAZE.dataset_id).iterate_episodes()
    assert isinstance(episode.observations, dict)
    assert {key: values.shape for key, values in episode.observations.items()} == {
        "achieved_goal": (301, 2),
        "desired_goal": (301, 2),
        "observation": (301, 4),
    }


def test_existing_set_is_kept_unless_overwritten() -> None:
    collect(POINTMAZE, steps=1, progress=False, seed=0)
    before = seeds(POINTMAZE.dataset_id)
    with pytest.raises(UserError, match=r"already exists in .*; add overwrite=true to replace it"):
        collect(POINTMAZE, steps=1, progress=False, seed=1)
    assert seeds(POINTMAZE.dataset_id) == before
    collect(POINTMAZE, steps=1, progress=False, seed=1, overwrite=True)
    assert seeds(POINTMAZE.dataset_id) != before


def interrupted(recipe: Recipe, seed: int, processes: int) -> Generator[SimulatedEpisode, None, None]:
    yield next(simulate(recipe, seed, processes=1))
    raise KeyboardInterrupt


def test_interrupted_simulation_leaves_nothing(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collect_module, "simulate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        collect(POINTMAZE, steps=600, progress=False)
    assert list(root.iterdir()) == []


def test_full_disk_leaves_the_old_set_and_says_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collect(POINTMAZE, steps=1, progress=False, seed=0)
    before = seeds(POINTMAZE.dataset_id)

    def no_space(self: object, episodes: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("minari.dataset._storages.hdf5_storage.HDF5Storage.update_episodes", no_space)
        with pytest.raises(UserError, match=r"umaze-v0 cannot be written below .*datasets: .*No space left"):
            collect(POINTMAZE, steps=1, progress=False, seed=1, overwrite=True)
    assert seeds(POINTMAZE.dataset_id) == before
    assert [path.name for path in root.iterdir()] == ["embedded"]
    assert os.environ["MINARI_DATASETS_PATH"] == str(root)


def test_a_set_that_does_not_fit_is_not_begun(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 would end the process by a segmentation fault."""
    asked: list[int] = []

    def full(descriptor: int, offset: int, length: int) -> None:
        asked.append(length)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", full)
        with pytest.raises(UserError, match=r"No space left on device; it needs [\d,]+ bytes and [\d,]+ are free$"):
            collect(POINTMAZE, steps=600, progress=False)
    assert list(root.iterdir()) == []
    collect(POINTMAZE, steps=600, progress=False)
    written = sum(file.stat().st_size for file in root.rglob("*") if file.is_file())
    assert written <= asked[0] <= written + 2**20


def test_what_a_dead_process_left_goes_at_once_and_what_a_living_one_holds_stays(root: Path) -> None:
    held = (
        "import sys; from trajectory_transformer.simulation import RECIPES, storage\n"
        "with storage.collecting_folder(RECIPES['pointmaze_umaze'], False) as folder:\n"
        "    print(folder, flush=True); sys.stdin.read()"
    )
    root.mkdir()
    with subprocess.Popen([sys.executable, "-c", held], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        folder = Path(process.stdout.readline().decode().strip())
        os.utime(folder, (0, 0))
        collect(POINTMAZE, steps=1, progress=False)
        assert folder.exists()
        process.kill()
        process.wait()
    collect(POINTMAZE, steps=1, progress=False, overwrite=True)
    assert not folder.exists()


def test_killed_collection_leaves_no_half_set(root: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, "-m", "trajectory_transformer.data.collect", "recipe=pointmaze_umaze", "steps=50_000"]
    )
    while not list(root.glob(".collecting-*")):
        assert process.poll() is None
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (root / POINTMAZE.dataset_id).exists()
    assert list(minari.list_local_datasets()) == []
    (stale,) = root.glob(".collecting-*")
    collect(POINTMAZE, steps=1, progress=False)
    assert list(minari.list_local_datasets()) == [POINTMAZE.dataset_id]
    assert not stale.exists()


def test_slower_of_two_collections_keeps_the_first(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_alone = storage_module.write_dataset

    def write_while_another_finishes(
        recipe: Recipe, episodes: list[SimulatedEpisode], seed: int, staging: Path
    ) -> None:
        write_alone(recipe, episodes, seed, staging)
        monkeypatch.setattr(collect_module, "write_dataset", write_alone)
        collect(recipe, steps=1, progress=False, seed=7)

    monkeypatch.setattr(collect_module, "write_dataset", write_while_another_finishes)
    collect(POINTMAZE, steps=1, progress=False, seed=0)
    first = next(simulate(POINTMAZE, 7, 1))
    assert seeds(POINTMAZE.dataset_id) == [first.seed]
    assert [path.name for path in root.iterdir()] == ["embedded"]


def test_damaged_set_is_there_too(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reading refuses the set, and collecting does not simulate it again."""
    monkeypatch.setattr(collect_module, "simulate", lambda *_: pytest.fail("simulated in vain"))
    (root / POINTMAZE.dataset_id / "data").mkdir(parents=True)
    assert is_on_disk(POINTMAZE.dataset_id)
    with pytest.raises(UserError, match=r"already exists in .*; add overwrite=true"):
        collect(POINTMAZE, steps=1, progress=False)


def test_folder_that_cannot_be_made_is_named_before_simulating(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "file" / "below"))
    monkeypatch.setattr(collect_module, "simulate", lambda *_: pytest.fail("simulated in vain"))
    with pytest.raises(UserError, match=r"cannot be written below .*file/below"):
        collect(POINTMAZE, progress=False)


@pytest.mark.parametrize(("steps", "processes"), [(0, 1), (1, 0)])
def test_numbers_below_one_are_refused(steps: int, processes: int) -> None:
    with pytest.raises(UserError, match="=0 must be at least 1"):
        collect(POINTMAZE, steps, progress=False, processes=processes)


# Command line


def test_arguments_are_parsed() -> None:
    words = ["recipe=hopper_mixed", "steps=20_000", "seed=3", "processes=2", "overwrite=True"]
    expected = {"recipe": HOPPER, "steps": 20_000, "seed": 3, "processes": 2, "overwrite": True}
    assert parse_arguments(words) == expected
    assert parse_arguments(["recipe=embedded/pointmaze/umaze-v0"]) == {"recipe": POINTMAZE}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "recipe=NAME is missing; NAME is one of hopper_mixed, pointmaze_umaze"),
        (["recipe=hoper_mixed"], "did you mean 'hopper_mixed'"),
        (["recipe=hopper_mixed", "step=5"], "did you mean 'steps'"),
        (["recipe=hopper_mixed", "steps"], "option steps needs a value"),
        (["recipe=hopper_mixed", "steps=many"], "steps=many must be a whole number"),
        (["recipe=hopper_mixed", "steps=-5"], "steps=-5 must be a whole number"),
        (["recipe=hopper_mixed", "overwrite=yes"], "overwrite='yes' is not one of true, false"),
    ],
)
def test_wrong_words_end_in_one_sentence_and_exit_code_2(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_command_reports_what_it_wrote(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["recipe=pointmaze_umaze", "steps=600"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "embedded/pointmaze/umaze-v0: 2 episodes, 600 steps, return mean" in printed
    assert str(root / POINTMAZE.dataset_id) in printed
    assert main(words) == 2
    assert "already exists" in capsys.readouterr().err


def test_interrupted_command_exits_with_130(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(collect_module, "simulate", interrupted)
    assert main(["recipe=pointmaze_umaze"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert list(root.iterdir()) == []
