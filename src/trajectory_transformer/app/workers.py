"""Worker processes of a sweep on this machine (``hydra/launcher=processes``), which stop when the sweep does."""

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

from ..ending import ending_signals
from ..files import LOCK, holder
from .jobs import RunRecord

_POLL_SECONDS = 0.05
_PARENT_SECONDS = 0.5
_handlers: dict[int, Any] = {}  # of a worker process before its first job
_at_job = threading.Lock()  # held by a worker process while it has a job


class SweepSignals:
    """Handles SIGTERM, SIGHUP and SIGINT in the process of a sweep in ``directory``, until :meth:`restore`.

    At the first signal the jobs in worker processes are stopped as a run is by SIGTERM, so that they can be resumed,
    and the process exits with 128 + the signal once they have ended. A second Ctrl-C ends all of them at once.
    joblib by itself would kill the workers at Ctrl-C and leave them running at SIGTERM.
    """

    def __init__(self, directory: Path) -> None:
        self._directory, self._told = directory, dict[Path, int]()
        self._previous = {number: signal.signal(number, self._stop) for number in (*ending_signals(), signal.SIGINT)}

    def restore(self) -> None:
        """Restore the handlers from before."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        for later in self._previous:
            signal.signal(later, _quit if later == signal.SIGINT else signal.SIG_IGN)
        while self._stop_jobs():
            time.sleep(_POLL_SECONDS)
        raise SystemExit(128 + number)

    def _stop_jobs(self) -> bool:
        """Send SIGTERM to the workers that run a job, once for each job; returns whether any of these runs on.

        Idle workers are left alone: joblib treats the end of one as a failure and kills the others.
        """
        workers, busy = {child.pid for child in multiprocessing.active_children()}, False
        for folder in {file.parent for file in self._directory.rglob(LOCK)}:
            process = holder(folder)
            if process is not None and process in workers and folder not in self._told:
                _send(process, signal.SIGTERM)
                self._told[folder] = process
            record = RunRecord.read(folder)
            ending = process is not None or (record is not None and record.status == "running")
            busy |= ending and self._told.get(folder) in workers
        return busy


def _send(process: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):  # it has just ended
        os.kill(process, number)


def _quit(number: int, frame: FrameType | None) -> None:
    for worker in multiprocessing.active_children():
        if worker.pid is not None:
            _send(worker.pid, signal.SIGKILL)  # joblib's have no kill method
    os._exit(128 + number)


@contextlib.contextmanager
def signals_only_within() -> Iterator[None]:
    """Run a job within this block; a worker of joblib ignores signals outside of it.

    A terminal's Ctrl-C reaches all processes, and joblib would end all jobs if an idle worker ended. If the sweep's
    process is killed, its workers stop their jobs as after SIGTERM, and end.
    """
    if not type(multiprocessing.current_process()).__module__.startswith("joblib."):
        yield
        return
    with _at_job:
        if not _handlers:
            threading.Thread(target=_end_with_parent, daemon=True).start()
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            signal.signal(number, _handlers.setdefault(number, signal.getsignal(number)))
        try:
            if _is_orphaned():  # the thread's SIGTERM may have come before the handlers
                os._exit(128 + signal.SIGTERM)
            yield
        finally:
            for number in _handlers:
                signal.signal(number, signal.SIG_IGN)


def _is_orphaned() -> bool:
    parent = multiprocessing.parent_process()
    return parent is not None and os.getppid() != parent.pid


def _end_with_parent() -> None:
    """Once the sweep's process is gone, stop this worker's job, and end the worker when the job has ended."""
    while not _is_orphaned():
        time.sleep(_PARENT_SECONDS)
    os.kill(os.getpid(), signal.SIGTERM)  # ignored by a worker without a job
    with _at_job:
        os._exit(128 + signal.SIGTERM)
