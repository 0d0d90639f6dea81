"""A checkpoint knows what its model computed, so that planning with changed code is noticed."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.model.gpt import Block, TrajectoryTransformer, sample_logits
from trajectory_transformer.planning.trained_transformer import TrainedTransformer

from ..training.small_run import small_config, small_fit


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_fit(tmp_path_factory.mktemp("run"), small_config()).last


def test_the_same_code_is_loaded_without_a_word(saved: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Its logits are those of the tokens 0, 7, 14, … modulo the vocabulary."""
    checkpoint = Checkpoint.read(saved)
    model = TrainedTransformer.of(checkpoint).model
    assert not caplog.records
    tokens = torch.arange(11) * 7 % 10
    logits = model(tokens.unsqueeze(0), return_dict=True).logits[0]
    assert checkpoint.training.sample_logits is not None
    expected = logits[[0, 1, 2, 4, 5, 7, 8, 10]]
    torch.testing.assert_close(checkpoint.training.sample_logits, expected, rtol=1e-4, atol=1e-5)


def test_another_forward_pass_is_told(
    saved: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Block.forward
    monkeypatch.setattr(Block, "forward", lambda self, *args: original(self, *args).tanh())
    TrainedTransformer.of(Checkpoint.read(saved))
    (record,) = caplog.records
    assert "the code of the model computes something else now than when this checkpoint was saved" in record.message


def test_the_sample_leaves_the_model_as_it_was(saved: Path) -> None:
    """Dropout is off in it, and random numbers are not drawn."""
    model = TrainedTransformer.of(Checkpoint.read(saved)).model
    assert isinstance(model, TrajectoryTransformer)
    model.drop = nn.Dropout(0.5)  # pyright: ignore[reportAttributeAccessIssue]
    model.train()
    state = torch.get_rng_state()
    first: Tensor = sample_logits(model)
    assert model.training
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, sample_logits(model))
    assert first.isfinite().all()
