"""Updates of learners' modules, and the errors that stop them."""

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.planning.trained_transformer import TrainedTransformer
from trajectory_transformer.training.fit import fit
from trajectory_transformer.training.learner_module import NonFiniteError

from ..training.small_run import Rows, small_config, small_datamodule, small_fit, weights


class Poison(Callback):
    """Makes the model's output NaN or infinite for one update."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step - 1:

            def spoil(module: torch.nn.Module, inputs: Any, output: Tensor) -> Tensor:
                return output * self.value

            pl_module.get_submodule("model.head").register_forward_hook(spoil)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_nan_loss_stops_before_the_update(tmp_path: Path, value: float) -> None:
    kept: dict[str, Tensor] = {}

    class Keep(Callback):
        @override
        def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
            kept.update(pl_module.state_dict())

    with pytest.raises(NonFiniteError, match=r"in update 9 .*not made; .*last\.ckpt' holds the state after update 8;"):
        small_fit(tmp_path, small_config(checkpoint_every=4), [Poison(9, value), Keep()])
    saved = read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")
    assert saved["global_step"] == 8
    assert all(torch.equal(kept[name], value) for name, value in saved["state_dict"].items())
    assert all(bool(torch.isfinite(value).all()) for value in kept.values())


class Explode(Callback):
    """Makes one weight NaN or infinite in an update."""

    def __init__(self, step: int, value: float) -> None:
        self.step, self.value = step, value

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:  # before anything is saved
            next(pl_module.get_submodule("model.head").parameters()).data.view(-1)[0] = self.value


class Hidden(Explode):
    """Makes weights so large that only a loss shows it."""

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            for parameter in pl_module.get_submodule("model.head").parameters():
                parameter.data.fill_(self.value)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("step", [1, 5, 6, 7])
def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, step: int, value: float) -> None:
    config = small_config(max_steps=7, checkpoint_every=1, validate_every=3)
    with pytest.raises(NonFiniteError) as caught:
        small_fit(tmp_path, config, [Explode(step, value)])
    kept = f"last.ckpt' holds the state after update {step - 1};" if step > 1 else "no state was saved before that;"
    assert kept in str(caught.value)
    saved = {file.stem: read_checkpoint(file)["global_step"] for file in tmp_path.glob("checkpoints/*.ckpt")}
    assert saved == ({} if step == 1 else {"last": step - 1, "best": 3 if step < 7 else 6})


def test_the_update_that_made_them_is_named_though_the_next_one_finds_them(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteError, match=r"update 2 made weights .* no state was saved"):
        small_fit(tmp_path, small_config(checkpoint_every=5), [Explode(2, math.inf)])


@pytest.mark.parametrize("before", [0, 3])
def test_a_validation_loss_that_is_not_finite_chooses_nothing(tmp_path: Path, before: int) -> None:
    config = small_config(max_steps=before + 1, checkpoint_every=1, validate_every=3)
    with pytest.raises(NonFiniteError, match=f"validation loss after update {before + 1} is (nan|inf)"):
        small_fit(tmp_path, config, [Hidden(before + 1, 3e38)])
    saved = {file.stem: read_checkpoint(file)["global_step"] for file in tmp_path.glob("checkpoints/*.ckpt")}
    assert saved == ({"last": 3, "best": 3} if before else {})


def test_gradient_is_clipped(tmp_path: Path) -> None:
    norms: list[float] = []

    class Watch(Callback):
        @override
        def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
            gradients = [p.grad for p in pl_module.parameters() if p.grad is not None]
            if gradients:
                norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    config = small_config(max_steps=3)
    config.optimizer.gradient_clip_norm = 0.5
    small_fit(tmp_path, config, [Watch()])
    assert norms == pytest.approx([0.5] * len(norms), rel=1e-4)
    assert norms


OTHERS = ("learning_rate", "gradient_norm", "tokens_per_second")


def test_logged_metrics(tmp_path: Path) -> None:
    rows = Rows()
    config = small_config(max_steps=12)
    fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [rows], [], False)
    kinds = ("observation", "action", "reward", "value")
    both = {"loss", "perplexity", "value_r2"} | {f"{kind}_{what}" for kind in kinds for what in ("loss", "accuracy")}
    expected = {f"train/{name}" for name in (*both, "regression_loss", *OTHERS)}
    assert {name for step, name in rows.rows if step == 9} == expected | {"epoch"}
    assert {step for step, name in rows.rows if name == "train/loss"} == {3, 6, 9, 12}
    validated = {f"val/{name}" for name in (*both, "seen_value_r2")}
    assert {name for step, name in rows.rows if step == 12} == expected | validated | {"epoch"}
    assert rows.rows[9, "epoch"] == 1.0
    assert rows.rows[12, "train/learning_rate"] == pytest.approx(0.1 * config.optimizer.learning_rate)
    assert rows.rows[3, "train/reward_loss"] > rows.rows[12, "train/reward_loss"]
    assert rows.rows[9, "train/tokens_per_second"] > 0


def test_the_recorded_share_is_of_a_fixed_sample_of_the_training_windows(tmp_path: Path) -> None:
    """Against the model's own predictions for these windows; as many batches are sampled as are held out."""
    rows, config = Rows(), small_config(max_steps=12)
    datamodule = small_datamodule(config)
    report = fit(TransformerLearner(), config, tmp_path, datamodule, [rows], [], False)
    trained = TrainedTransformer.of(Checkpoint.read(report.last))
    held_out, seen = datamodule.val_dataloader()
    assert len(seen) == len(held_out) == 1
    (batch,) = seen
    (again,) = datamodule.val_dataloader()[1]
    assert torch.equal(batch.targets, again.targets)
    taken = {tuple(row) for row in batch.trajectories.tolist()}
    every = datamodule.train_examples.gather(torch.arange(len(datamodule.train_examples)))
    assert taken <= {tuple(row) for row in every.trajectories.tolist()}
    with torch.no_grad():
        logits = trained.model(batch.trajectories).logits
    value, width = datamodule.layout.value, datamodule.layout.transition_dim
    centers = datamodule.discretizer.centers[value]
    places = slice(value - 1, None, width)
    counted = (batch.mask[:, places] > 0) & (batch.targets[:, places] < len(centers))
    middle = centers.mean()  # what the stop token's probability counts as
    predicted = (logits[:, places].softmax(-1)[..., :-1] @ (centers - middle) + middle)[counted]
    actual = centers[batch.targets[:, places][counted]]
    share = 1 - float((predicted - actual).square().mean() / actual.var(correction=0))
    assert rows.rows[12, "val/seen_value_r2"] == pytest.approx(share, abs=1e-4)
    assert Checkpoint.read(report.last).training.value_r2 == pytest.approx(share, abs=1e-4)
    assert rows.rows[12, "val/value_r2"] != pytest.approx(share, abs=1e-4)


def test_own_metrics_are_logged_beside_ours_and_change_nothing(tmp_path: Path) -> None:
    rows = Rows()
    own = {"top_two": {"_target_": "tests.training.test_metrics.TopTwo"}}
    config = small_config(max_steps=6, metrics=own)
    report = fit(TransformerLearner(), config, tmp_path / "own", small_datamodule(config), [rows], [], False)
    assert {step for step, name in rows.rows if name == "train/top_two"} == {3, 6}
    assert {step for step, name in rows.rows if name == "val/top_two"} == {6}
    assert 0.0 < rows.rows[6, "val/top_two"] <= 1.0
    plain = weights(small_fit(tmp_path / "plain", small_config(max_steps=6)).last)
    assert all(torch.equal(value, plain[name]) for name, value in weights(report.last).items())


def test_weights_begin_with_model_or_belong_to_training_alone(tmp_path: Path) -> None:
    report = small_fit(tmp_path, small_config(max_steps=1))
    assert {name.partition(".")[0] for name in weights(report.last)} == {"model", "readout", "improvement"}
