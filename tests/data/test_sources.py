"""Real Minari data sets, written by Minari, then read or damaged."""

import errno
import fcntl
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import minari
import numpy as np
import pyarrow.dataset
import pytest
from gymnasium.envs.registration import EnvSpec

from tests.minari_sets import RawEpisode, box, random_episode, write_dataset
from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data import minari_set, sources
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.errors import UserError
from trajectory_transformer.simulation import REGISTRY

PENDULUM = gym.make("Pendulum-v1")
FORMATS = pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
UNREACHABLE = "http://127.0.0.1:9"  # the discard port: refused at once


def load(*dataset_ids: str, **options: object):
    return load_offline_data(DataConfig(list(dataset_ids), download=False, **options), progress=False)  # pyright: ignore


# ---- reading ---------------------------------------------------------------------------------------------------------


@FORMATS
def test_episodes_come_back_as_they_were_stored(minari_root: Path, data_format: str):
    raw = [random_episode(steps, seed=steps, terminated=steps == 5) for steps in (5, 1, 7)]
    write_dataset("some/set-v0", raw, data_format=data_format)
    data = load("some/set-v0")
    assert data.dataset_ids == ["some/set-v0"]
    assert [episode.terminated for episode in data.episodes] == [True, False, False]
    for episode, stored in zip(data.episodes, raw, strict=True):
        np.testing.assert_array_equal(episode.observations, np.asarray(stored.observations, dtype=np.float32))
        np.testing.assert_array_equal(episode.actions, np.asarray(stored.actions))
        np.testing.assert_array_equal(episode.rewards, stored.rewards.astype(np.float32))
        assert {array.dtype for array in (episode.observations, episode.actions, episode.rewards)} == {np.dtype("f4")}
    np.testing.assert_allclose(data.returns, [stored.rewards.sum() for stored in raw], rtol=1e-5)
    assert (data.environment.observation_dim, data.environment.action_dim) == (3, 2)


@FORMATS
def test_nested_dict_observations_and_discrete_actions(minari_root: Path, data_format: str):
    goal = gym.spaces.Dict({"position": box(2), "room": gym.spaces.Discrete(4)})
    space = gym.spaces.Dict({"observation": box(3), "desired_goal": goal})
    generator = np.random.default_rng(0)
    position, body = generator.standard_normal((6, 2)), generator.standard_normal((6, 3))
    room, actions = np.arange(6) % 4, np.array([0, 2, 1, 2, 0])
    raw = RawEpisode(
        {"observation": body, "desired_goal": {"position": position, "room": room}}, actions, np.zeros(5), True
    )
    write_dataset(
        "nested-v0", [raw], observation_space=space, action_space=gym.spaces.Discrete(3), data_format=data_format
    )
    data = load("nested-v0")
    (episode,) = data.episodes
    flat = np.concatenate([position, room[:, None], body], axis=1)  # alphabetical, depth first
    np.testing.assert_array_equal(episode.observations, flat.astype(np.float32))
    np.testing.assert_array_equal(episode.actions, actions[:, None])
    assert data.environment.observation.names()[2:4] == ["desired_goal.room", "observation[0]"]


def test_discrete_observations(minari_root: Path):
    raw = RawEpisode(np.array([3, 1, 2]), np.zeros((2, 1), dtype=np.float32), np.ones(2))
    write_dataset("frozen-v0", [raw], observation_space=gym.spaces.Discrete(4), action_space=box(1, 1.0, np.float32))
    np.testing.assert_array_equal(load("frozen-v0").episodes[0].observations, [[3], [1], [2]])


def pictures(steps: int, *shape: int) -> np.ndarray:
    """Smooth pictures (steps, *shape), which JPEG keeps well."""
    slopes = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1]) * 2)
    slopes = slopes if len(shape) == 2 else np.stack([slopes, 100 + slopes // 2, 160 - slopes // 2], axis=-1)
    return np.stack([slopes + step for step in range(steps)]).astype(np.uint8)


@pytest.mark.parametrize("shape", [(32, 40), (32, 40, 3)])
@FORMATS
def test_pictures_are_read_as_minari_reads_them(minari_root: Path, data_format: str, shape: tuple[int, ...]):
    """In arrow and parquet Minari stores them as JPEG."""
    space = gym.spaces.Dict({"camera": gym.spaces.Box(0, 255, shape, np.uint8), "speed": box(2)})
    seen, speeds = pictures(4, *shape), np.random.default_rng(0).standard_normal((4, 2))
    raw = RawEpisode({"camera": seen, "speed": speeds}, np.zeros((3, 1), np.float32), np.ones(3))
    write_dataset(
        "seen-v0", [raw], observation_space=space, action_space=box(1, 1.0, np.float32), data_format=data_format
    )
    found = load("seen-v0").episodes[0].observations
    stored: Any = minari.load_dataset("seen-v0")[0].observations
    np.testing.assert_array_equal(found[:, :-2], stored["camera"].reshape(4, -1))
    assert np.abs(found[:, :-2] - seen.reshape(4, -1)).max() < 12
    np.testing.assert_array_equal(found[:, -2:], speeds.astype(np.float32))
    np.testing.assert_array_equal(load("seen-v0", observation_keys=["speed"]).episodes[0].observations, found[:, -2:])


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda jpeg: jpeg.replace(b"\x00\x20\x00\x28", b"\xff\xff\xff\xff"), "cannot be read .*(expected|exceeds)"),
        (lambda jpeg: jpeg.replace(b"\x00\x20\x00\x28", b"\x00\x28\x00\x28"), r"\(40, 40\), L, expected .*\(40, 32\)"),
        (lambda jpeg: jpeg[:200], "cannot be read"),
        (lambda _: b"GIF89a", "cannot be read"),
        (lambda _: None, "cannot be read"),
    ],
)
@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_pictures_of_another_size_or_kind_are_refused_before_they_are_decoded(
    minari_root: Path, data_format: str, damage: Callable[[bytes], bytes | None], words: str
):
    space = gym.spaces.Box(0, 255, (32, 40), np.uint8)
    raw = RawEpisode(pictures(4, 32, 40), np.zeros((3, 1), np.float32), np.ones(3))
    write_dataset(
        "bad-v0", [raw], observation_space=space, action_space=box(1, 1.0, np.float32), data_format=data_format
    )
    folder = minari_root / "bad-v0" / "data" / "0"
    whole = pyarrow.dataset.dataset(str(folder), format=data_format, ignore_prefixes=["metadata"]).to_table()
    column = whole.column_names.index("observations")
    jpegs = [damage(jpeg.as_py()) for jpeg in whole.column(column)]
    assert jpegs != whole.column(column).to_pylist()
    whole = whole.set_column(column, "observations", pyarrow.array(jpegs, pyarrow.binary()))
    pyarrow.dataset.write_dataset(whole, folder, format=data_format, existing_data_behavior="overwrite_or_ignore")
    with pytest.raises(UserError, match=f"data set 'bad-v0', episode 0: .*{words}") as caught:
        load("bad-v0")
    assert "\n" not in str(caught.value)


def test_pictures_without_a_decoder_are_refused(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    space = gym.spaces.Box(0, 255, (32, 40), np.uint8)
    raw = RawEpisode(pictures(4, 32, 40), np.zeros((3, 1), np.float32), np.ones(3))
    write_dataset("seen-v0", [raw], observation_space=space, action_space=box(1, 1.0, np.float32), data_format="arrow")
    monkeypatch.setattr("PIL.features.check", lambda feature: feature != "jpg")
    with pytest.raises(UserError, match=r"JPEG images, which .*: pip install --force-reinstall pillow$"):
        load("seen-v0")


@FORMATS
def test_long_episodes_are_whole(minari_root: Path, data_format: str):
    """Minari's own arrow reader stops after 32,768 rows and returns the rest as the next episode."""
    raw = [random_episode(40_000, seed=1, terminated=True), random_episode(3, seed=2)]
    write_dataset("long-v0", raw, data_format=data_format)
    data = load("long-v0")
    assert [len(episode) for episode in data.episodes] == [40_000, 3]
    np.testing.assert_array_equal(data.episodes[0].actions, np.asarray(raw[0].actions))
    assert data.episodes[0].terminated


def test_observation_selection_keeps_the_order_asked_for(minari_root: Path):
    raw = random_episode(4)
    write_dataset("set-v0", [raw])
    data = load("set-v0", observation_indices=[2, 0])
    np.testing.assert_array_equal(data.episodes[0].observations, np.asarray(raw.observations, np.float32)[:, [2, 0]])
    assert data.environment.observation_indices == (2, 0)
    assert data.environment.observation_dim == 2
    assert data.fingerprint == load("set-v0").fingerprint  # of the set, not of the selection


def test_observation_selection_outside_the_space_is_refused(minari_root: Path):
    write_dataset("set-v0", [random_episode(4)])
    with pytest.raises(
        UserError, match=r"observation_indices has 3, but the observations of 'set-v0' have 3 dimensions"
    ):
        load("set-v0", observation_indices=[0, 3])


def test_several_sets_are_joined_in_order(minari_root: Path):
    write_dataset("a-v0", [random_episode(2), random_episode(3)])
    write_dataset("b-v0", [random_episode(4)], data_format="arrow")
    data = load("b-v0", "a-v0")
    assert data.dataset_ids == ["b-v0", "a-v0"]
    assert [len(episode) for episode in data.episodes] == [4, 2, 3]


@pytest.mark.parametrize(
    ("episode", "spaces", "field"),
    [
        (random_episode(3, observation_dim=4), {"observation_space": box(4)}, "observation"),
        (random_episode(3), {"action_space": box(2, 2.0, np.float32)}, "action"),
    ],
)
def test_sets_with_other_spaces_are_not_joined(
    minari_root: Path, episode: RawEpisode, spaces: dict[str, object], field: str
):
    write_dataset("a-v0", [random_episode(3)])
    write_dataset("b-v0", [episode], **spaces)
    with pytest.raises(UserError, match=f"'a-v0' and 'b-v0' cannot be joined: their {field} spaces differ"):
        load("a-v0", "b-v0")


@pytest.mark.parametrize("other", ["", "Pendulum-v1"])
def test_sets_of_one_environment_or_of_none_are_joined(minari_root: Path, other: str):
    write_dataset("a-v0", [pendulum_episode()], env="Pendulum-v1")
    spaces = {"observation_space": PENDULUM.observation_space, "action_space": PENDULUM.action_space}
    write_dataset("b-v0", [pendulum_episode()], **({"env": other} if other else spaces))
    assert len(load("a-v0", "b-v0").episodes) == 2


def test_sets_of_other_environments_are_not_joined_even_with_equal_spaces(minari_root: Path):
    write_dataset("a-v0", [pendulum_episode()], env="Pendulum-v1")
    write_dataset("b-v0", [pendulum_episode()], env="Pendulum-v1")
    spec = read_metadata(minari_root / "b-v0")["env_spec"].replace('"Pendulum-v1"', '"Swing-v1"')
    change_metadata(minari_root / "b-v0", env_spec=spec)
    with pytest.raises(UserError, match=r"'a-v0' and 'b-v0' cannot be joined: .* Pendulum-v1 and Swing-v1"):
        load("a-v0", "b-v0")


def test_a_set_named_twice_is_refused():
    with pytest.raises(UserError, match=r"^data\.dataset_id names a-v0 more than once"):
        DataConfig(["a-v0", "b-v0", "a-v0"], download=False)


def test_fingerprint_tells_two_sets_of_one_name_apart(minari_root: Path):
    fingerprints = []
    for seed in (0, 0, 1):
        write_dataset("set-v0", [random_episode(4, seed=seed), random_episode(2)])
        fingerprints.append(load("set-v0").fingerprint)
        shutil.rmtree(minari_root / "set-v0")
    assert fingerprints[0] == fingerprints[1] != fingerprints[2]
    assert len(fingerprints[0]) == 64


def test_fingerprint_knows_where_an_episode_ends(minari_root: Path):
    whole = random_episode(4, terminated=True)
    write_dataset("a-v0", [whole])
    write_dataset("b-v0", [RawEpisode(whole.observations, whole.actions, whole.rewards, terminated=False)])
    assert load("a-v0").fingerprint != load("b-v0").fingerprint


@pytest.mark.parametrize("field", ["observations", "actions", "rewards", "terminated"])
def test_fingerprint_covers_each_array(minari_root: Path, field: str):
    episodes = [random_episode(3), random_episode(4, seed=1)]
    write_dataset("a-v0", episodes)
    if field == "terminated":
        episodes[1].terminated = True
    else:
        np.asarray(getattr(episodes[1], field))[(2, *[0] * (field != "rewards"))] += 0.125
    write_dataset("b-v0", episodes)
    assert load("a-v0").fingerprint != load("b-v0").fingerprint


@pytest.mark.parametrize(("terminal", "progress"), [(True, True), (True, False), (False, True)])
def test_progress_is_shown_on_a_terminal_only_and_on_stderr(
    minari_root: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    terminal: bool,
    progress: bool,
):
    write_dataset("set-v0", [random_episode(3), random_episode(2)])
    monkeypatch.setenv("TTY_COMPATIBLE", str(int(terminal)))
    load_offline_data(DataConfig("set-v0"), progress=progress)
    output = capsys.readouterr()
    assert output.out == ""
    assert ("reading set-v0" in output.err) == (terminal and progress)


# ---- environment and reference scores --------------------------------------------------------------------------------


def pendulum_episode() -> RawEpisode:
    return random_episode(3, observation_dim=3, action_dim=1)


def test_environment_comes_from_the_data_set(minari_root: Path):
    write_dataset("pendulum-v0", [pendulum_episode()], env="Pendulum-v1")
    environment = load("pendulum-v0").environment
    assert environment.env_id == "Pendulum-v1"
    assert environment.spec_json is not None
    rebuilt = EnvSpec.from_json(environment.spec_json).make()
    assert rebuilt.spec is not None
    assert rebuilt.spec.id == "Pendulum-v1"
    np.testing.assert_array_equal(environment.observation.high, [1.0, 1.0, 8.0])
    assert environment.action.high.tolist() == [2.0]


def test_evaluation_environment_is_preferred(minari_root: Path):
    evaluation = gym.make("Pendulum-v1", max_episode_steps=7).spec
    write_dataset("pendulum-v0", [pendulum_episode()], env="Pendulum-v1", eval_env=evaluation)
    spec_json = load("pendulum-v0").environment.spec_json
    assert spec_json is not None
    assert json.loads(spec_json)["max_episode_steps"] == 7


def test_specs_of_old_gymnasium_versions_are_understood(minari_root: Path):
    write_dataset("pendulum-v0", [pendulum_episode()], env="Pendulum-v1")
    metadata = read_metadata(minari_root / "pendulum-v0")
    old = '"order_enforce": true, "autoreset": false, "apply_api_compatibility": false,'
    spec = metadata["env_spec"].replace('"order_enforce": true,', old)
    assert "autoreset" in spec
    change_metadata(minari_root / "pendulum-v0", env_spec=spec)
    spec_json = load("pendulum-v0").environment.spec_json
    assert spec_json is not None
    assert EnvSpec.from_json(spec_json).id == "Pendulum-v1"


def test_a_set_without_environment(minari_root: Path):
    write_dataset("set-v0", [random_episode(3)])
    data = load("set-v0")
    assert (data.environment.env_id, data.environment.spec_json) == ("", None)
    assert (data.reference_scores, data.reference_source) == (None, "none")


def test_a_name_of_d4rl_is_told_from_one_of_minari(minari_root: Path):
    with pytest.raises(UserError, match=r"its name is one of D4RL, not of Minari.*; data=hopper_medium is a simulated"):
        sources.require_available(DataConfig("hopper-medium-v2"))


def test_a_set_without_environment_is_given_one(minari_root: Path):
    write_dataset("set-v0", [pendulum_episode()], action_space=box(1, 2.0, np.float32))
    source = {"_target_": "trajectory_transformer.data.minari_set.MinariSet", "dataset_id": "set-v0"}
    data = load_offline_data(DataConfig(source={**source, "env_id": "Pendulum-v1"}), progress=False)
    assert data.environment.env_id == "Pendulum-v1"
    assert data.environment.spec_json is not None
    assert EnvSpec.from_json(data.environment.spec_json).id == "Pendulum-v1"
    plain = load("set-v0")
    assert (data.environment.action, data.fingerprint) == (plain.environment.action, plain.fingerprint)
    with pytest.raises(UserError, match="environment 'Pendulum-v7' cannot be made"):
        sources.require_available(DataConfig(source={**source, "env_id": "Pendulum-v7"}))


def test_reference_scores_of_the_set_come_first(minari_root: Path):
    episode = random_episode(3, observation_dim=11, action_dim=3)
    write_dataset("hopper-v0", [episode], env="Hopper-v5")
    data = load("hopper-v0")
    assert (data.reference_scores, data.reference_source) == ((-20.272305, 3234.3), "d4rl")
    change_metadata(minari_root / "hopper-v0", ref_min_score=1.0, ref_max_score=2)
    data = load("hopper-v0")
    assert (data.reference_scores, data.reference_source) == ((1.0, 2.0), "dataset")


# ---- corrupt data ----------------------------------------------------------------------------------------------------


def read_metadata(folder: Path) -> dict[str, str]:
    return json.loads((folder / "data" / "metadata.json").read_text())


def change_metadata(folder: Path, **values: object) -> None:
    (folder / "data" / "metadata.json").write_text(json.dumps(read_metadata(folder) | values))


def replace_array(folder: Path, name: str, values: np.ndarray) -> None:
    with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
        del file[name]
        file[name] = values


def set_value(name: str, index: tuple[int, ...], value: float) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            array = file[name]
            assert isinstance(array, h5py.Dataset)
            array[index] = value

    return change


def cut(name: str, rows: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "r") as file:
            array = file[name]
            assert isinstance(array, h5py.Dataset)
            kept = array[:rows]
        replace_array(folder, name, kept)

    return change


def empty_episode(folder: Path) -> None:
    for name, shape in (("actions", (0, 2)), ("rewards", (0,)), ("terminations", (0,)), ("truncations", (0,))):
        replace_array(folder, f"episode_1/{name}", np.zeros(shape))
    cut("episode_1/observations", 1)(folder)


def remove(name: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file[name]

    return change


def episode_steps(number: int) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            file["episode_1"].attrs["total_steps"] = number

    return change


def metadata(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_metadata(folder, **values)


def file_content(name: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "data" / name
        path.write_bytes(change(path.read_bytes()))

    return apply


def hdf5(change: Callable[[h5py.File, Path], object]) -> Callable[[Path], None]:
    """Changes the file after the rewards of episode 1 were taken out of it."""

    def apply(folder: Path) -> None:
        with h5py.File(folder / "data" / "main_data.hdf5", "a") as file:
            del file["episode_1/rewards"]
            change(file, folder)

    return apply


@hdf5
def external_link(file: h5py.File, folder: Path) -> None:
    file["episode_1/rewards"] = h5py.ExternalLink(str(folder / "other.hdf5"), "/rewards")


@hdf5
def soft_link(file: h5py.File, folder: Path) -> None:
    file["episode_1/rewards"] = h5py.SoftLink("/episode_0/rewards")


@hdf5
def second_name(file: h5py.File, folder: Path) -> None:
    file["episode_1/rewards"] = file["episode_2/rewards"]


@hdf5
def external_storage(file: h5py.File, folder: Path) -> None:
    (folder / "local.bin").write_bytes(bytes(40))
    file.create_dataset("episode_1/rewards", (5,), float, external=[(str(folder / "local.bin"), 0, 40)])


@hdf5
def virtual_array(file: h5py.File, folder: Path) -> None:
    layout = h5py.VirtualLayout((5,), float)
    layout[:] = h5py.VirtualSource(str(folder / "other.hdf5"), "rewards", (5,))
    file.create_virtual_dataset("episode_1/rewards", layout)


@hdf5
def compressed(file: h5py.File, folder: Path) -> None:
    zeros = file.create_dataset("episode_1/rewards", (2**24,), float, chunks=(2**22,), compression="gzip")
    zeros[:] = 0.0


@hdf5
def never_written(file: h5py.File, folder: Path) -> None:
    file.create_dataset("episode_1/rewards", (10**9,), float, chunks=(1000,))


CORRUPTIONS: dict[str, tuple[Callable[[Path], None], str]] = {
    "NaN observation": (
        set_value("episode_1/observations", (2, 1), np.nan),
        r"episode 1, observations: nan at step 2, dimension \[1\]",
    ),
    "infinite action": (set_value("episode_1/actions", (0, 0), np.inf), "episode 1, actions: inf at step 0"),
    "NaN reward": (set_value("episode_1/rewards", (3,), np.nan), "episode 1, rewards: nan at step 3"),
    "too large for float32": (set_value("episode_1/rewards", (3,), 1e60), "episode 1, rewards: inf at step 3"),
    "too large to be squared": (set_value("episode_1/rewards", (3,), 3e38), r"rewards: 3\S*e\+38 at step 3, .*scale"),
    "complex rewards": (
        lambda folder: replace_array(folder, "episode_1/rewards", np.full(5, 1j)),
        "episode 1, rewards: are of type complex128, expected real numbers",
    ),
    "text for rewards": (
        lambda folder: replace_array(folder, "episode_1/rewards", np.full(5, b"1.5")),
        "episode 1, rewards: are of type .*, expected real numbers",
    ),
    "endless episodes in total": (
        metadata(total_episodes=10**15),
        r"total_episodes is 10{15}, but its files have [\d,]+ bytes",
    ),
    "total of 5,000 digits": (
        file_content("metadata.json", lambda content: b'{"total_episodes": ' + b"9" * 5000 + b"}"),
        "cannot be read .*4300",
    ),
    "total is true": (metadata(total_episodes=True), "metadata: total_episodes is True"),
    "no space": (metadata(observation_space=None), "metadata: observation_space is missing"),
    "a link out of the file": (external_link, r"episode_1/rewards: is a link, .* must not choose what else is read"),
    "a link within the file": (soft_link, r"episode_1/rewards: is a link"),
    "one array under two names": (second_name, "rewards: is already stored under another name"),
    "raw external storage": (external_storage, r"episode_1/rewards: lies in another file"),
    "a virtual array": (virtual_array, r"episode_1/rewards: lies in another file"),
    "a compressed bomb": (compressed, r"main_data\.hdf5: would decompress from [\d,]+ bytes on disk to [\d,]{11,}"),
    "an array that was never written": (never_written, r"main_data\.hdf5: would decompress from .* to 8,000,0"),
    "last observation lost": (cut("episode_1/observations", 5), "episode 1, observations: 5 for 5 actions, expected 6"),
    "actions lost": (cut("episode_1/actions", 4), "episode 1, observations: 6 for 4 actions, expected 5"),
    "rewards lost": (cut("episode_1/rewards", 4), "episode 1, rewards: 4 for 5 actions"),
    "terminations lost": (cut("episode_1/terminations", 1), "episode 1, terminations: 1 for 5 actions"),
    "truncations lost": (cut("episode_1/truncations", 0), "episode 1, truncations: 0 for 5 actions"),
    "length 0": (empty_episode, "episode 1, actions: the episode has length 0"),
    "other width": (
        lambda folder: replace_array(folder, "episode_1/actions", np.zeros((5, 3))),
        r"episode 1, actions: space has shape \(3,\), expected \(2,\)",
    ),
    "rewards of two columns": (
        lambda folder: replace_array(folder, "episode_1/rewards", np.zeros((5, 2))),
        r"episode 1, rewards: has shape \(5, 2\)",
    ),
    "rewards missing": (remove("episode_1/rewards"), "episode 1: cannot be read .*rewards"),
    "observations missing": (remove("episode_1/observations"), "episode 1: cannot be read .*observations"),
    "episode missing": (remove("episode_1"), r"episode 1: missing, although the metadata's total_episodes is 3"),
    "wrong steps of an episode": (episode_steps(9), "episode 1, total_steps: its metadata says 9, but 5 actions"),
    "too many steps in total": (metadata(total_steps=14), "metadata: total_steps is 14, .* have 13 together"),
    "too few steps in total": (metadata(total_steps=12), "metadata: total_steps is 12, .* have 13 together"),
    "too many episodes in total": (metadata(total_episodes=4), "episode 3: missing, .*total_episodes is 4"),
    "too few episodes in total": (metadata(total_episodes=2), "metadata: total_episodes is 2, but 3 are stored"),
    "no steps": (metadata(total_steps=0), "metadata: total_steps is 0, expected a number above 0"),
    "total of another type": (metadata(total_episodes="3"), "metadata: total_episodes is '3'"),
    "unknown Minari version": (metadata(minari_version="99.0"), "cannot be read .*Minari"),
    "unknown format": (metadata(data_format="tape"), "cannot be read .*tape"),
    "metadata is a list": (file_content("metadata.json", lambda content: b"[1]"), "metadata: .* is not a JSON object"),
    "metadata truncated": (file_content("metadata.json", lambda content: content[:40]), "cannot be read .*JSON"),
    "metadata empty": (file_content("metadata.json", lambda content: b""), "cannot be read .*JSON"),
    "metadata missing": (lambda folder: (folder / "data" / "metadata.json").unlink(), "cannot be read .*metadata.json"),
    "file truncated": (file_content("main_data.hdf5", lambda content: content[: len(content) // 2]), "cannot be read"),
    "file empty": (file_content("main_data.hdf5", lambda content: b""), "cannot be read"),
    "file of random bytes": (file_content("main_data.hdf5", lambda content: b"\x93" * 4096), "cannot be read"),
    "file missing": (lambda folder: (folder / "data" / "main_data.hdf5").unlink(), "cannot be read .*No data found"),
}


@pytest.mark.parametrize("case", CORRUPTIONS)
def test_corrupt_hdf5_is_refused_by_name(minari_root: Path, case: str):
    write_dataset("bad/set-v0", [random_episode(steps, seed=steps) for steps in (4, 5, 4)])
    damage, message = CORRUPTIONS[case]
    assert len(load("bad/set-v0").episodes) == 3
    damage(minari_root / "bad/set-v0")
    with pytest.raises(UserError, match=rf"data set 'bad/set-v0'.*{message}") as caught:
        load("bad/set-v0")
    assert "\n" not in str(caught.value)


def arrow_file(folder: Path) -> Path:
    (path,) = (folder / "data" / "1").glob("part-*")
    return path


ARROW_CORRUPTIONS: dict[str, tuple[Callable[[Path], object], str]] = {
    "truncated": (
        lambda folder: arrow_file(folder).write_bytes(arrow_file(folder).read_bytes()[:300]),
        "cannot be read",
    ),
    "empty": (lambda folder: arrow_file(folder).write_bytes(b""), "cannot be read"),
    "file missing": (lambda folder: arrow_file(folder).unlink(), "cannot be read"),
    "episode missing": (lambda folder: shutil.rmtree(folder / "data" / "1"), "missing"),
    "swapped": (
        lambda folder: shutil.copy(next((folder / "data" / "0").glob("part-*")), arrow_file(folder)),
        "total_steps: its metadata says 5, but 4 actions",
    ),
}


@pytest.mark.parametrize("case", ARROW_CORRUPTIONS)
@pytest.mark.parametrize("data_format", ["arrow", "parquet"])
def test_corrupt_arrow_is_refused_by_name(minari_root: Path, case: str, data_format: str):
    write_dataset("bad-v0", [random_episode(steps, seed=steps) for steps in (4, 5, 4)], data_format=data_format)
    damage, message = ARROW_CORRUPTIONS[case]
    damage(minari_root / "bad-v0")
    with pytest.raises(UserError, match=f"data set 'bad-v0', episode 1.*{message}"):
        load("bad-v0")


@pytest.mark.parametrize("position", [("observations", 2), ("actions", 4), ("rewards", 0)])
@FORMATS
def test_nan_that_minari_stores_is_refused(minari_root: Path, data_format: str, position: tuple[str, int]):
    field, step = position
    episode = random_episode(5)
    array = getattr(episode, field)
    array[step] = np.nan
    write_dataset("bad-v0", [random_episode(3), episode], data_format=data_format)
    with pytest.raises(UserError, match=f"data set 'bad-v0', episode 1, {field}: nan at step {step}"):
        load("bad-v0")


@FORMATS
def test_as_many_observations_as_actions_are_refused(minari_root: Path, data_format: str):
    episode = random_episode(5)
    episode.observations = np.asarray(episode.observations)[:-1]
    write_dataset("bad-v0", [random_episode(3), episode], data_format=data_format)
    with pytest.raises(UserError, match=r"data set 'bad-v0', episode 1, .*observations"):
        load("bad-v0")


def test_a_termination_before_the_last_step_is_refused(minari_root: Path):
    write_dataset("bad-v0", [random_episode(3), random_episode(5, terminated=True)])
    set_value("episode_1/terminations", (2,), 1)(minari_root / "bad-v0")
    with pytest.raises(
        UserError, match="data set 'bad-v0', episode 1, terminations: true at step 2 of 5, before the last"
    ):
        load("bad-v0")


@pytest.mark.parametrize("value", [3, -1])
def test_discrete_values_outside_their_space_are_refused(minari_root: Path, value: int):
    raw = RawEpisode(np.zeros((3, 3)), np.array([2, value]), np.zeros(2))
    write_dataset("bad-v0", [raw], action_space=gym.spaces.Discrete(3))
    with pytest.raises(UserError, match=f"episode 0, actions: {value} at step 1, outside the Discrete space's 0 to 2"):
        load("bad-v0")


def test_fractions_in_a_space_of_integers_are_refused(minari_root: Path):
    raw = RawEpisode(np.zeros((3, 3)), np.array([[2], [3]]), np.zeros(2))
    write_dataset("bad-v0", [raw], action_space=gym.spaces.Box(0, 9, (1,), np.int64))
    assert load("bad-v0").episodes[0].actions.tolist() == [[2], [3]]
    replace_array(minari_root / "bad-v0", "episode_0/actions", np.array([[2.0], [3.5]]))
    with pytest.raises(UserError, match=r"actions: 3\.5 at step 1, dimension \[0\], whose space holds whole numbers"):
        load("bad-v0")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), "you may not read it: `chmod"),
        (BlockingIOError(errno.EAGAIN, "unable to lock file"), "another process has locked it: wait"),
        (OSError(errno.EMFILE, "Too many open files"), "`ulimit -n`"),
        (OSError(errno.EIO, "Input/output error"), "try again"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "not enough free memory"),
        (ImportError("pyarrow is not installed"), r"pip install '[\w-]+\[arrow\]'"),
        (OSError("truncated file"), "if the data set is damaged, delete '"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_each_reason_why_a_set_cannot_be_read_has_its_own_remedy(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, remedy: str
):
    def fail(*_: object) -> None:
        raise error

    write_dataset("set-v0", [random_episode(2)])
    monkeypatch.setattr(minari, "load_dataset", fail)
    with pytest.raises(UserError, match=rf"^data set 'set-v0' in '.*' cannot be read \(.*\); .*{remedy}") as caught:
        load("set-v0")
    assert ("delete" in str(caught.value)) == ("delete" in remedy)


def test_a_locked_file_is_not_to_be_deleted(minari_root: Path):
    write_dataset("set-v0", [random_episode(2)])
    with open(minari_root / "set-v0" / "data" / "main_data.hdf5", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UserError, match=r"unable to lock file.*another process has locked it"):
            load("set-v0")


@pytest.mark.parametrize(
    ("change", "remedy"),
    [
        (lambda folder: change_metadata(folder, minari_version="99.0"), "pip install --upgrade minari"),
        (lambda folder: change_metadata(folder, data_format="tape"), "does not know this data_format"),
        (lambda folder: (folder / "data" / "main_data.hdf5").unlink(), "a file is missing.* delete '"),
        (lambda folder: (folder / "data" / "metadata.json").unlink(), "a file is missing.* delete '"),
        (lambda folder: change_metadata(folder, env_spec="[1]"), "Gymnasium .* cannot read its env_spec.*episodes=0"),
        (lambda folder: change_metadata(folder, env_spec="{"), "Gymnasium .* cannot read its env_spec.*episodes=0"),
    ],
)
def test_what_is_missing_or_of_another_version_has_its_own_remedy(
    minari_root: Path, change: Callable[[Path], None], remedy: str
):
    write_dataset("set-v0", [random_episode(2)])
    change(minari_root / "set-v0")
    with pytest.raises(UserError, match=remedy):
        load("set-v0")


def test_a_folder_that_may_not_be_looked_into_is_named(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(_: Path) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "exists", fail)
    with pytest.raises(UserError, match=r"data set 'set-v0' in '.*' cannot be read \(Permission denied\)"):
        load("set-v0")


# ---- keys and memory -------------------------------------------------------------------------------------------------

MISSION = gym.spaces.Dict(
    {
        "image": gym.spaces.Box(0, 255, (2, 2), np.uint8),
        "mission": gym.spaces.Text(8),
        "goal": gym.spaces.Dict({"a": box(1), "b": gym.spaces.Discrete(4)}),
    }
)


def write_missions(**arguments: object) -> dict[str, object]:
    image = np.arange(12, dtype=np.uint8).reshape(3, 2, 2)
    goal = {"a": np.array([[0.5], [1.5], [2.5]]), "b": np.array([1, 2, 3])}
    observations = {"image": image, "mission": ["go", "go", "stay"], "goal": goal}
    raw = RawEpisode(observations, np.zeros((2, 2), np.float32), np.zeros(2))
    write_dataset("missions-v0", [raw], observation_space=MISSION, **arguments)
    return observations


def test_text_is_refused_with_the_keys_that_are_left(minari_root: Path):
    write_missions()
    with pytest.raises(
        UserError,
        match=r"'missions-v0': key 'mission' is a Text space.*observation_keys=\[goal\.a,goal\.b,image\] leaves",
    ):
        load("missions-v0")


@FORMATS
@pytest.mark.parametrize(
    ("keys", "columns"), [(["image", "goal"], [0, 1, 2, 3, 4, 5]), (["goal.b"], [1]), (["image"], [2, 3, 4, 5])]
)
def test_some_keys_of_a_dict_are_kept(minari_root: Path, data_format: str, keys: list[str], columns: list[int]):
    write_missions(data_format=data_format)
    whole = np.concatenate([[[0.5, 1], [1.5, 2], [2.5, 3]], np.arange(12).reshape(3, 4)], axis=1)
    data = load("missions-v0", observation_keys=keys)
    np.testing.assert_array_equal(data.episodes[0].observations, whole[:, columns])
    assert data.environment.observation_dim == len(columns)
    assert all(leaf.usable for leaf in data.environment.observation.leaves)
    last = load("missions-v0", observation_keys=keys, observation_indices=[len(columns) - 1])
    np.testing.assert_array_equal(last.episodes[0].observations, whole[:, columns[-1:]])


def test_keys_that_are_not_there_are_refused(minari_root: Path):
    write_missions()
    with pytest.raises(UserError, match=r"has 'goa', but the observations of 'missions-v0' have goal\.a, "):
        load("missions-v0", observation_keys=["goal", "goa"])
    write_dataset("set-v0", [random_episode(2)])
    with pytest.raises(UserError, match="has 'goal', but the observations of 'set-v0' are not a Dict"):
        load("set-v0", observation_keys=["goal"])


@pytest.mark.parametrize("keys", [[], [""], ["a", "a"]])
def test_keys_are_distinct_and_at_least_one(keys: list[str]):
    with pytest.raises(UserError, match=r"data\.observation_keys=.* must be one or more distinct keys"):
        DataConfig(observation_keys=keys)


def test_a_set_too_large_for_memory_is_refused_before_its_episodes_are_read(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch
):
    write_dataset("set-v0", [random_episode(5), random_episode(5)])
    needed = 2 * 4 * 10 * (3 + 2 + 2)
    monkeypatch.setattr(sources, "available_memory", lambda: needed)
    assert len(load("set-v0").episodes) == 2
    monkeypatch.setattr(sources, "available_memory", lambda: needed - 1)
    assert len(load("set-v0", observation_indices=[0]).episodes) == 2
    monkeypatch.setattr(sources, "validate_episode", None)
    with pytest.raises(UserError, match=r"'set-v0' has 10 steps of 7 numbers, which take at least 560 bytes"):
        load("set-v0")


def test_spaces_that_cannot_become_tokens_are_refused(minari_root: Path):
    raw = RawEpisode(np.zeros((3, 4), dtype=np.int8), np.zeros((2, 2), dtype=np.float32), np.zeros(2))
    write_dataset("bits-v0", [raw], observation_space=gym.spaces.MultiBinary(4))
    with pytest.raises(UserError, match="data set 'bits-v0': the space is a MultiBinary space"):
        load("bits-v0")


def test_dict_actions_are_refused(minari_root: Path):
    space = gym.spaces.Dict({"left": box(1), "right": box(1)})
    raw = RawEpisode(np.zeros((3, 3)), {"left": np.zeros((2, 1)), "right": np.zeros((2, 1))}, np.zeros(2))
    write_dataset("hands-v0", [raw], action_space=space)
    with pytest.raises(UserError, match="data set 'hands-v0': its actions are a Dict space"):
        load("hands-v0")


# ---- sets that are not on disk ---------------------------------------------------------------------------------------


def test_a_missing_set_without_network_is_one_message_and_needs_no_torch(minari_root: Path):
    script = (
        "import sys\n"
        "from trajectory_transformer.configuration import DataConfig\n"
        "from trajectory_transformer.data.sources import require_available\n"
        "try:\n"
        "    require_available(DataConfig('mujoco/hopper/medium-v0'))\n"
        "except ValueError as error:\n"
        "    print(error)\n"
        "assert not {'torch', 'minari'} & sys.modules.keys()\n"
    )
    paths = {"MINARI_DATASETS_PATH": str(minari_root), "PYTHONPATH": os.pathsep.join(sys.path), "PATH": ""}
    environment = {**paths, "HF_ENDPOINT": UNREACHABLE}
    done = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert done.stderr == ""
    (message,) = done.stdout.splitlines()
    for part in (
        "'mujoco/hopper/medium-v0'",
        str(minari_root),
        "`minari download mujoco/hopper/medium-v0`",
        "embedded/",
    ):
        assert part in message


def test_a_server_that_never_answers_is_given_up_on(monkeypatch: pytest.MonkeyPatch):
    import socket

    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{silent.getsockname()[1]}")
        reason = minari_set.unreachable()
    assert reason is not None
    assert "127.0.0.1" in reason


def test_downloads_can_be_forbidden(minari_root: Path):
    with pytest.raises(UserError, match=r"'some/set-v3' is not in .*data\.download=false"):
        load("some/set-v3")


def test_a_missing_set_is_told_with_those_on_disk_and_only_similar_embedded_ones(minari_root: Path):
    with pytest.raises(UserError) as none:
        load("pendulum/random-v0")
    assert str(none.value).endswith("an embedded set, which needs none (`python train.py --help data` lists them)")
    assert f"is not in '{minari_root}' and cannot" in str(none.value)
    write_dataset("pendulum/random-v1", [random_episode(2)])
    write_dataset("other-v0", [random_episode(2)])
    with pytest.raises(UserError) as some:
        load("pendulum/random-v0")
    assert f"is not in '{minari_root}' (which has pendulum/random-v1, other-v0) and cannot" in str(some.value)
    with pytest.raises(UserError, match="which needs none, such as embedded/hopper/medium-v0"):
        load("mujoco/hopper/medium-v0")


def test_offline_mode_of_the_hub_is_respected(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="HF_HUB_OFFLINE is set"):
        load_offline_data(DataConfig("some/set-v3"), progress=False)


@pytest.mark.parametrize("dataset_id", ["hopper", "../../etc-v0", "a//b-v0", "a b-v0", "/tmp/x-v0", "x-v0/"])
def test_malformed_ids_are_refused(minari_root: Path, dataset_id: str):
    with pytest.raises(UserError, match="is not a Minari id"):
        load(dataset_id)


def test_a_misspelt_embedded_set_is_offered_its_neighbour(minari_root: Path):
    with pytest.raises(UserError, match=r"did you mean 'embedded/hopper/mixed-v0'.*recipe=hopper_mixed"):
        load("embedded/hoper/mixed-v0")


def test_a_reachable_server_is_asked_for_the_set(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(minari_set, "unreachable", lambda: None)
    monkeypatch.setattr(minari, "download_dataset", lambda name: write_dataset(name, [random_episode(3)]))
    data = load_offline_data(DataConfig("some/set-v3"), progress=False)
    assert len(data.episodes) == 1


def test_a_failed_download_is_one_message(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(name: str) -> None:
        raise ValueError(f"Couldn't find any version\nfor dataset {name}")

    monkeypatch.setattr(minari_set, "unreachable", lambda: None)
    monkeypatch.setattr(minari, "download_dataset", refuse)
    with pytest.raises(UserError, match=r"download failed \(Couldn't find any version for dataset some/set-v3\)"):
        load_offline_data(DataConfig("some/set-v3"), progress=False)


def test_an_embedded_set_is_simulated(minari_root: Path, monkeypatch: pytest.MonkeyPatch):
    made = []

    def simulate(recipe: object, progress: bool) -> None:
        made.append((recipe, progress))
        write_dataset("embedded/hopper/mixed-v0", [random_episode(3)])

    monkeypatch.setattr("trajectory_transformer.data.collect.collect", simulate)
    data, again = (load_offline_data(DataConfig("embedded/hopper/mixed-v0"), progress=False) for _ in range(2))
    assert data.fingerprint == again.fingerprint
    assert made == [(REGISTRY["embedded/hopper/mixed-v0"], False)]


def test_one_process_simulates_and_others_wait(
    minari_root: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The jobs of a sweep need the same set at the same time."""
    begun, made = threading.Event(), []

    def simulate(recipe: object, progress: bool) -> None:
        begun.set()
        while "waiting for it" not in capfd.readouterr().err:
            time.sleep(0.01)
        made.append(recipe)
        write_dataset("embedded/hopper/mixed-v0", [random_episode(3)])

    monkeypatch.setattr("trajectory_transformer.data.collect.collect", simulate)
    source = minari_set.EmbeddedSet("embedded/hopper/mixed-v0")
    first = threading.Thread(target=source.obtain, args=(False,))
    first.start()
    begun.wait()
    source.obtain(False)
    first.join()
    assert len(made) == 1


def test_a_set_does_not_choose_what_is_imported(
    minari_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find the spaces, Minari would make the environment by an entry point that the set names."""
    (tmp_path / "chosen_by_a_set.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    for name, env_id, entry_point in (
        ("bad/entry-v0", "Walk-v0", "chosen_by_a_set:make"),
        ("bad/id-v0", "chosen_by_a_set:Walk-v0", "x:y"),
    ):
        write_dataset(name, [random_episode(4)])
        spec = EnvSpec(env_id, entry_point).to_json()
        change_metadata(minari_root / name, env_spec=spec)
        assert load(name).environment.env_id == env_id  # nothing is made to read it
        change_metadata(minari_root / name, observation_space=None)
        with pytest.raises(UserError, match="metadata: observation_space is missing"):
            load(name)
        stated = read_metadata(minari_root / name)
        del stated["observation_space"], stated["action_space"]
        (minari_root / name / "data" / "metadata.json").write_text(json.dumps(stated))
        with pytest.raises(UserError, match="metadata: observation_space is missing"):
            load(name)
    assert "chosen_by_a_set" not in sys.modules
