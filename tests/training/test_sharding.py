"""A model sharded among two processes, and its checkpoints, are equal to those of a single process."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import ModelConfig, TrainConfig, TrainerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.transformer import TransformerLearner

from .small_run import finish, small_config, small_fit, start


def whole_config() -> TrainConfig:
    """The options of the two processes, for one process."""
    config = small_config(max_steps=6)
    config.data.batch_size, config.optimizer.muon = 8, 0.0
    config.model = ModelConfig(n_layer=1, n_head=1, n_embd=8, embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0)
    return config


def state(path: Path) -> dict[str, Any]:
    contents = read_checkpoint(path)
    return {"weights": contents["state_dict"], "optimizer": contents["optimizer_states"][0]["state"]}


@pytest.mark.slow
def test_two_processes_train_what_one_does(tmp_path: Path) -> None:
    assert finish(start(tmp_path / "two", "fsdp")) == 0
    two = tmp_path / "two" / "checkpoints" / "last.ckpt"
    report = small_fit(tmp_path / "one", whole_config())
    torch.testing.assert_close(state(two), state(report.last), rtol=1e-3, atol=1e-4)
    assert Checkpoint.read(two).training.kind == "transformer"
    kept = read_checkpoint(two)["optimizer_states"][0]["param_groups"]
    expected = read_checkpoint(report.last)["optimizer_states"][0]["param_groups"]
    assert [group["params"] for group in kept] == [group["params"] for group in expected]
    # Each holds about half of the weights, and both learn of a weight that is bad in one of them.
    numbers = sum(weight.numel() for name, weight in state(two)["weights"].items() if name.startswith("model."))
    said = [(tmp_path / "two" / f"rank{rank}.txt").read_text().split(maxsplit=1) for rank in range(2)]
    assert sum(int(count) for count, _ in said) == numbers
    assert max(int(count) for count, _ in said) < 0.6 * numbers
    assert all("NaN or infinite" in message for _, message in said)
    # Resumed by two it is the same to the bit; by one, to rounding.
    for name in ("again", "alone"):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        shutil.copy(tmp_path / "two" / "fifth.ckpt", tmp_path / name / "checkpoints" / "last.ckpt")
    assert finish(start(tmp_path / "again", "fsdp")) == 0
    torch.testing.assert_close(state(tmp_path / "again/checkpoints/last.ckpt"), state(two), rtol=0, atol=0)
    alone = small_fit(tmp_path / "alone", whole_config(), resume=True)
    torch.testing.assert_close(state(alone.last), state(two), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("options", [{"precision": "16-mixed"}, {"precision": "bf16-true"}, {"compile": True}])
def test_what_sharding_does_not_go_with_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"trainer\.strategy=fsdp goes with trainer\.precision=32-true or bf16-mixed"):
        TrainerConfig(strategy="fsdp", **options)


def test_other_learners_are_refused() -> None:
    with pytest.raises(UserError, match=r"trainer\.strategy=fsdp is for learner=transformer, not iql"):
        ImplicitQLearning().check(small_config(strategy="fsdp"))


def test_a_regression_on_sharded_weights_is_refused() -> None:
    with pytest.raises(UserError, match=r"model\.numerical_regression=2\.0 and .*=0\.25 read weights .*set both to 0"):
        TransformerLearner().check(small_config(strategy="fsdp"))


def test_muon_on_sharded_matrices_is_refused() -> None:
    config = small_config(strategy="fsdp")
    config.model = ModelConfig(n_layer=1, n_head=1, n_embd=8)
    with pytest.raises(UserError, match=r"optimizer\.muon=3\.0 needs whole matrices, .*; set it to 0"):
        TransformerLearner().check(config)
