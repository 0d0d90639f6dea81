"""Updates that are replayed, with a stand-in for CUDA graphs that computes into the same tensors."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor

from trajectory_transformer.cuda_graph import CaptureError
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.training.captured_update import FirstFailure
from trajectory_transformer.training.learner_module import LearnerModule, NonFiniteError

from .small_run import small_config, small_fit, weights


def stand_in(run: Callable[[], Any], device: torch.device) -> tuple[Callable[[], None], Any]:
    """Computes when "captured", as a graph's warm-up does, and again at every replay."""
    outputs = run()

    def replay() -> None:
        for place, value in zip(outputs or (), run() or (), strict=True):
            place.copy_(value)

    return replay, outputs


@pytest.fixture(autouse=True)
def _(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LearnerModule, "captures", {"cpu": stand_in})


@pytest.fixture
def uncaptured(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    return lambda: monkeypatch.setattr(LearnerModule, "captures", {})


class Gradients(Callback):
    """Records what callbacks see of each update's gradients."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        grads = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(grads)))


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], rtol: float = 0.0, atol: float = 0.0) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        torch.testing.assert_close(ours[name], value, rtol=rtol, atol=atol, msg=f"{name} differs")


def test_replayed_updates_are_the_updates(tmp_path: Path, uncaptured: Callable[[], None]) -> None:
    """Weights, rows and gradients, but for the learning rate, which a graph reads in float32."""
    found = []
    for name in ("captured", "plain"):
        if name == "plain":
            uncaptured()
        gradients = Gradients()
        report = small_fit(tmp_path / name, small_config(), [gradients])
        found.append((weights(report.last), weights(report.best), gradients.norms, report.validation_loss))
    (last, best, norms, loss), (plain_last, plain_best, plain_norms, plain_loss) = found
    assert_same(last, plain_last, rtol=1e-4, atol=1e-6)
    assert_same(best, plain_best, rtol=1e-4, atol=1e-6)
    assert norms == pytest.approx(plain_norms, rel=1e-3)
    assert loss == pytest.approx(plain_loss, rel=1e-5)


def test_a_resumed_run_is_the_same_to_the_bit(tmp_path: Path) -> None:
    whole = small_fit(tmp_path / "whole", small_config())
    with pytest.raises(RuntimeError, match="stopped"):
        small_fit(tmp_path / "parts", small_config(), [StopAt(11)])
    resumed = small_fit(tmp_path / "parts", small_config(), resume=True)
    assert_same(weights(resumed.last), weights(whole.last))


class StopAt(Callback):
    """Ends a run before an update."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            raise RuntimeError("stopped")


class Poison(Callback):
    """Makes one update's gradient NaN, where the module cannot see it before the update."""

    def __init__(self, step: int) -> None:
        self.step = step
        self.before: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.global_step == self.step:
            self.before = {name: value.clone() for name, value in pl_module.state_dict().items()}
            next(p.grad for p in pl_module.parameters() if p.grad is not None).mul_(math.nan)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.after = {name: value.clone() for name, value in pl_module.state_dict().items()}


@pytest.mark.parametrize("step", [0, 3, 7, 23])
@pytest.mark.parametrize("captured", [True, False])
def test_no_update_follows_a_bad_one(
    tmp_path: Path, step: int, captured: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is named although the CPU learns of it later, and nothing after it is saved."""
    if not captured:
        monkeypatch.setattr(LearnerModule, "captures", {"cpu": refuse})
    poison = Poison(step)
    with pytest.raises(NonFiniteError, match=rf"infinite in update {step + 1} \(loss [\d.]+\), which was not made"):
        small_fit(tmp_path, small_config(), [poison])
    assert_same(poison.after, poison.before)
    last = tmp_path / "checkpoints" / "last.ckpt"
    if last.is_file():
        assert all(bool(value.isfinite().all()) for value in weights(last).values())


def refuse(run: Callable[[], Any], device: torch.device) -> Any:
    run()
    raise CaptureError("model/gpt.py:1 (forward) waits for the GPU")


def test_an_update_that_waits_is_not_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, uncaptured: Callable[[], None]
) -> None:
    """One warning that says where, and the same weights as ever."""
    monkeypatch.setattr(LearnerModule, "captures", {"cpu": refuse})
    with caplog.at_level(logging.WARNING):
        refused = small_fit(tmp_path / "refused", small_config())
    [message] = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert message.endswith("several times slower: model/gpt.py:1 (forward) waits for the GPU")
    uncaptured()
    plain = small_fit(tmp_path / "plain", small_config())
    assert_same(weights(refused.last), weights(plain.last))


def test_a_loss_that_changes_in_python_is_noticed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the next validation, as a graph repeats what the first update computed."""
    losses = TrajectoryModule.losses

    def halved(self: TrajectoryModule, *inputs: Any) -> Any:
        total, *others = losses(self, *inputs)
        replaying = frozen and self.training
        return [total * (1.0 if replaying or self.global_step < 8 else 0.5), *others]

    frozen: list[bool] = []

    def graph(run: Callable[[], Any], device: torch.device) -> Any:
        replay, outputs = stand_in(run, device)

        def as_captured() -> None:
            frozen.append(True)
            replay()
            frozen.clear()

        return as_captured, outputs

    monkeypatch.setattr(TrajectoryModule, "losses", halved)
    monkeypatch.setattr(LearnerModule, "captures", {"cpu": graph})
    with caplog.at_level(logging.WARNING):
        report = small_fit(tmp_path, small_config())
    [message] = [record.message for record in caplog.records if "CUDA graph" in record.message]
    assert "if Python code changes what the model computes" in message
    assert report.steps == 24


def test_the_first_failure_is_kept() -> None:
    failure = FirstFailure(torch.device("cpu"), updates=10)
    norms, losses = (torch.tensor(v) for v in ([1.0, math.inf, 2.0, math.nan], [4.0, 5.0, 6.0, 7.0]))
    found = []
    for norm, loss in zip(norms, losses, strict=True):
        failure.note(norm, loss)
        found.append(failure.read())
    assert found == [None, (12, 5.0), (12, 5.0), (12, 5.0)]
