"""Ends of the process: the signals that ask for one, and an exit by somebody else's compiled code."""

import contextlib
import ctypes
import os
import signal
import sys
from collections.abc import Iterator

EXITS_BY_SIGNAL = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))
_end_process = os._exit  # which an environment's watcher replaces


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, and SIGHUP (the terminal was closed) unless that is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if is_ignored else (signal.SIGTERM, signal.SIGHUP)


@contextlib.contextmanager
def c_exit_fails() -> Iterator[None]:
    """Let C's ``exit`` end the process with code 1 within this block, as the work in it is then unfinished.

    Compiled code of an environment, say, may call it with code 0. Python's own handlers at exit do not run then.
    """
    process, is_unfinished = os.getpid(), True

    def fail(_: int | None) -> None:
        if is_unfinished and os.getpid() == process:
            with contextlib.suppress(OSError, ValueError):
                print("error: compiled code ended the process by C's exit before the run was over", file=sys.stderr)
                sys.stdout.flush()
            _end_process(1)

    handler, owner = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(fail), ctypes.create_string_buffer(1)
    library = ctypes.CDLL(None)
    library.__cxa_atexit(handler, None, owner)
    try:
        yield
    finally:
        is_unfinished = False
        library.__cxa_finalize(owner)  # calls the handler and removes it, since none may follow the interpreter's end
