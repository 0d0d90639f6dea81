"""Training on CUDA, and use of its checkpoints: ``pytest -m gpu`` on a machine with a GPU.

The tests also pass with the CPU in its place.
"""

from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.training.fit import FitReport, fit
from trajectory_transformer.training.learner_module import LearnerModule, NonFiniteError

from .small_run import Rows, small_config, small_datamodule, small_fit, weights
from .test_captured_update import Poison, StopAt

pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]  # what other libraries deprecate is not ours

ACCELERATOR, DEVICE = "gpu", "cuda"


def trained(directory: Path, rows: Rows, precision: str) -> FitReport:
    config = small_config(max_steps=3, validate_every=3, log_every=1, accelerator=ACCELERATOR, precision=precision)
    datamodule = small_datamodule(config)
    report = fit(TransformerLearner(), config, directory, datamodule, [rows], [], False)
    assert datamodule.train_examples.device.type == DEVICE
    return report


def tensors_of(value: object) -> list[torch.Tensor]:
    """All tensors within dicts, lists and tuples."""
    if isinstance(value, torch.Tensor):
        return [value]
    nested = value.values() if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else ()
    return [tensor for item in nested for tensor in tensors_of(item)]


def test_three_updates_in_bfloat16(tmp_path: Path) -> None:
    rows = Rows()
    report = trained(tmp_path, rows, "bf16-mixed")
    assert report.steps == 3
    losses = [rows.rows[step, "train/loss"] for step in (1, 2, 3)]
    assert np.isfinite([*losses, report.validation_loss]).all()
    assert len(set(losses)) == 3
    state = read_checkpoint(report.last)["state_dict"]
    assert all(value.dtype == torch.float32 and bool(value.isfinite().all()) for value in state.values())


def test_best_loads_on_the_cpu(tmp_path: Path) -> None:
    report = trained(tmp_path, Rows(), "32-true")
    plain = torch.load(report.best, weights_only=True)  # without map_location: nothing in it asks for a GPU
    assert {tensor.device.type for tensor in tensors_of(plain)} == {"cpu"}
    actions = Agent.from_checkpoint(report.best, "cpu").act(np.zeros((1, 1), dtype=np.float32))
    assert np.isfinite(actions).all()


def test_plans_are_the_cpus(tmp_path: Path) -> None:
    """The same draws on both: tokens are equal, estimates up to rounding."""
    report = trained(tmp_path, Rows(), "32-true")
    agents = [Agent.from_checkpoint(report.best, device, beam_width=8) for device in ("cpu", DEVICE)]
    for agent in agents:
        agent.reset(3, seeds=[5, 6, 7])
    for step in range(4):
        observations = np.linspace(-2.0, 2.0, 3, dtype=np.float32)[:, None] + step
        ours, theirs = (agent.act(observations) for agent in agents)
        np.testing.assert_array_equal(ours, theirs)
        ours, theirs = (agent.last_plan for agent in agents)
        np.testing.assert_array_equal(ours.observations, theirs.observations)
        np.testing.assert_array_equal(ours.actions, theirs.actions)
        for name in ("rewards", "value", "score"):
            np.testing.assert_allclose(getattr(ours, name), getattr(theirs, name), rtol=1e-3, atol=1e-4)
        for agent in agents:
            agent.observe(np.ones((3, 1), dtype=np.float32), np.zeros(3), np.zeros(3, dtype=bool))


class NoWaiting(Callback):
    """Fails if the CPU waits for the GPU in an update, other than those that are logged or follow a check."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step % 6 in (1, 3, 4):
            torch.cuda.set_sync_debug_mode("error")

    def on_train_batch_end(self, *_: Any, **__: Any) -> None:
        torch.cuda.set_sync_debug_mode("default")

    on_exception = on_train_batch_end


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("compiled", [False, True])
def test_captured_updates(
    tmp_path: Path, precision: str, compiled: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Without dropout, whose random numbers differ: the weights of updates that are not captured; no one waits."""
    config = small_config(accelerator=ACCELERATOR, precision=precision, compile=compiled)
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        setattr(config.model, name, 0.0)
    captured = small_fit(tmp_path / "captured", config, [NoWaiting()] if DEVICE == "cuda" else [])
    assert not [record for record in caplog.records if "CUDA graph" in record.message]
    monkeypatch.setattr(LearnerModule, "captures", {})
    plain = small_fit(tmp_path / "plain", config)
    tolerance = 1e-3 if precision == "32-true" else 0.1
    assert captured.validation_loss == pytest.approx(plain.validation_loss, rel=tolerance)
    for name, value in weights(plain.last).items():
        torch.testing.assert_close(weights(captured.last)[name], value, rtol=tolerance, atol=tolerance)


def test_a_captured_run_can_be_resumed(tmp_path: Path) -> None:
    """With dropout: the same random numbers after a resume."""
    config = small_config(accelerator=ACCELERATOR)
    whole = small_fit(tmp_path / "whole", config)
    with pytest.raises(RuntimeError, match="stopped"):
        small_fit(tmp_path / "parts", config, [StopAt(11)])
    resumed = small_fit(tmp_path / "parts", config, resume=True)
    for name, value in weights(whole.last).items():
        torch.testing.assert_close(weights(resumed.last)[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("step", [0, 7])
def test_no_update_follows_a_bad_one(tmp_path: Path, step: int) -> None:
    poison = Poison(step)
    with pytest.raises(NonFiniteError, match=rf"infinite in update {step + 1} \(loss"):
        small_fit(tmp_path, small_config(accelerator=ACCELERATOR), [poison])
    for name, value in poison.before.items():
        torch.testing.assert_close(poison.after[name], value, rtol=0.0, atol=0.0)
