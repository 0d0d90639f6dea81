"""SIGTERM, SIGINT and SIGHUP save the state first; the exit status tells the signal."""

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import lightning as L
import pytest
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from trajectory_transformer.checkpoint_file import read_checkpoint
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.training.interruption import SignalWatch, TrainingInterrupted

from .small_run import small_config, small_fit, start, wait_for, weights

WATCHED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


class SignalAt(Callback):
    """Sends this process signals in the middle of an update."""

    def __init__(self, step: int, *numbers: int) -> None:
        self.step, self.numbers = step, numbers

    @override
    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step - 1:
            for number in self.numbers:
                os.kill(os.getpid(), number)


class SignalBefore(Callback):
    """Sends this process SIGTERM when Lightning has everything ready to begin."""

    @override
    def on_train_start(self, *_: Any, **__: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_before_the_first_update_ends_the_run_after_it(tmp_path: Path) -> None:
    """Lightning's own handler of SIGTERM ended the run with the exit code None."""
    with pytest.raises(TrainingInterrupted) as caught:
        small_fit(tmp_path, small_config(), [SignalBefore()])
    assert caught.value.code == 143
    assert read_checkpoint(tmp_path / "checkpoints/last.ckpt")["global_step"] == 1


def interrupted(directory: Path, config: TrainConfig, step: int, *numbers: int) -> object:
    """The exit status of a run that gets signals during an update."""
    before = [signal.getsignal(number) for number in WATCHED]
    with pytest.raises(TrainingInterrupted) as caught:
        small_fit(directory, config, [SignalAt(step, *numbers)])
    assert before == [signal.getsignal(number) for number in WATCHED]
    return caught.value.code


@pytest.mark.parametrize(
    ("number", "status", "step"),
    [
        (signal.SIGTERM, 143, 8),
        (signal.SIGINT, 130, 8),
        (signal.SIGHUP, 129, 8),
        (signal.SIGTERM, 143, 12),  # an update that a validation follows
        (signal.SIGTERM, 143, 24),  # the last one
    ],
)
def test_signal_saves_at_the_end_of_the_update(tmp_path: Path, number: int, status: int, step: int) -> None:
    config = small_config(checkpoint_every=1_000)
    assert interrupted(tmp_path / "a", config, step, number) == status
    assert read_checkpoint(tmp_path / "a/checkpoints/last.ckpt")["global_step"] == step
    assert small_fit(tmp_path / "a", config, resume=True).steps == 24
    small_fit(tmp_path / "b", config)
    resumed, unbroken = (weights(tmp_path / name / "checkpoints/last.ckpt") for name in "ab")
    assert all(resumed[key].equal(unbroken[key]) for key in unbroken)


def test_second_sigterm_changes_nothing(tmp_path: Path) -> None:
    assert interrupted(tmp_path, small_config(), 4, signal.SIGTERM, signal.SIGTERM) == 143


def test_unsavable_state_is_reported(tmp_path: Path) -> None:
    class Obstacle(Callback):
        @override
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            (tmp_path / "checkpoints" / "last.ckpt").mkdir()

    with (
        pytest.raises(UserError, match=r"last\.ckpt' could not be saved"),
        pytest.warns(UserWarning, match="could not be saved"),
    ):
        small_fit(tmp_path, small_config(), [Obstacle(), SignalAt(3, signal.SIGTERM)])


@pytest.mark.parametrize("array", [False, True])
def test_requeue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, array: bool) -> None:
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    for name, value in {"JOB_ID": "17", "NTASKS": "1", "JOB_NAME": "job", "PROCID": "0", "LOCALID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    if array:
        monkeypatch.setenv("SLURM_ARRAY_JOB_ID", "15")
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "2")
    config = small_config(requeue=True)
    assert interrupted(tmp_path / "run", config, 8, signal.SIGUSR1) == 128 + signal.SIGUSR1
    assert (tmp_path / "calls").read_text() == f"requeue {'15_2' if array else '17'}\n"
    assert read_checkpoint(tmp_path / "run/checkpoints/last.ckpt")["global_step"] == 8
    assert small_fit(tmp_path / "run", config).steps == 24  # the requeued job runs the same command and goes on
    assert sorted(path.name for path in (tmp_path / "run").rglob("*.ckpt")) == ["best.ckpt", "last.ckpt"]


def test_watch_restores_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with SignalWatch() as watch:
        os.kill(os.getpid(), signal.SIGTERM)
        assert watch.received == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_lost_terminal_is_ignored_under_nohup() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalWatch() as watch:
            os.kill(os.getpid(), signal.SIGHUP)
            assert watch.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_exit_status_of_a_process(tmp_path: Path, number: int, status: int) -> None:
    last = tmp_path / "checkpoints" / "last.ckpt"
    process = start(tmp_path, "endless")
    wait_for(last, process)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == status, errors
    assert "saving at the end of this update" in errors
    assert "Traceback" not in errors
    assert read_checkpoint(last)["global_step"] >= 5


@pytest.mark.slow
def test_second_control_c_quits_at_once(tmp_path: Path) -> None:
    process = start(tmp_path, "stuck")
    wait_for(tmp_path / "stuck", process)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(timeout=1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=120)
    assert process.returncode == 130
