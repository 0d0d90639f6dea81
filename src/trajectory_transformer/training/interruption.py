"""Signals that ask a run to stop: noted when they arrive, acted upon at the end of the running update."""

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
    """Ends the process with 128 + signal (143 for SIGTERM, 130 SIGINT, 129 SIGHUP), after the state was saved.

    It is a ``SystemExit`` so that Lightning, Hydra and a sweep's remaining jobs let it through.
    """

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class SignalWatch:
    """Takes over SIGTERM, SIGINT and SIGHUP while used as a context; a SIGHUP that is ignored, as by nohup, stays so.

    The first signal is noted in :attr:`received`; a second Ctrl-C ends the process at once. Outside the main thread,
    where Python allows no handlers, it does nothing. With ``requeue`` also SIGUSR1, by which SLURM announces the end of
    a job's time: save, and put the job back in the queue.
    """

    def __init__(self, requeue: bool = False) -> None:
        self.received: int | None = None
        self._signals = (*ending_signals(), signal.SIGINT, *([REQUEUE_SIGNAL] if requeue else []))
        self._previous: dict[int, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.getsignal(number) for number in self._signals}
            self.arm()
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def arm(self) -> None:
        """Install the handlers (again: Lightning's own ends a run on SIGTERM with code 0, saving nothing)."""
        for number in self._previous:
            signal.signal(number, self._note)

    def agreed(self, trainer: L.Trainer) -> int | None:
        """The signal that any of the processes received. All of them must call this at the same point."""
        if trainer.world_size == 1:
            return self.received
        mine = torch.tensor(self.received or 0, device=trainer.strategy.root_device)
        return int(trainer.strategy.reduce(mine, reduce_op="max")) or None

    def stop(self, number: int, is_global_zero: bool) -> NoReturn:
        """End the run, with everything saved, by a :class:`TrainingInterrupted`."""
        if number == REQUEUE_SIGNAL and is_global_zero:
            array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
            job = os.environ["SLURM_JOB_ID"] if array is None else f"{array}_{task}"
            with contextlib.suppress(OSError):  # without scontrol the job ends, saved, and can be resumed by hand
                subprocess.run(["scontrol", "requeue", job], check=False)
        raise TrainingInterrupted(number)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received is not None:
            if number == signal.SIGINT:
                os._exit(128 + number)
            return
        self.received = number
        text = f"\n{signal.Signals(number).name}: saving at the end of this update; Ctrl-C quits at once\n"
        os.write(2, text.encode())  # not print: the signal may have come in the middle of one
