"""Each callback of ``callbacks=`` logs its values and does not change the run, resumed or not."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from matplotlib.figure import Figure

from trajectory_transformer.building import TYPED_BY_USER, build
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.sample_plans import SamplePlans
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.training.datamodule import split_episodes
from trajectory_transformer.training.fit import fit

from .small_run import Rows, small_config, small_data, small_datamodule
from .test_resume import KillAt, Killed, digests

CHOICES = sorted((Path(__file__).parents[2] / "configs" / "callbacks").glob("*.yaml"))


def made(file: Path, **options: Any) -> Callback:
    """The callback that a choice of the group describes."""
    ((name, spec),) = yaml.safe_load(file.read_text(encoding="utf-8")).items()
    assert name == file.stem
    return build(spec | options, Callback, name, TYPED_BY_USER)


def run(directory: Path, *callbacks: Callback, resume: bool = False, **options: Any) -> Rows:
    rows, config = Rows(), small_config(max_steps=12, validate_every=4, log_every=4, **options)
    fit(TransformerLearner(), config, directory, small_datamodule(config), [rows], callbacks, resume)
    return rows


@pytest.mark.parametrize("file", CHOICES, ids=lambda file: file.stem)
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.*")
def test_a_resumed_run_is_exact(tmp_path: Path, file: Path) -> None:
    plain = run(tmp_path / "plain")
    watched = run(tmp_path / "watched", made(file))
    assert watched.repeatable().items() >= plain.repeatable().items()
    with pytest.raises(Killed):
        run(tmp_path / "killed", made(file), KillAt(7, "end"), checkpoint_every=5)
    rows = run(tmp_path / "killed", made(file), resume=True, checkpoint_every=5)
    assert watched.repeatable().items() >= rows.repeatable().items()
    runs = [digests(tmp_path / name) for name in ("watched", "killed")]
    assert runs[0] == runs[1]


def test_early_stopping_counts_across_a_resume(tmp_path: Path) -> None:
    (file,) = (file for file in CHOICES if file.stem == "early_stopping")

    def stopping() -> Callback:
        return made(file, patience=2, min_delta=100.0)  # which no loss falls by

    rows = run(tmp_path / "unbroken", stopping())
    assert max(step or 0 for step, _ in rows.rows) == 12
    with pytest.raises(Killed):
        run(tmp_path / "killed", stopping(), KillAt(9, "end"), checkpoint_every=1)
    config = small_config(max_steps=40, validate_every=4)
    fit(TransformerLearner(), config, tmp_path / "killed", small_datamodule(config), [rows], [stopping()], True)
    assert max(step or 0 for step, _ in rows.rows) == 12


def test_gradient_norms_add_up(tmp_path: Path) -> None:
    (file,) = (file for file in CHOICES if file.stem == "gradient_norm")
    rows = run(tmp_path, made(file)).rows
    for step in (4, 8, 12):
        parts = [value for (at, name), value in rows.items() if at == step and name.startswith("gradient_norm/")]
        assert len(parts) > 2
        total = math.sqrt(sum(value**2 for value in parts))
        assert total == pytest.approx(rows[step, "train/gradient_norm"], rel=1e-5)


def test_sample_plans_are_drawn_at_each_validation(tmp_path: Path, drawn: list[Figure]) -> None:
    (file,) = (file for file in CHOICES if file.stem == "sample_plans")
    config, data = small_config(max_steps=8, validate_every=4), small_data(steps=120)
    fit(TransformerLearner(), config, tmp_path, small_datamodule(config, data), [], [made(file)], False)
    names = [f"{step}.png" for step in (4, 8)]
    assert sorted(path.name for path in (tmp_path / "plots" / "sample_plans").iterdir()) == names
    assert len(drawn) == 2
    held_out = split_episodes(data, 0.1, 0)[1][0].observations
    for axes in drawn[0].axes:
        outcome, *plans = (line for line in axes.lines if len(np.asarray(line.get_xdata())) > 1)
        # The middle 25 of 121 observations, and plans of the windows' three steps one after another.
        np.testing.assert_array_equal(outcome.get_ydata(), held_out[48:73, 0])
        assert [np.asarray(line.get_xdata()).tolist() for line in plans] == [
            [start, start + 1, start + 2] for start in range(48, 72, 3)
        ]


def test_sample_plans_are_for_transformers_without_goals(tmp_path: Path) -> None:
    config = small_config(max_steps=2)
    config.model.goal_conditioned = True
    with pytest.raises(UserError, match=r"callbacks=sample_plans needs learner=transformer without"):
        fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [], [SamplePlans()], False)


def test_a_single_batch_is_fitted(tmp_path: Path) -> None:
    rows, config = Rows(), small_config(max_steps=60, validate_every=60, log_every=1)
    config.data.train_batches = config.data.batch_size = 1  # of several windows, some begin alike
    config.model.n_embd, config.optimizer.weight_decay = 32, 0.0
    for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
        setattr(config.model, name, 0.0)
    fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [rows], [], False)
    losses = [value for (_, name), value in rows.rows.items() if name == "train/loss"]
    assert losses[-1] < 0.05 < 1.0 < losses[0]


def test_the_first_batches_are_repeated() -> None:
    config = small_config()
    whole = small_datamodule(config).train_order()
    config.data.train_batches = 2
    order = small_datamodule(config).train_order()
    assert order.steps_per_epoch == 2
    assert all(torch.equal(order.indices(step), whole.indices(step % 2)) for step in range(7))
