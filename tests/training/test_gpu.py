"""Training on CUDA, and use of its checkpoints: ``pytest -m gpu`` on a machine with a GPU.

The tests also pass with the CPU in its place.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.training.fit import FitReport, fit

from .small_run import Rows, small_config, small_datamodule

pytestmark = pytest.mark.gpu

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
