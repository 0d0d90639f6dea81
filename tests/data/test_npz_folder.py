"""Folders of .npz files: the same data as a Minari set of the same episodes, and refusals."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.minari_sets import RawEpisode, random_episode, write_dataset
from trajectory_transformer.app.experiment import RunContext, run_training
from trajectory_transformer.configuration import DataConfig, DiscretizerConfig, PlannerConfig, TrainConfig
from trajectory_transformer.data import npz_folder
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.data.npz_folder import NpzFolder
from trajectory_transformer.data.sources import load_offline_data, require_available
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule

NPZ = "trajectory_transformer.data.npz_folder.NpzFolder"
LENGTHS = (5, 1, 7, 4)


@pytest.fixture
def raw() -> list[RawEpisode]:
    return [random_episode(steps, seed=steps, action_dim=1, terminated=steps == 7) for steps in LENGTHS]


@pytest.fixture
def folder(tmp_path: Path, raw: list[RawEpisode]) -> Path:
    """A folder with names whose alphabetical order differs: 2, 9, 10 and 11."""
    folder = tmp_path / "episodes"
    folder.mkdir()
    for number, episode in zip((2, 9, 10, 11), raw, strict=True):
        write_episode(folder / f"episode_{number}.npz", episode)
    return folder


def write_episode(file: Path, episode: RawEpisode, **arrays: object) -> None:
    fields = {
        "observations": episode.observations,
        "actions": episode.actions,
        "rewards": episode.rewards,
        "terminated": episode.terminated,
    } | arrays
    kept = {name: np.asarray(value) for name, value in fields.items() if value is not None}
    np.savez(file, **kept)  # pyright: ignore[reportArgumentType]


def options(folder: Path, env_id: str | None = "Pendulum-v1", **others: object) -> DataConfig:
    source = {"_target_": NPZ, "path": str(folder), "env_id": env_id}
    return DataConfig(source=source, **others)  # pyright: ignore[reportArgumentType]


def load(folder: Path, env_id: str | None = "Pendulum-v1", **others: object) -> OfflineData:
    return load_offline_data(options(folder, env_id, **others), progress=False)


# ---- the same data -----------------------------------------------------------------------------------------------


def test_it_is_the_same_data_as_a_minari_set_of_the_same_episodes(
    folder: Path, raw: list[RawEpisode], minari_root: Path
) -> None:
    write_dataset("same/set-v0", raw, env="Pendulum-v1")
    minari = load_offline_data(DataConfig("same/set-v0"), progress=False)
    data = load(folder)
    assert data.fingerprint == minari.fingerprint
    assert data.environment == minari.environment
    assert (data.reference_scores, data.reference_source) == (minari.reference_scores, minari.reference_source)
    assert data.dataset_ids == [str(folder)]
    assert [len(episode) for episode in data.episodes] == list(LENGTHS)
    assert [episode.terminated for episode in data.episodes] == [False, False, True, False]


def test_windows_to_train_on_are_those_of_the_minari_set(
    folder: Path, raw: list[RawEpisode], minari_root: Path
) -> None:
    write_dataset("same/set-v0", raw, env="Pendulum-v1")
    shared = {"sequence_length": 3, "discretizer": DiscretizerConfig(num_bins=8), "observation_indices": [2, 0]}
    both = []
    for config in (options(folder, **shared), DataConfig("same/set-v0", **shared)):  # pyright: ignore
        datamodule = TrajectoryDataModule(config, seed=3)
        datamodule.setup()
        both.append(
            [
                part.gather(torch.arange(len(part)))
                for part in (datamodule.train_examples, datamodule.validation_examples)
            ]
        )
    for npz, minari in zip(*both, strict=True):
        assert all(torch.equal(*fields) for fields in zip(npz, minari, strict=True))


def test_the_environment_gives_spaces_and_reference_scores(tmp_path: Path) -> None:
    write_episode(tmp_path / "0.npz", random_episode(3, observation_dim=11, action_dim=3))
    data = load(tmp_path, "Hopper-v5")
    assert data.environment.env_id == "Hopper-v5"
    assert data.environment.action.high.tolist() == [1.0, 1.0, 1.0]
    assert (data.reference_scores, data.reference_source) == ((-20.272305, 3234.3), "d4rl")


def test_flattened_dict_observations_and_discrete_actions(tmp_path: Path) -> None:
    flat = np.arange(32.0).reshape(4, 8)
    write_episode(tmp_path / "maze.npz", RawEpisode(flat, np.zeros((3, 2)), np.zeros(3)))
    data = load(tmp_path, "PointMaze_UMaze-v3")
    assert data.environment.observation.names()[2:5] == ["desired_goal[0]", "desired_goal[1]", "observation[0]"]
    np.testing.assert_array_equal(data.episodes[0].observations, flat)
    (tmp_path / "maze.npz").unlink()
    write_episode(tmp_path / "pole.npz", RawEpisode(np.zeros((3, 4)), np.array([[1], [0]]), np.zeros(2)))
    np.testing.assert_array_equal(load(tmp_path, "CartPole-v1").episodes[0].actions, [[1.0], [0.0]])


def test_actions_outside_the_bounds_are_told_in_one_line_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Pendulum's torque is from -2 to 2; an excess by rounding is not told."""
    episodes = [[[2.5], [-1.0], [2.000001]], [[-3.0], [0.0], [2.25]]]
    for number, actions in enumerate(episodes):
        write_episode(tmp_path / f"{number}.npz", RawEpisode(np.zeros((4, 3)), np.array(actions), np.zeros(3)))
    data = load(tmp_path)
    assert caplog.messages == [
        f"data set '{tmp_path}' has actions outside the bounds of its action space (dimension [0]: 3 of 6, with values "
        "from -3 to 2.5, bounds -2 and 2); they are trained on as they are, but an action that is taken is clipped to "
        "the bounds"
    ]
    np.testing.assert_array_equal([episode.actions for episode in data.episodes], np.array(episodes, np.float32))
    caplog.clear()
    write_episode(tmp_path / "0.npz", RawEpisode(np.zeros((2, 3)), np.array([[2.000001]]), np.zeros(1)))
    write_episode(tmp_path / "1.npz", RawEpisode(np.zeros((2, 3)), np.array([[-2.0]]), np.zeros(1)))
    load(tmp_path)
    assert caplog.messages == []


def test_without_environment_the_data_gives_the_spaces(folder: Path, raw: list[RawEpisode]) -> None:
    environment = load(folder, env_id=None).environment
    actions = np.concatenate([np.asarray(episode.actions) for episode in raw])
    assert (environment.env_id, environment.spec_json) == ("", None)
    np.testing.assert_array_equal(environment.action.low, actions.min(axis=0))
    np.testing.assert_array_equal(environment.action.high, actions.max(axis=0))
    assert environment.observation.high.tolist() == [np.inf] * 3
    assert load(folder, env_id=None).fingerprint == load(folder).fingerprint


def test_folders_are_joined_with_each_other_and_with_minari_sets(
    folder: Path, tmp_path: Path, minari_root: Path, raw: list[RawEpisode]
) -> None:
    (tmp_path / "more").mkdir()
    write_episode(tmp_path / "more" / "0.npz", raw[2])
    write_dataset("a-v0", raw[:1], env="Pendulum-v1")
    sources = [options(path).source for path in (folder, tmp_path / "more")]
    minari = {"_target_": "trajectory_transformer.data.minari_set.MinariSet", "dataset_id": "a-v0", "download": False}
    data = load_offline_data(DataConfig(source=[*sources, minari]), progress=False)
    assert data.dataset_ids == [str(folder), str(tmp_path / "more"), "a-v0"]
    assert [len(episode) for episode in data.episodes] == [*LENGTHS, 7, 5]
    with pytest.raises(UserError, match=r"^data\.source names .*episodes more than once"):
        load_offline_data(DataConfig(source=[sources[0], sources[0]]), progress=False)


# ---- faults ------------------------------------------------------------------------------------------------------


EPISODE = random_episode(5, action_dim=1)
OBSERVATIONS, ACTIONS, REWARDS = (np.array(part) for part in (EPISODE.observations, EPISODE.actions, EPISODE.rewards))


def with_nan(values: np.ndarray, step: int) -> np.ndarray:
    changed = values.copy()
    changed[step] = np.nan
    return changed


FAULTS: dict[str, tuple[dict[str, object], str]] = {
    "no rewards": ({"rewards": None}, "has no array 'rewards', only observations, actions, terminated; write it with"),
    "misspelt": ({"actions": None, "action": ACTIONS}, "has no array 'actions', only .*action"),
    "objects": (
        {"actions": np.array([[{}]] * 5)},
        "actions: cannot be read .*allow_pickle=False.*; write it with numpy.savez",
    ),
    "as many observations as actions": (
        {"observations": OBSERVATIONS[:-1]},
        "observations: 5 for 5 actions, expected 6",
    ),
    "rewards lost": ({"rewards": REWARDS[:-1]}, "rewards: 4 for 5 actions"),
    "no step": (
        {"observations": OBSERVATIONS[:1], "actions": ACTIONS[:0], "rewards": REWARDS[:0]},
        "actions: the episode has length 0",
    ),
    "NaN observation": ({"observations": with_nan(OBSERVATIONS, 2)}, "observations: nan at step 2"),
    "NaN action": ({"actions": with_nan(ACTIONS, 3)}, "actions: nan at step 3"),
    "NaN reward": ({"rewards": with_nan(REWARDS, 4)}, "rewards: nan at step 4"),
    "rewards of two columns": ({"rewards": np.zeros((5, 2))}, r"rewards: has shape \(5, 2\), expected one number"),
    "text": ({"rewards": np.array(["much"] * 5)}, "rewards: are of type <U4, expected real numbers"),
    "flat actions": (
        {"actions": ACTIONS[:, 0]},
        r"actions: has shape \(5,\) .*, expected rows of numbers, .*; save actions\[:, None\] for",
    ),
    "other width": ({"actions": np.zeros((5, 2))}, r"actions: .*\(2,\), expected \(1,\)"),
    "terminated at each step": (
        {"terminated": np.zeros(5, dtype=bool)},
        r"terminated: has shape \(5,\) and type bool, expected one boolean .*save terminated=True or terminated=False",
    ),
    "terminated is a number": ({"terminated": 1}, "terminated: .* and type int64, expected one boolean"),
}


@pytest.mark.parametrize("case", FAULTS)
@pytest.mark.parametrize("env_id", ["Pendulum-v1", None])
def test_a_fault_is_named_with_file_and_field(folder: Path, case: str, env_id: str | None) -> None:
    arrays, message = FAULTS[case]
    write_episode(folder / "episode_9.npz", EPISODE, **arrays)
    with pytest.raises(UserError, match=rf"^'{folder}/episode_9\.npz'.*{message}") as caught:
        load(folder, env_id)
    assert "\n" not in str(caught.value)
    assert "; " in str(caught.value)  # and what to do


@pytest.mark.parametrize(
    ("env_id", "message"),
    [
        (
            "CartPole-v1",
            r"observations have the shape \(3,\) in each step, but .* CartPole-v1 has observations .*\(4,\)",
        ),
        ("Hopper-v5", r"observations have the shape \(3,\) .* Hopper-v5 has observations of shape \(11,\)"),
    ],
)
def test_another_environment_is_named_with_both_shapes(folder: Path, env_id: str, message: str) -> None:
    """And no file is asked to be corrected, where all of them disagree with the environment."""
    wanted = rf"^'{folder}/episode_2\.npz': {message}; give the environment in which the episodes were recorded$"
    with pytest.raises(UserError, match=wanted):
        load(folder, env_id)


def test_another_environment_s_actions_are_named_with_both_shapes(tmp_path: Path) -> None:
    write_episode(tmp_path / "0.npz", random_episode(3, observation_dim=3, action_dim=2))
    with pytest.raises(UserError, match=r"actions have the shape \(2,\) .* Pendulum-v1 has actions of shape \(1,\)"):
        load(tmp_path)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut short": lambda content: content[: len(content) // 2],
    "one byte altered": lambda content: content[:200] + bytes([content[200] ^ 255]) + content[201:],
    "another format": lambda content: b"\x80\x04N." + content[:100],
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused(folder: Path, damage: str) -> None:
    file = folder / "episode_10.npz"
    file.write_bytes(DAMAGES[damage](file.read_bytes()))
    with pytest.raises(UserError, match=rf"^'{file}'.* cannot be read \(.*\); write it with numpy\.savez"):
        load(folder)


def test_a_single_array_is_refused(folder: Path) -> None:
    with open(folder / "episode_10.npz", "wb") as file:
        np.save(file, ACTIONS)
    with pytest.raises(UserError, match=r"episode_10\.npz' cannot be read \(it holds a single array\)"):
        load(folder)


@pytest.mark.parametrize(
    ("path", "env_id", "message"),
    [
        ("nowhere", None, "nowhere' is not a folder"),
        ("", None, "holds no .npz file"),
        ("episodes", "Pendulm-v1", "environment 'Pendulm-v1' cannot be made .*Pendulum"),
    ],
)
def test_what_cannot_be_had_is_refused_early(
    tmp_path: Path, folder: Path, path: str, env_id: str | None, message: str
) -> None:
    for refusing in (require_available, load_offline_data):
        with pytest.raises(UserError, match=message):
            refusing(options(tmp_path / path, env_id))


def test_an_evaluation_without_environment_is_refused_before_training(folder: Path, tmp_path: Path) -> None:
    data = options(folder, env_id=None, sequence_length=3, discretizer=DiscretizerConfig(num_bins=4))
    config = TrainConfig(data=data, planner=PlannerConfig(horizon=2, context=2))
    with pytest.raises(UserError, match=r"evaluation\.episodes=20: .* no environment to act in; give .*episodes=0"):
        run_training(config, RunContext(tmp_path / "run", ""))
    assert not (tmp_path / "run").exists()


def test_a_wrong_option_is_named() -> None:
    with pytest.raises(UserError, match=r"no option 'data\.source\.pth'; did you mean 'data\.source\.path'"):
        require_available(DataConfig(source={"_target_": NPZ, "pth": "x"}))
    with pytest.raises(UserError, match=r"data\.source.*path"):
        require_available(DataConfig(source={"_target_": NPZ}))


def test_a_compressed_file_may_be_read_but_not_a_bomb(folder: Path, raw: list[RawEpisode]) -> None:
    file = folder / "episode_2.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    np.savez_compressed(file, **arrays)  # pyright: ignore[reportArgumentType]
    assert len(load(folder, env_id=None).episodes) == len(LENGTHS)
    np.savez_compressed(file, **arrays | {"rewards": np.zeros(2**24)})  # pyright: ignore[reportArgumentType]
    size = r"would decompress from [\d,]+ bytes on disk to 134,217,856"
    with pytest.raises(UserError, match=rf"episode_2\.npz', rewards: {size}"):
        load(folder, env_id=None)


def test_an_array_that_promises_more_than_there_is_is_refused(folder: Path) -> None:
    file = folder / "episode_2.npz"
    with np.load(file) as stored:
        arrays = dict(stored)
    array = io.BytesIO()
    np.lib.format.write_array_header_1_0(array, {"descr": "<f8", "fortran_order": False, "shape": (10**12,)})
    del arrays["rewards"]
    np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr("rewards.npy", array.getvalue())
    with pytest.raises(UserError, match=r"rewards: declares 8,000,000,000,000 bytes but holds 128"):
        load(folder, env_id=None)


@pytest.mark.parametrize(("env_id", "needed"), [(None, "2,000,000"), ("Hopper-v5", "1,000,000")])
def test_a_folder_that_does_not_fit_is_refused_before_any_of_it_is_inflated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, env_id: str | None, needed: str
) -> None:
    """Judged by the sum of its files, each of which would fit."""
    for number in range(2):
        np.savez_compressed(tmp_path / f"{number}.npz", observations=np.zeros(124_984))  # and 128 bytes of header
    monkeypatch.setattr(npz_folder, "available_memory", lambda: 900_000)
    monkeypatch.setattr(np, "load", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(UserError, match=rf"the 2 files of .* take at least {needed} bytes .*; join fewer of them$"):
        NpzFolder(str(tmp_path), env_id).read(progress=False)
