"""Checkpoints that are kept, and progress that is shown."""

import io
import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping
from rich.console import Console
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.cores import OtherProcesses
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.training import callbacks as callbacks_file
from trajectory_transformer.training.callbacks import BuffersOfFirstProcess, KeepCheckpoints, RunProgress, Throughput
from trajectory_transformer.training.fit import fit
from trajectory_transformer.training.metrics import LoggedMetrics

from .small_run import Rows, small_config, small_datamodule, small_fit


class Watch(Callback):
    """Records the update in last.ckpt, before every update."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.steps: list[int] = []

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        self.steps.append(read_checkpoint(self.path)["global_step"] if self.path.exists() else 0)


def test_last_is_saved_regularly_and_at_the_end(tmp_path: Path) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    watch = Watch(last)
    small_fit(tmp_path, small_config(max_steps=14, checkpoint_every=4), [watch])
    assert watch.steps == [0] * 4 + [4] * 4 + [8] * 4 + [12] * 2
    assert read_checkpoint(last)["global_step"] == 14


class Spoil(Callback):
    """From the 13th update on, the model's predictions are confident and wrong."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == 13:
            for parameter in pl_module.parameters():
                parameter.data.mul_(10)


def test_best_has_the_lowest_validation_loss(tmp_path: Path) -> None:
    rows = Rows()
    config = small_config(max_steps=20, validate_every=2)
    report = fit(TransformerLearner(), config, tmp_path, small_datamodule(config), [rows], [Spoil()], False)
    losses = {step: value for (step, name), value in rows.rows.items() if name == "val/loss"}
    assert sorted(step or 0 for step in losses) == list(range(2, 21, 2))
    best = min(losses, key=lambda step: losses[step])
    assert (best or 0) <= 12
    assert read_checkpoint(report.best)["global_step"] == best
    assert report.validation_loss == pytest.approx(losses[best])


def test_short_run_is_validated_once(tmp_path: Path) -> None:
    report = small_fit(tmp_path, small_config(max_steps=2, validate_every=1_000, checkpoint_every=1_000))
    assert read_checkpoint(report.best)["global_step"] == read_checkpoint(report.last)["global_step"] == 2
    assert math.isfinite(report.validation_loss)


def test_full_disk_in_between_does_not_end_training(tmp_path: Path) -> None:
    class Obstacle(Callback):
        """Blocks last.ckpt by a folder of that name for some updates."""

        @override
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
            last = tmp_path / "checkpoints" / "last.ckpt"
            if trainer.global_step == 1:
                last.mkdir()
            if trainer.global_step == 5:
                last.rmdir()

    config = small_config(max_steps=7, checkpoint_every=4)
    with pytest.warns(UserWarning, match=r"last\.ckpt' could not be saved"):
        report = small_fit(tmp_path, config, [Obstacle()])
    assert read_checkpoint(report.last)["global_step"] == 7


class InTheWay(Callback):
    """Blocks best.ckpt by a folder of that name, from the first update to ``until``."""

    def __init__(self, directory: Path, until: int) -> None:
        self.best, self.until = directory / "checkpoints" / "best.ckpt", until

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step == 0:
            self.best.mkdir()
        if trainer.global_step == self.until:
            self.best.rmdir()


@pytest.fixture
def validation_losses(monkeypatch: pytest.MonkeyPatch) -> dict[int, float]:
    """Replaces the validation loss after an update by the test's value."""
    losses: dict[int, float] = {}
    take = TrajectoryModule._take

    def taken(module: TrajectoryModule, metrics: LoggedMetrics, prefix: str) -> dict[str, Any]:
        chosen = {"val/loss": losses[module.global_step]} if prefix == "val" else {}
        return take(module, metrics, prefix) | chosen

    monkeypatch.setattr(TrajectoryModule, "_take", taken)
    return losses


def test_best_that_could_not_be_saved_does_not_count(tmp_path: Path, validation_losses: dict[int, float]) -> None:
    validation_losses |= {2: 1.0, 4: 3.0, 6: 2.0}
    config = small_config(max_steps=6, validate_every=2)
    with pytest.warns(UserWarning, match=r"best\.ckpt' could not be saved"):
        report = small_fit(tmp_path, config, [InTheWay(tmp_path, until=3)])
    best = read_checkpoint(report.best)
    assert best["global_step"] == 6
    assert report.validation_loss == 2.0
    assert [state["best_loss"] for state in best["callbacks"].values() if "best_loss" in state] == [2.0]


def test_run_without_any_best_ends_with_an_error(tmp_path: Path) -> None:
    with (
        pytest.warns(UserWarning, match=r"best\.ckpt' could not be saved"),
        pytest.raises(UserError, match=r"best\.ckpt' could not be saved"),
    ):
        small_fit(tmp_path, small_config(max_steps=4, validate_every=2), [InTheWay(tmp_path, until=5)])
    assert read_checkpoint(tmp_path / "checkpoints" / "last.ckpt")["global_step"] == 4


def test_early_stopping_of_the_user(tmp_path: Path) -> None:
    stop = EarlyStopping("val/loss", patience=1, min_delta=1e9)
    report = small_fit(tmp_path, small_config(max_steps=1_000, validate_every=4), [stop])
    assert report.steps == 8
    assert read_checkpoint(report.last)["global_step"] == 8


def progress_of(directory: Path, monkeypatch: pytest.MonkeyPatch, terminal: bool, others: float = 0.0) -> str:
    monkeypatch.setattr(OtherProcesses, "cores", lambda _: others)
    monkeypatch.setattr(callbacks_file, "CONTENTION_SECONDS", 0.0)
    output = io.StringIO()
    console = Console(file=output, force_terminal=terminal, width=120)
    monkeypatch.setattr(callbacks_file, "Console", lambda **_: console)
    small_fit(directory, small_config(max_steps=8, progress_bar=True))
    return output.getvalue()


def test_bar_on_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = progress_of(tmp_path, monkeypatch, terminal=True)
    assert "8/8" in shown
    assert "0:00:00 remaining" in shown
    assert "tokens/s" in shown


def test_lines_without_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks_file, "PLAIN_LINE_SECONDS", 0.0)
    shown = progress_of(tmp_path, monkeypatch, terminal=False).splitlines()
    assert [line for line in shown if "validating" in line] == [
        f"step {step}/8  validating, {batch} of 2 batches" for step in (6, 8) for batch in (1, 2)
    ]
    lines = [line for line in shown if "validating" not in line]
    assert [line.split()[1] for line in lines] == [f"{step}/8" for step in range(1, 9)]
    assert "validation" in lines[-1]
    assert all(line.endswith("remaining") for line in lines)


def test_contended_cores_are_mentioned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(callbacks_file, "PLAIN_LINE_SECONDS", 0.0)
    monkeypatch.setattr(callbacks_file.os, "cpu_count", lambda: torch.get_num_threads() + 1)
    lines = progress_of(tmp_path, monkeypatch, terminal=False, others=1.5).splitlines()
    lines = [line for line in lines if "validating" not in line]
    assert all(f"other processes use 1.5 of {torch.get_num_threads() + 1} cores" in line for line in lines)


def test_throughput_leaves_validation_out(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 2.0, 10.0, 12.0])  # start, update, end of a validation, update
    monkeypatch.setattr(callbacks_file.time, "perf_counter", lambda: next(clock))
    throughput = Throughput(tokens_per_step=100, log_every=1_000)
    trainer, module = L.Trainer(logger=False, enable_checkpointing=False), L.LightningModule()
    assert math.isnan(throughput.tokens_per_second)
    trainer.fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed = 1
    throughput.on_train_start(trainer, module)
    throughput.on_train_batch_end(trainer, module, None, None, 0)
    throughput.on_validation_end(trainer, module)
    throughput.on_train_batch_end(trainer, module, None, None, 1)
    assert throughput.tokens_per_second == pytest.approx(50.0)


def test_defaults_need_no_console() -> None:
    assert RunProgress(10, Throughput(1, 1)).console.stderr
    assert KeepCheckpoints.__mro__[1].__name__ == "Checkpoint"  # or Lightning adds a ModelCheckpoint of its own


class Normalised(L.LightningModule):
    """A module with buffers that its forward passes change, and one that they do not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(2)
        self.register_buffer("constant", torch.ones(2))

    def replace(self) -> None:
        self.constant = torch.zeros(2)


@pytest.mark.parametrize(
    ("between", "broadcast"),
    [
        (lambda module: module.eval().norm(torch.ones(3, 2)), False),
        (lambda module: module.train().norm(torch.ones(3, 2)), True),
        (lambda module: module.replace(), True),
    ],
)
def test_buffers_are_broadcast_from_their_first_change_on(
    between: Callable[[Normalised], object], broadcast: bool
) -> None:
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)  # pyright: ignore[reportPrivateImportUsage]
    try:
        module = Normalised()
        trainer: Any = SimpleNamespace(strategy=SimpleNamespace(model=DistributedDataParallel(module)))
        callback, found = BuffersOfFirstProcess(), []
        assert trainer.strategy.model.will_sync_module_buffers()
        callback.on_train_start(trainer, module)
        for _ in range(2):
            callback.on_train_batch_start(trainer)
            found.append(trainer.strategy.model.will_sync_module_buffers())
            between(module)
        callback.on_validation_start(trainer, module)
        assert [*found, trainer.strategy.model.will_sync_module_buffers()] == [False, broadcast, broadcast]
    finally:
        torch.distributed.destroy_process_group()
