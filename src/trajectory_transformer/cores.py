"""Processor cores that other processes use. Threads that spin while they wait for each other suffer most from them."""

import os
import time
from pathlib import Path

STAT = Path("/proc/stat")


class OtherProcesses:
    """Measurement of the cores that other processes use between two calls; 0 on systems without /proc."""

    def __init__(self) -> None:
        self._before = self._read()

    def cores(self) -> float:
        """Return the mean number of cores that all other processes used since the last call; 0 if unknown."""
        before, self._before = self._before, self._read()
        seconds, busy = (now - then for now, then in zip(self._before, before, strict=True))
        return max(0.0, busy / seconds) if seconds > 0 else 0.0

    @staticmethod
    def _read() -> tuple[float, float]:
        """Return the clock, and the CPU time of all other processes so far, both in seconds."""
        try:
            numbers = STAT.read_text(encoding="utf-8").split(maxsplit=9)[1:9]
            user, nice, system, _idle, _waiting, *interrupts = map(int, numbers)
        except (OSError, ValueError):
            return time.monotonic(), 0.0
        ticks = user + nice + system + sum(interrupts)
        return time.monotonic(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time()


def are_contended(others: float, threads: int) -> bool:
    """Return True if ``threads`` and the cores used by others exceed the cores of this machine."""
    return others > 0.3 and others + threads > (os.cpu_count() or 1) + 0.3


def wait_passively(others: float) -> None:
    """If cores are contended, make torch's threads sleep instead of spin while they wait; call before torch is loaded.

    This is 10 to 20 % slower on an idle machine, and about twice as fast beside another busy process, where a spinning
    thread keeps the one that it waits for from running. Environment variables set by the user take precedence.
    """
    if are_contended(others, os.cpu_count() or 1) and not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & set(os.environ):
        os.environ["GOMP_SPINCOUNT"] = "0"
