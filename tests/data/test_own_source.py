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

SOURCE = '''
"""Episodes from a text file: one number in each line, an empty line after each episode."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from trajectory_transformer.data.episode_source import EpisodeSource, StoredEpisode, StoredSet
from trajectory_transformer.environments.make import environment_spec
from trajectory_transformer.errors import UserError


@dataclass
class TextFile(EpisodeSource):
    path: str
    scale: float = 1.0

    @property
    def name(self) -> str:
        return f"text/{Path(self.path).stem}"

    def require_available(self) -> None:
        if not Path(self.path).is_file():
            raise UserError(f"data.source.path='{self.path}' is not a file; write one number in each line")

    def read(self, progress: bool) -> StoredSet:
        blocks = Path(self.path).read_text().strip().split("\\n\\n")
        environment = environment_spec("MountainCarContinuous-v0")
        return StoredSet([self._episode(block) for block in blocks], len(blocks), environment)

    def _episode(self, block: str) -> StoredEpisode:
        rewards = self.scale * np.array(block.split(), dtype=float)
        steps = len(rewards)
        return StoredEpisode("a block", np.ones((steps + 1, 2)), np.zeros((steps, 1)), rewards, terminations=True)
'''
ROOT = Path(__file__).parents[2]
TARGET = "own_source_for_tests.text_file.TextFile"


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with the package, and a file to read."""
    folder = tmp_path / "own_source_for_tests"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "text_file.py").write_text(SOURCE)
    (tmp_path / "numbers.txt").write_text("1\n2\n\n3\n4\n5\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def own(package: Path, **options: object) -> DataConfig:
    return DataConfig(source={"_target_": TARGET, "path": str(package / "numbers.txt"), **options})


def test_the_example_is_short() -> None:
    assert len(SOURCE.strip().splitlines()) <= 40


def test_it_is_read_validated_and_named(package: Path) -> None:
    data = load_offline_data(own(package, scale=2.0), progress=False)
    assert data.dataset_ids == ["text/numbers"]
    assert [episode.rewards.tolist() for episode in data.episodes] == [[2.0, 4.0], [6.0, 8.0, 10.0]]
    assert all(episode.terminated for episode in data.episodes)
    assert data.environment.env_id == "MountainCarContinuous-v0"
    assert data.environment.observation_dim == 2
    chosen = load_offline_data(
        DataConfig(source=own(package, scale=2.0).source, observation_indices=[1]), progress=False
    )
    assert chosen.fingerprint == data.fingerprint != load_offline_data(own(package), progress=False).fingerprint
    assert chosen.episodes[0].observations.shape == (3, 1)


def test_its_episodes_are_validated_like_all_others(package: Path) -> None:
    (package / "numbers.txt").write_text("1\nnan\n")
    with pytest.raises(UserError, match="a block, rewards: nan at step 1"):
        load_offline_data(own(package), progress=False)


def test_its_own_refusal_comes_before_anything_is_read(package: Path) -> None:
    (package / "numbers.txt").unlink()
    with pytest.raises(UserError, match="is not a file; write one number in each line"):
        require_available(own(package))


def test_a_file_names_it_only_with_leave(package: Path) -> None:
    with pytest.raises(UserError, match=r"data\.source names the class own_source.*allow=\[own_source_for_tests\]"):
        load_offline_data(own(package), progress=False, allow=())
    assert "own_source_for_tests" not in sys.modules
    for allow in (["own_source_for_tests"], TYPED_BY_USER):
        assert len(load_offline_data(own(package), progress=False, allow=allow).episodes) == 2


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("own.Source", r"data\.source='own\.Source' must name a class"),
        ({"path": "x"}, r"must name a class, as in data\.source\._target_="),
        ([], "must name a class"),
        ({"_target_": "pathlib.Path"}, "is not a EpisodeSource"),
        ({"_target_": "no_such_package.Source"}, "there is no module 'no_such_package'"),
        ({"_target_": TARGET, "path": "x", "scale": "much"}, r"data\.source\.scale: value 'much'"),
        ({"_target_": TARGET, "path": "x", "scal": 1.0}, r"did you mean 'data\.source\.scale'"),
    ],
)
def test_mistakes_are_named(package: Path, source: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        require_available(DataConfig(source=source))


def test_a_data_set_beside_a_source_is_refused(package: Path) -> None:
    assert own(package).dataset_id is None
    with pytest.raises(UserError, match=r"data\.dataset_id=a-v0 has no effect beside data\.source"):
        DataConfig("a-v0", source=own(package).source)


@pytest.mark.slow
def test_it_trains_from_a_yaml_of_the_users_own(package: Path) -> None:
    """Called as by a user; the run's config and checkpoint record the data."""
    configs = package / "configs" / "data"
    configs.mkdir(parents=True)
    file = package / "numbers.txt"
    file.write_text("\n\n".join(["1\n2\n3\n4\n5\n6"] * 6))
    (configs / "text.yaml").write_text(f"source:\n  _target_: {TARGET}\n  path: ???\nsequence_length: 4\n")
    command = [sys.executable, str(ROOT / "train.py"), "--config-dir", str(configs.parent), "data=text"]
    quick = ["trainer.max_steps=1", "trainer.validate_every=1", "evaluation.episodes=0", "data.discretizer.num_bins=4"]
    small = ["planner.horizon=2", "planner.context=2", f"hydra.run.dir={package / 'run'}"]
    env = {"PYTHONPATH": ":".join([str(package), *sys.path]), "PATH": "", "OMP_NUM_THREADS": "1"}

    def run(*options: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*command, *quick, *small, *options], env=env, cwd=package, capture_output=True, text=True
        )

    missing = run()
    assert (missing.returncode, missing.stderr.strip()) == (
        2,
        "error: data.source.path is required: give data.source.path=VALUE",
    )
    misspelt = run("data.source.pth=x")
    assert misspelt.returncode == 2
    assert "did you mean 'data.source.path'?" in misspelt.stderr
    unknown = run(f"data.source.path={file}", "+data.source.scal=2")
    assert unknown.returncode == 2
    assert "did you mean 'data.source.scale'?" in unknown.stderr
    assert not (package / "run").exists()
    done = run(f"data.source.path={file}", "+data.source.scale=2")
    assert done.returncode == 0, done.stderr
    checkpoint = package / "run" / "checkpoints" / "best.ckpt"
    section = read_checkpoint(checkpoint)[SECTION]
    assert section["data"]["source"] == {"_target_": TARGET, "path": str(file), "scale": 2}
    assert section["data"]["dataset_id"] is None
    np.testing.assert_array_equal(section["dataset"]["returns"], [42.0] * 6)
    assert section["dataset"]["ids"] == ["text/numbers"]
    contents = Checkpoint.read(checkpoint)
    with pytest.raises(UserError, match=r"allow=\[own_source_for_tests\]"):
        held_out_episodes(contents)
    (held_out,) = held_out_episodes(contents, allow=["own_source_for_tests"])
    assert held_out.rewards.tolist() == [2.0, 4.0, 6.0, 8.0, 10.0, 12.0]


def test_options_recorded_before_there_were_sources_are_understood() -> None:
    recorded = {name: value for name, value in vars(DataConfig("a-v0")).items() if name != "source"}
    assert DataConfig(**recorded) == DataConfig("a-v0")
