"""The memory available to this process, so that too large a request is refused before it is allocated; its reuse."""

import ctypes
import math
import os
import resource
from pathlib import Path

from .errors import UserError

GIGABYTE = 10**9
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # options of glibc's mallopt


def available_memory() -> float:
    """Return the bytes free for this process, within its limits and its container; infinity if unknown."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    free = math.inf if limit == resource.RLIM_INFINITY else limit - _kilobytes("/proc/self/status", "VmSize:", 0.0)
    machine = _kilobytes("/proc/meminfo", "MemAvailable:", math.inf) + _kilobytes("/proc/meminfo", "SwapFree:", 0.0)
    return max(0.0, min(free, machine, _container()))


def require_memory(needed: float, available: float, what: str, remedy: str) -> None:
    """Raise UserError if at least ``needed`` bytes are required and fewer are ``available``.

    ``what`` is the beginning of the message, including its verb; ``remedy`` is its end.
    """
    if needed > available:
        raise UserError(
            f"{what} at least {needed:,.0f} bytes of memory ({needed / GIGABYTE:.1f} GB), and "
            f"{available / GIGABYTE:.1f} GB are free; {remedy}"
        )


def keep_freed_memory() -> None:
    """Let this process reuse up to a gigabyte of freed memory, instead of returning it to the system at once.

    An update of training frees megabytes that the next one needs again. The kernel would have to clear and map each of
    their pages anew. Without effect on a C library other than glibc.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, GIGABYTE)
        mallopt(_TRIM_THRESHOLD, GIGABYTE)


def _container() -> float:
    """Return the bytes left in the control group; caches that can be dropped count as free."""
    group = Path("/sys/fs/cgroup")
    try:
        path = next(line[3:] for line in _lines("/proc/self/cgroup") if line.startswith("0::"))
        here = group / path.lstrip("/")
        folder = here if (here / "memory.max").is_file() else group
        most = (folder / "memory.max").read_text(encoding="ascii").strip()
        used = int((folder / "memory.current").read_text(encoding="ascii"))
        droppable = next(line.split()[1] for line in _lines(folder / "memory.stat") if line.startswith("inactive_file"))
        return int(most) - used + int(droppable)
    except (OSError, StopIteration, ValueError):  # no control group, or its limit is "max"
        return math.inf


def _kilobytes(file: str, name: str, otherwise: float) -> float:
    """Return the bytes given by a line such as ``MemFree:  12 kB``."""
    try:
        return next(int(line.split()[1]) * 1024 for line in _lines(file) if line.startswith(name))
    except (OSError, StopIteration):
        return otherwise


def _lines(file: str | os.PathLike[str]) -> list[str]:
    return Path(file).read_text(encoding="utf-8").splitlines()
