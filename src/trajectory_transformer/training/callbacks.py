"""Callbacks of training: checkpoints, throughput and progress, all counted in updates."""

import logging
import math
import os
import time
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, Checkpoint
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from ..configuration import TrainerConfig
from ..cores import OtherProcesses, are_contended
from ..errors import UserError
from ..files import is_first_process
from ..progress import PLAIN_LINE_SECONDS, WorkProgress
from .checkpoint_io import VerifiedCheckpointIO
from .interruption import SignalWatch
from .learner_module import LearnerModule, NonFiniteError, ends_update
from .returns import EpisodePlayer

log = logging.getLogger(__name__)

T = TypeVar("T")

CONTENTION_SECONDS = 5.0  # interval over which the other processes' use of cores is measured


class KeepCheckpoints(Checkpoint):
    """Saves ``last.ckpt`` regularly, at the end and when interrupted, and ``best.ckpt`` by validation loss.

    For a learner whose losses do not rank its weights, ``best.ckpt`` is the latest validated state. The run's last
    update is always followed by a validation and a save. If an update is followed by a validation, ``last.ckpt`` is
    written after the validation, so that a resumed run neither repeats nor skips it; else before the next update (see
    :class:`BetweenUpdates`), when its metrics are logged, so that none is lost. A failed save does not end the
    run, because a later one may succeed; but at the end, a missing file is an error. NaN or infinite weights or
    validation losses end the run at once.

    With a ``player``, ``best_return.ckpt`` has the highest return so far; of equal ones it is the latest. Episodes are
    played before the next update, when everything about the last one has been logged and ``last.ckpt`` is saved: a run
    interrupted meanwhile loses no update, and plays them again after a resume.
    """

    def __init__(
        self, directory: Path, options: TrainerConfig, watch: SignalWatch, player: EpisodePlayer | None = None
    ) -> None:
        self.last, self.best = directory / "last.ckpt", directory / "best.ckpt"
        self.best_return = directory / "best_return.ckpt"
        self.options, self.watch, self.player = options, watch, player
        self.best_loss = math.nan  # validation loss of ``best.ckpt``; NaN before it is saved
        self._update_ended = False  # since the latest opportunity to save
        self._failures: dict[Path, str | None] = {}  # file -> message, if its latest save failed

    @override
    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if self.player is not None and self.player.is_due(trainer.global_step):
            self._play(self.player, trainer, pl_module)

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if not ends_update(trainer):
            return
        if trainer.global_step >= self.options.max_steps:
            trainer.should_stop = True  # the only way to make Lightning always validate after the last update
        self._update_ended = True

    def before_first_update(self, trainer: L.Trainer) -> None:
        """After a signal, save the run's beginning and end it."""
        if self.watch.agreed(trainer) is not None:
            self._save_last(trainer)

    def between_updates(self, trainer: L.Trainer) -> None:
        """Save ``last.ckpt`` if it is due, and end the run after a signal."""
        if not self._update_ended:
            return
        self._update_ended = False
        counted = trainer.fit_loop.epoch_loop.batch_progress
        for progress in (counted.total, counted.current):  # Lightning has counted the next batch already
            progress.ready -= 1
        self._save_last(trainer)
        for progress in (counted.total, counted.current):
            progress.ready += 1

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._update_ended = False
        loss = float(trainer.callback_metrics["val/loss"])
        assert isinstance(pl_module, LearnerModule)
        if not math.isfinite(loss):
            raise NonFiniteError(f"the validation loss after update {trainer.global_step} is {loss}")
        if loss < self.best_loss or math.isnan(self.best_loss) or pl_module.best_is_latest:
            before, self.best_loss = self.best_loss, loss  # set first, because the file contains it
            if not self._save(trainer, self.best):
                self.best_loss = before
        self._save_last(trainer)
        if trainer.should_stop:
            self.play_last(trainer, pl_module)

    @override
    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._require(self.last)
        if math.isnan(self.best_loss):  # otherwise an older best.ckpt exists, with this best_loss
            self._require(self.best)

    def play_last(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Play episodes with the run's last weights, unless that has been done.

        Call it after training too: if a run was interrupted at this point, Lightning calls no hook when it is resumed.
        """
        if self.player is None or self.player.at(trainer.global_step) is not None:
            return
        self._play(self.player, trainer, pl_module)
        self._save(trainer, self.last)
        if self.player.best is None:
            self._require(self.best_return)

    def choice(self, trainer: L.Trainer) -> dict[str, Any] | None:
        """The result of :meth:`.EpisodePlayer.choice`, or None without a player."""
        return None if self.player is None else self._uninterrupted(trainer, self.player.choice(trainer, self.best))

    def _play(self, player: EpisodePlayer, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LearnerModule)
        self._uninterrupted(trainer, player.play(trainer, pl_module))
        before, found = player.best, player.history[-1]
        if before is None or found["return_mean"] >= before["return_mean"]:
            player.best = found
            if not self._save(trainer, self.best_return):
                player.best = before

    def _uninterrupted(self, trainer: L.Trainer, outcome: T | int) -> T:
        """Return the outcome of playing, or end the run if it is a signal."""
        if isinstance(outcome, int):
            self._require(self.last)
            self.watch.stop(outcome, trainer.is_global_zero)
        return outcome

    def _require(self, path: Path) -> None:
        if failure := self._failures.get(path):
            raise UserError(failure)

    def _save(self, trainer: L.Trainer, path: Path) -> bool:
        """Save a checkpoint; returns on every process whether it succeeded, although only the first process writes."""
        trainer.save_checkpoint(path, weights_only=False)
        plugin = trainer.strategy.checkpoint_io
        assert isinstance(plugin, VerifiedCheckpointIO)
        failure = trainer.strategy.broadcast(None if plugin.failure is None else str(plugin.failure))
        self._failures[path] = failure
        return failure is None

    def _save_last(self, trainer: L.Trainer) -> None:
        signal, step = self.watch.agreed(trainer), trainer.global_step
        due = step % self.options.checkpoint_every == 0 or (self.player is not None and self.player.is_due(step))
        if due or trainer.should_stop or signal is not None:
            self._save(trainer, self.last)
        if signal is not None:
            self._require(self.last)
            self.watch.stop(signal, trainer.is_global_zero)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"best_loss": self.best_loss, **({} if self.player is None else self.player.state_dict())}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_loss = state_dict["best_loss"]
        if self.player is not None:
            self.player.load_state_dict(state_dict)


class BetweenUpdates(Callback):
    """Calls :meth:`KeepCheckpoints.between_updates`; the first callback, so that no other has begun the next update.

    Lightning logs an update's metrics after the last hook of its batch: a checkpoint of that hook would be ahead of
    ``metrics.csv``, and a run stopped there would lack a row for ever.
    """

    def __init__(self, keeper: KeepCheckpoints) -> None:
        self.keeper = keeper

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        self.keeper.between_updates(trainer)


class Pretraining(Callback):
    """Calls the module's ``pretrain``, unless its weights were ``given``, and ``fit_to_data`` before the first update.

    A signal ends it; a resumed run begins it anew.
    """

    def __init__(self, keeper: KeepCheckpoints, given: bool = False) -> None:
        self.keeper, self.given = keeper, given
        self._ended = False  # by a signal

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, LearnerModule)
        if trainer.global_step == 0:
            # Else Lightning takes a resumed beginning for the end of a validation, and counts one update too many.
            trainer.fit_loop.epoch_loop.restarting = False
            shown = self.keeper.options.progress_bar and trainer.is_global_zero
            progress = WorkProgress("{task.completed:.0f}/{task.total:.0f} updates", shown)
            if not self.given:
                pl_module.pretrain(self._stopped, progress)
            pl_module.fit_to_data(self._stopped, progress)
            if self._ended and trainer.is_global_zero:
                log.warning("interrupted before the first update: continued, the run begins this first phase anew")
            self.keeper.before_first_update(trainer)

    def _stopped(self) -> bool:
        self._ended = self.keeper.watch.received is not None
        return self._ended


class BuffersOfFirstProcess(Callback):
    """Lets DDP broadcast the first process's buffers before a forward pass only once one has changed.

    By default DDP does so in every update, which took a tenth of the time of a small model. Buffers that forward passes
    change, such as a batch norm's, are equal on all processes before the first change, so no result differs.
    """

    def __init__(self) -> None:
        self._buffers: list[tuple[torch.nn.Module, str, torch.Tensor | None, int]] = []

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._buffers = [
            (part, name, buffer, 0 if buffer is None else buffer._version)
            for part in pl_module.modules()
            for name, buffer in part._buffers.items()
        ]
        self._set_broadcast(trainer, False)

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        for part, name, buffer, version in self._buffers:
            if part._buffers.get(name) is not buffer or (buffer is not None and buffer._version != version):
                return self._set_broadcast(trainer, True)
        return None

    @override
    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_batch_start(trainer)

    def _set_broadcast(self, trainer: L.Trainer, on: bool) -> None:
        if isinstance(model := trainer.strategy.model, DistributedDataParallel):
            model.forward_sync_buffers = on


class Throughput(Callback):
    """Logs tokens (or another ``unit``) per second of training time over all devices, as means between logs."""

    def __init__(self, tokens_per_step: int, log_every: int, unit: str = "tokens") -> None:
        self.tokens_per_step, self.log_every, self.unit = tokens_per_step, log_every, unit
        self.seconds, self.steps, self._since = 0.0, 0, 0.0
        self._logged_seconds, self._logged_steps = 0.0, 0

    @property
    def tokens_per_second(self) -> float:
        """Mean since the start of training in this process; NaN before the first update."""
        return self.steps * self.tokens_per_step / self.seconds if self.seconds else math.nan

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def playing(self, step: int, episodes: int, finished: int, mean: str) -> None:
        """Do nothing: :meth:`played` excludes the time of episodes."""

    def played(self, mean: float) -> None:
        self._since = time.perf_counter()

    @override
    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if not ends_update(trainer):
            return
        now = time.perf_counter()
        self.seconds, self.steps, self._since = self.seconds + now - self._since, self.steps + 1, now
        if trainer.global_step % self.log_every == 0:
            tokens = (self.steps - self._logged_steps) * self.tokens_per_step
            pl_module.log(f"train/{self.unit}_per_second", tokens / (self.seconds - self._logged_seconds))
            self._logged_seconds, self._logged_steps = self.seconds, self.steps

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()


class RunProgress(Callback):
    """Progress on standard error: a bar over all updates with the remaining time, or, without a terminal, lines."""

    def __init__(self, max_steps: int, throughput: Throughput) -> None:
        self.max_steps, self.throughput, self.console = max_steps, throughput, Console(stderr=True)
        self._began, self._first_step, self._shown, self._validation_loss = 0.0, 0, 0.0, ""
        self._status, self._return = ("", ""), ""  # text before and after the latest return, and that return
        self._others, self._measured, self._contended = OtherProcesses(), 0.0, ""
        self._bar: Progress | None = None

    @override
    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._began = self._shown = time.monotonic()
        self._first_step = trainer.global_step
        if trainer.is_global_zero and self.console.is_terminal:
            columns = TextColumn("training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[status]}")
            self._bar = Progress(*columns, console=self.console)
            self._bar.add_task("", total=self.max_steps, completed=trainer.global_step, status="")
            self._bar.start()

    @override
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, LearnerModule)
        step, now = trainer.global_step, time.monotonic()
        interval = PLAIN_LINE_SECONDS if self._bar is None else 0.2
        due = now - self._shown >= interval or step >= self.max_steps
        if not (due and trainer.is_global_zero and ends_update(trainer)):
            return
        self._shown = now
        remaining = (now - self._began) / (step - self._first_step) * (self.max_steps - step)
        if now - self._measured > CONTENTION_SECONDS:
            self._measured, others = now, self._others.cores()
            contended = are_contended(others, torch.get_num_threads())
            self._contended = f"  other processes use {others:.1f} of {os.cpu_count()} cores" if contended else ""
        self._status = (
            f"loss {float(pl_module.last_loss):.3f}{self._validation_loss}",
            f"  {self.throughput.tokens_per_second:,.0f} {self.throughput.unit}/s  "
            f"{timedelta(seconds=round(remaining))} remaining{self._contended}",
        )
        self._show(step, self._return.join(self._status))

    def _show(self, step: int, status: str) -> None:
        if self._bar is None:
            self.console.print(f"step {step}/{self.max_steps}  {status}", highlight=False, soft_wrap=True)
        else:
            self._bar.update(self._bar.task_ids[0], completed=step, status=status)

    def playing(self, step: int, episodes: int, finished: int, mean: str) -> None:
        """Show the progress of episodes between two updates."""
        now = time.monotonic()
        if is_first_process() and (self._bar is not None or now - self._shown >= PLAIN_LINE_SECONDS):
            self._shown = now
            self._show(step, f"acting with these weights: {finished}/{episodes} episodes, mean return {mean}")

    def played(self, mean: float) -> None:
        """Show the mean return of these episodes from now on."""
        self._return = f"  return {mean:.5g}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], status=self._return.join(self._status))

    @override
    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:  # fmt: skip
        due = time.monotonic() - self._shown >= PLAIN_LINE_SECONDS
        if due and self._bar is None and trainer.is_global_zero:
            self._shown = time.monotonic()
            counts = trainer.num_val_batches
            words = f"validating, {sum(counts[:dataloader_idx]) + batch_idx + 1} of {sum(counts)} batches"
            self.console.print(f"step {trainer.global_step}/{self.max_steps}  {words}", highlight=False, soft_wrap=True)

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._validation_loss = f"  validation {float(trainer.callback_metrics['val/loss']):.3f}"

    @override
    def teardown(self, *_: Any, **__: Any) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    on_exception = teardown
