"""How much memory this process may still take, so that what cannot fit is refused before it is allocated."""

import math
import os
import resource
from pathlib import Path

from .errors import UserError

GIGABYTE = 10**9


def available_memory() -> float:
    """Bytes that are free for this process on this machine: within its limits, in its container; ∞ if nobody says."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = math.inf if limit == resource.RLIM_INFINITY else limit - _kilobytes("/proc/self/status", "VmSize:", 0.0)
    machine = _kilobytes("/proc/meminfo", "MemAvailable:", math.inf) + _kilobytes("/proc/meminfo", "SwapFree:", 0.0)
    return max(0.0, min(free, machine, _container()))


def require_memory(needed: float, available: float, what: str, remedy: str) -> None:
    """Refuse, with a UserError, what takes ``needed`` bytes at least where fewer are ``available``.

    ``what`` begins the sentence, its verb included, and ``remedy`` ends it.
    """
    if needed > available:
        raise UserError(
            f"{what} at least {needed:,.0f} bytes of memory ({needed / GIGABYTE:.1f} GB), and "
            f"{available / GIGABYTE:.1f} GB are free; {remedy}"
        )


def _container() -> float:
    """What the control group leaves, caches that can be dropped not counted."""
    group = Path("/sys/fs/cgroup")
    try:
        path = next(line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::"))
        here = group / path.lstrip("/")
        folder = here if (here / "memory.max").is_file() else group
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        droppable = next(line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith("inactive_file"))
        return int(most) - used + int(droppable)
    except (OSError, StopIteration, ValueError):  # no such thing, or "max"
        return math.inf


def _kilobytes(file: str, name: str, otherwise: float) -> float:
    """The bytes in a line such as ``MemFree:  12 kB``."""
    try:
        return next(int(line.split()[1]) * 1024 for line in _lines(file) if line.startswith(name))
    except (OSError, StopIteration):
        return otherwise


def _lines(file: str | os.PathLike[str]) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()
