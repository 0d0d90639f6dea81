"""Signals that stop a run: noted when they arrive, handled at the end of the running update."""

import contextlib
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import NoReturn, Self

import lightning as L
import torch

from ..ending import ending_signals

REQUEUE_SIGNAL = signal.SIGUSR1


class TrainingInterrupted(SystemExit):
    """Ends the process with exit code 128 + signal (SIGTERM 143, SIGINT 130, SIGHUP 129), after the state was saved.

    It is a ``SystemExit`` so that Lightning, Hydra and sweeps do not catch it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class PlayInterrupted(BaseException):
    """A signal came while an agent acted. Not an Exception, which an environment's own code might catch."""


class SignalWatch:
    """A context that handles SIGTERM, SIGINT and SIGHUP; an ignored SIGHUP, as under nohup, stays ignored.

    The first signal is stored in :attr:`received`; a second Ctrl-C ends the process at once. Outside the main thread,
    where Python allows no handlers, it does nothing. With ``requeue`` it also handles SIGUSR1, by which SLURM announces
    the end of a job's time: the state is saved, and the job put back in the queue. While :attr:`acting`, the first
    signal raises :class:`PlayInterrupted` at once, because an environment may never return.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.received: int | None = None
        self.acting = False
        self._signals = (*ending_signals(), signal.SIGINT, *([REQUEUE_SIGNAL] if requeue else []))
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in self._signals}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def agreed(self, trainer: L.Trainer) -> int | None:
        """The signal that any process received, or None. All processes must call this at the same point."""
        if trainer.world_size == 1:
            return self.received
        mine = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
        torch.distributed.all_reduce(mine, torch.distributed.ReduceOp.MAX)  # Lightning's reduce waits twice
        return int(mine) or None

    def stop(self, number: int, is_global_zero: bool) -> NoReturn:
        """End the run by raising :class:`TrainingInterrupted`; the state must have been saved."""
        if number == REQUEUE_SIGNAL and is_global_zero:
            array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
            job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
            with contextlib.suppress(OSError):  # without scontrol the saved job ends, and can be resumed by hand
                subprocess.run(["scontrol", "requeue", job], check=False)
        raise TrainingInterrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.received = number
        further = "a second Ctrl-C" if number == signal.SIGINT else "Ctrl-C"
        name = signal.Signals(number).name
        when = "now" if self.acting else "at the end of this update"
        text = f"\n{name}: saving {when}; {further} quits at once, without saving\n"
        with contextlib.suppress(OSError):  # the terminal or the reader of a pipe is gone
            os.write(2, text.encode())  # not print, which the signal may have interrupted
        if self.acting:
            raise PlayInterrupted
