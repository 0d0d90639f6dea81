"""A user's own source of episodes: a class in any importable package, named by ``_target_``."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from trajectory_transformer.app.experiment import held_out_episodes
from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint
from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.sources import load_offline_data, require_available
from trajectory_transformer.errors import UserError

ROOT = Path(__file__).parents[2]
TARGET = "csv_episodes.CsvEpisodes"  # of the examples


def write_episode(file: Path, rewards: list[float]) -> None:
    """Each row has an observation of two dimensions, an action and a reward; the last is only an observation."""
    np.savetxt(file, [[1.0, 1.0, 0.0, reward] for reward in (*rewards, 0.0)], delimiter=",")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two episodes; the source's module is on Python's path, and not imported."""
    monkeypatch.delitem(sys.modules, "csv_episodes", raising=False)
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    folder = tmp_path / "numbers"
    folder.mkdir()
    write_episode(folder / "0.csv", [1.0, 2.0])
    write_episode(folder / "1.csv", [3.0, 4.0, 5.0])
    return folder


def own(folder: Path, **options: object) -> DataConfig:
    return DataConfig(source={"_target_": TARGET, "path": str(folder), "env_id": "MountainCarContinuous-v0", **options})


def test_it_is_read_validated_and_named(folder: Path) -> None:
    data = load_offline_data(own(folder), progress=False)
    assert data.dataset_ids == ["numbers"]
    assert [episode.rewards.tolist() for episode in data.episodes] == [[1.0, 2.0], [3.0, 4.0, 5.0]]
    assert data.environment.env_id == "MountainCarContinuous-v0"
    assert data.environment.observation_dim == 2
    chosen = load_offline_data(DataConfig(source=own(folder).source, observation_indices=[1]), progress=False)
    assert chosen.fingerprint == data.fingerprint
    assert chosen.episodes[0].observations.shape == (3, 1)
    write_episode(folder / "0.csv", [1.0, 3.0])
    assert load_offline_data(own(folder), progress=False).fingerprint != data.fingerprint


def test_its_episodes_are_validated_like_all_others(folder: Path) -> None:
    write_episode(folder / "0.csv", [1.0, np.nan])
    with pytest.raises(UserError, match=r"0\.csv, rewards: nan at step 1"):
        load_offline_data(own(folder), progress=False)


def test_its_own_refusal_comes_before_anything_is_read(tmp_path: Path, folder: Path) -> None:
    with pytest.raises(UserError, match=r"has no \.csv file; write one for each episode"):
        require_available(own(tmp_path))


def test_a_file_names_it_only_with_leave(folder: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source names the class csv_episodes.*allow=\[csv_episodes\]"):
        load_offline_data(own(folder), progress=False, allow=())
    assert "csv_episodes" not in sys.modules
    for allow in (["csv_episodes"], TYPED_BY_USER):
        assert len(load_offline_data(own(folder), progress=False, allow=allow).episodes) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("own.Source", r"data\.source='own\.Source' must name a class"),
        ({"path": "x"}, r"must name a class, as in data\.source\._target_="),
        ([], "must name a class"),
        ({"_target_": "pathlib.Path"}, "is not a EpisodeSource"),
        ({"_target_": "no_such_package.Source"}, "there is no module 'no_such_package'"),
        ({"_target_": TARGET, "path": "x", "env_id": [1]}, r"data\.source\.env_id: cannot convert 'ListConfig' to"),
        ({"_target_": TARGET, "path": "x", "envid": "y"}, r"did you mean 'data\.source\.env_id'"),
    ],
)
def test_mistakes_are_named(folder: Path, source: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_available(DataConfig(source=source))


def test_a_data_set_beside_a_source_is_refused(folder: Path) -> None:
    assert own(folder).dataset_id is None
    with pytest.raises(UserError, match=r"data\.dataset_id=a-v0 has no effect beside data\.source"):
        DataConfig("a-v0", source=own(folder).source)


@pytest.mark.slow
def test_it_trains_from_its_yaml(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Called as by a user; the run's config and checkpoint record the data."""
    examples, data = ROOT / "examples", tmp_path / "numbers"
    data.mkdir()
    for number in range(6):
        write_episode(data / f"{number}.csv", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    command = [
        sys.executable, str(ROOT / "train.py"), "--config-dir", str(examples / "configs"), "data=csv_episodes",
        "data.source.env_id=MountainCarContinuous-v0", "data.sequence_length=4", "data.discretizer.num_bins=4",
        "trainer.max_steps=1", "trainer.validate_every=1", "evaluation.episodes=0", "planner.horizon=2",
        "planner.context=2", f"hydra.run.dir={tmp_path / 'run'}",
    ]  # fmt: skip
    env = {"PYTHONPATH": ":".join([str(examples), *sys.path]), "PATH": "", "OMP_NUM_THREADS": "1"}

    def run(*options: str) -> tuple[int, str]:
        done = subprocess.run([*command, *options], env=env, cwd=tmp_path, capture_output=True, text=True)
        return done.returncode, done.stderr.strip()

    assert run() == (2, "error: data.source.path is required: give data.source.path=VALUE")
    for wrong, near in (("data.source.pth=x", "path"), ("+data.source.envid=x", "env_id")):
        code, message = run(f"data.source.path={data}", wrong)
        assert (code, f"did you mean 'data.source.{near}'?" in message) == (2, True)
    assert not (tmp_path / "run").exists()
    code, message = run(f"data.source.path={data}")
    assert code == 0, message
    contents = read_checkpoint(tmp_path / "run" / "checkpoints" / "best.ckpt")
    section = contents[SECTION]
    assert section["data"]["source"] == {"_target_": TARGET, "path": str(data), "env_id": "MountainCarContinuous-v0"}
    assert section["data"]["dataset_id"] is None
    np.testing.assert_array_equal(section["dataset"]["returns"], [21.0] * 6)
    assert section["dataset"]["ids"] == ["numbers"]
    checkpoint = Checkpoint.from_contents(contents)
    with pytest.raises(UserError, match=r"allow=\[csv_episodes\]"):
        held_out_episodes(checkpoint)
    monkeypatch.syspath_prepend(str(examples))
    (held_out,) = held_out_episodes(checkpoint, allow=["csv_episodes"])
    assert held_out.rewards.tolist() == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]


def test_options_recorded_before_there_were_sources_are_understood() -> None:
    recorded = {name: value for name, value in vars(DataConfig("a-v0")).items() if name != "source"}
    assert DataConfig(**recorded) == DataConfig("a-v0")
