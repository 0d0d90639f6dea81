"""Signals that ask a process to end, and their exit codes."""

import signal

EXITS_BY_SIGNAL = tuple(128 + number for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1))


def ending_signals() -> tuple[signal.Signals, ...]:
    """Return SIGTERM, and SIGHUP (the terminal was closed) unless that is ignored, as under nohup."""
    is_ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    return (signal.SIGTERM,) if is_ignored else (signal.SIGTERM, signal.SIGHUP)
