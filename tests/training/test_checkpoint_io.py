"""A checkpoint of training contains everything that planning needs."""

from pathlib import Path

import pytest
import torch

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.training.checkpoint_io import VerifiedCheckpointIO

from .small_run import small_config, small_data, small_datamodule, small_fit


@pytest.mark.parametrize("name", ["best", "last"])
def test_checkpoint_stands_alone(tmp_path: Path, name: str) -> None:
    small_fit(tmp_path, small_config(max_steps=2))
    contents = torch.load(tmp_path / "checkpoints" / f"{name}.ckpt", weights_only=True)
    section = contents["trajectory_transformer"]
    model = TrajectoryTransformerModel(TrajectoryTransformerConfig(**section["model"]))
    stored = {key.partition("model.")[2]: value for key, value in contents["state_dict"].items() if "model." in key}
    model.load_state_dict(stored)
    assert EnvironmentSpec.from_dict(section["environment"]) == small_data().environment
    assert torch.equal(
        Discretizer.from_dict(section["discretizer"]).edges, small_datamodule(small_config()).discretizer.edges
    )
    assert section["format"] == 1
    assert section["dataset"]["ids"] == ["small/walk-v0"]
    assert section["dataset"]["fingerprint"] == "0" * 64
    assert section["dataset"]["returns"].tolist() == small_data().returns.tolist()
    assert (section["dataset"]["reference_scores"], section["dataset"]["reference_source"]) == (None, "none")
    assert section["data"]["sequence_length"] == 3
    assert section["planner"]["horizon"] == 2


def test_plugin_round_trip(tmp_path: Path) -> None:
    plugin = VerifiedCheckpointIO()
    path = tmp_path / "last.ckpt"
    plugin.save_checkpoint({"trajectory_transformer": {"format": 1}}, path)
    assert plugin.load_checkpoint(path) == read_checkpoint(path)
    plugin.remove_checkpoint(path)
    plugin.remove_checkpoint(path)
    assert not path.exists()


def test_plugin_keeps_a_failure_until_a_save_succeeds(tmp_path: Path) -> None:
    plugin = VerifiedCheckpointIO()
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="could not be saved"):
        plugin.save_checkpoint({}, tmp_path / "file" / "last.ckpt")
    assert "could not be saved" in str(plugin.failure)
    plugin.save_checkpoint({}, tmp_path / "last.ckpt")
    assert plugin.failure is None
