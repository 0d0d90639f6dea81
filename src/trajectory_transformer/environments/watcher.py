"""A second, small process that names the environment which hangs or has ended the process.

The code of an environment may never return, hold the interpreter so that no thread and no signal handler runs, or end
the process (by a crash, or C's ``exit``). Then only another process can report it. This file is also that process's
program: it imports nothing of the package, waits for the end of its standard input, and reads the present call in
shared memory.
"""

import atexit
import contextlib
import json
import mmap
import os
import select
import signal
import struct
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Self

SECONDS = 30.0  # between lines about a call that does not return, and before the first
STUBBORN = 3.0  # seconds after a signal, from which on a further one kills a process that is still in the same call
_SIZE, _STARTED, _STATUS = 8192, struct.Struct("d"), 4096  # memory: start of the call or 0, call; status file
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Call:
    """Context of one call of an environment's code, such as ``Call("Hopper-v5", "step()", "episode 3, seed 3")``."""

    def __init__(self, environment: str, function: str, place: str = "") -> None:
        self._text = f"{function} of environment '{environment}'{place and f' ({place})'}"

    def __enter__(self) -> Self:
        _Watcher.present().enter(self._text)
        return self

    def __exit__(self, *_: object) -> None:
        _Watcher.present().leave()


def report_to(status: Path | None) -> None:
    """Set the ``status.json`` (of state "running") that the watcher corrects if this process ends within a call."""
    _Watcher.status = b"" if status is None else os.fsencode(status.absolute())
    if _Watcher.existing is not None:
        _Watcher.existing.write(_STATUS, _Watcher.status)


_end_process = os._exit


def _exit(status: int) -> None:
    """Replace ``os._exit``: from an environment's code it raises, as the run would end there, perhaps with code 0.

    Codes from 128 on are those of signals, by which this program ends itself.
    """
    if status < 128 and _Watcher.existing is not None and _Watcher.existing.within:
        raise RuntimeError(f"it tried to end the process by os._exit({status})")
    _end_process(status)


class _Watcher:
    """The watching process, of which each process has one, from its first call until its end."""

    existing: "_Watcher | None" = None
    status = b""

    def __init__(self) -> None:
        self._memory, self._end = None, -1
        self.within = False  # an environment's call is in progress
        with contextlib.suppress(OSError):  # without a process or shared memory, nothing is watched
            self._start()

    @classmethod
    def present(cls) -> "_Watcher":
        if cls.existing is None:
            cls.existing = cls()
            os._exit = _exit  # pyright: ignore[reportAttributeAccessIssue]
            cls.existing.write(_STATUS, cls.status)
        return cls.existing

    def _start(self) -> None:
        with _shared_file() as file:
            file.write(bytes(_SIZE))
            file.flush()
            memory = mmap.mmap(file.fileno(), _SIZE)
            inner, self._end = os.pipe()
            try:
                os.posix_spawn(
                    sys.executable,
                    [sys.executable, "-I", "-S", __file__, str(os.getpid()), str(SECONDS), str(STUBBORN)],
                    os.environ,
                    file_actions=[(os.POSIX_SPAWN_DUP2, inner, 0), (os.POSIX_SPAWN_DUP2, file.fileno(), 3)],
                    setpgroup=0,  # a terminal's Ctrl-C is not for it
                )
            finally:
                os.close(inner)
        os.set_blocking(self._end, False)
        with contextlib.suppress(ValueError):  # in another thread than the main one
            before = signal.set_wakeup_fd(self._end, warn_on_full_buffer=False)
            if before != -1:
                signal.set_wakeup_fd(before)
        self._memory = memory

    def write(self, place: int, text: bytes) -> None:
        if self._memory is not None:
            text = text[: _STATUS - 16] + b"\0"
            self._memory[place : place + len(text)] = text

    def enter(self, text: str) -> None:
        self.within = True
        if self._memory is not None:
            self.write(_STARTED.size, text.encode(errors="replace"))
            _STARTED.pack_into(self._memory, 0, time.monotonic())

    def leave(self) -> None:
        self.within = False
        if self._memory is not None:
            _STARTED.pack_into(self._memory, 0, 0.0)

    @classmethod
    def forget(cls) -> None:
        """In a forked child, close the pipe, so that the child does not keep its parent's watcher."""
        parents, cls.existing = cls.existing, None
        if parents is not None and parents._memory is not None:
            cls.status = b""
            with contextlib.suppress(ValueError):
                if (before := signal.set_wakeup_fd(-1)) not in (-1, parents._end):
                    signal.set_wakeup_fd(before)
            os.close(parents._end)

    @classmethod
    def end(cls) -> None:
        if cls.existing is not None:
            cls.existing.leave()  # the interpreter ends in good order, perhaps by a signal within a call


def _shared_file() -> IO[bytes]:
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("environment"), "r+b")
    return tempfile.TemporaryFile()


os.register_at_fork(after_in_child=_Watcher.forget)
atexit.register(_Watcher.end)


def watch(parent: int, seconds: float, stubborn: float, memory: mmap.mmap, say: Callable[[str], None]) -> None:
    """Run the watching process, which reports calls that take long, until ``parent`` ends."""
    told, asked = 0.0, (0.0, 0.0)  # start and time of the latest call when a signal came
    while True:
        ready = select.select([0], [], [], min(1.0, seconds / 4))[0]
        sent = os.read(0, 512) if ready else b""
        started, call = _STARTED.unpack_from(memory)[0], _text(memory, _STARTED.size)
        now = time.monotonic()
        if (ready and not sent) or os.getppid() != parent:
            if started and asked[0] == started:
                _correct(_text(memory, _STATUS), "interrupted", f"interrupted within {call}")
            elif started:
                _last_words(call, _text(memory, _STATUS), say)
            return
        signals = [number for number in sent if number in _SIGNALS]
        if signals and asked[0] == started and started and now - asked[1] >= stubborn:
            say(f"killed at the second {signal.Signals(signals[-1]).name}: {call} did not end")
            _correct(_text(memory, _STATUS), "interrupted", f"killed within {call}")
            os.kill(parent, signal.SIGKILL)
            return
        if signals and asked[0] != started:
            asked, told = (started, now), max(told, now - seconds + stubborn)
        if started and now - max(told, started) >= seconds:
            told = now
            hint = ""
            if asked[0] == started:
                hint = "; it does not end at the signal either: a second one (Ctrl-C) kills this process"
            say(f"{call} has been running for {now - started:.0f} s{hint}")


def _text(memory: mmap.mmap, place: int) -> str:
    return memory[place : place + _STATUS - _STARTED.size].partition(b"\0")[0].decode(errors="replace")


def _last_words(call: str, status: str, say: Callable[[str], None]) -> None:
    reason = f"the process ended within {call}, which crashed or called C's exit, or it was killed"
    kept = os.path.join(os.path.dirname(status), "episodes.csv") if status else ""
    if os.path.exists(kept):
        reason += f"; {kept} has the finished episodes"
    say(f"error: {reason}")
    _correct(status, "failed", reason)


def _correct(file: str, status: str, reason: str) -> None:
    """Replace the record of a run that is no longer running."""
    try:
        with open(file, encoding="utf-8") as opened:
            record: dict[str, Any] = json.load(opened)
        if record["status"] == "running":
            with open(f"{file}.partial", "w", encoding="utf-8") as opened:
                json.dump({**record, "status": status, "reason": reason}, opened, indent=1)
            os.replace(f"{file}.partial", file)
    except (OSError, ValueError, KeyError, TypeError):  # no such file, or of another form
        pass


def _say(text: str) -> None:
    begin = "\n" if os.isatty(2) else ""  # below a bar of progress
    with contextlib.suppress(OSError):
        os.write(2, f"{begin}{text}\n".encode(errors="replace"))


if __name__ == "__main__":
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    watch(int(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), mmap.mmap(3, _SIZE), _say)
