"""Cores that other processes keep busy. Threads that spin while they wait for one that does not run lose most then."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class OtherProcesses:
    """Measures, between calls, how many of this machine's cores other processes use; nothing where /proc is not."""

    def __init__(self) -> None:
        self._before = self._read()

    def cores(self) -> float:
        """Cores in use since the last call, by all processes but this one; 0 where that is not known."""
        before, self._before = self._before, self._read()
        seconds, busy = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, busy / seconds) if seconds > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        """Seconds of a clock, and those that other processes have computed so far, over all cores."""
        try:
            numbers = STAT.read_text(encoding="utf-8").split(maxsplit=9)[1:9]
            user, nice, system, _idle, _waiting, *interrupts = map(int, numbers)
        except (OSError, ValueError):
            return time.monotonic(), 0.0
        ticks = user + nice + system + sum(interrupts)
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def are_contended(others: float, threads: int) -> bool:
    """True if so many threads and the cores that others use are more than this machine has."""
    return others > 0.3 and others + threads > (os.cpu_count() or 1) + 0.3


def wait_passively(others: float) -> None:
    """Have threads that torch starts from now on sleep while they wait, if cores are contended; not once it is loaded.

    A tenth to a fifth slower on a quiet machine, and about twice as fast beside another busy process, where a thread
    that waits keeps the one that it waits for from running. What the user has set counts.
    """
    if are_contended(others, os.cpu_count() or 1) and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "0"
