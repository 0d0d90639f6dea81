"""C's exit, as compiled code of others calls it, in processes of their own."""

import ctypes
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import nullcontext
from multiprocessing import get_context
from pathlib import Path

import pytest

from trajectory_transformer.app.jobs import Job, recorded
from trajectory_transformer.ending import c_exit_fails


def exits_in_c(library: type[ctypes.CDLL] = ctypes.CDLL) -> None:
    library(None).exit(0)  # a CDLL's function runs without Python's lock, a PyDLL's with it


def exits_holding_the_interpreter() -> None:
    exits_in_c(ctypes.PyDLL)


def exits_in_a_thread() -> None:
    thread = threading.Thread(target=exits_in_c)
    thread.start()
    thread.join()


def exits_in_a_fork() -> None:
    if not (child := os.fork()):
        exits_in_c()
    assert os.waitpid(child, 0)[1] == 0


def guarded(work: Callable[[], None]) -> None:
    with c_exit_fails():
        work()


@pytest.mark.parametrize(
    ("work", "code"),
    [
        (exits_in_c, 1),
        (exits_holding_the_interpreter, 1),
        (exits_in_a_thread, 1),
        (exits_in_a_fork, 0),
        (nullcontext, 0),
    ],
)
def test_c_s_exit_is_a_failure_within_the_block(work: Callable[[], None], code: int) -> None:
    process = get_context("fork").Process(target=guarded, args=(work,))
    process.start()
    process.join(60)
    assert process.exitcode == code


@pytest.mark.parametrize("end", ["", "sys.exit(0)", "ctypes.CDLL(None).exit(0)"])
def test_a_process_ends_as_ever_after_the_block(end: str) -> None:
    code = f"import ctypes, sys; from {c_exit_fails.__module__} import c_exit_fails\nwith c_exit_fails(): pass\n{end}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_run_that_c_s_exit_ends_has_failed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def run() -> float:
        exits_in_c()
        return 1.0

    process = get_context("fork").Process(target=recorded, args=(Job(tmp_path), run))
    process.start()
    process.join(60)
    assert process.exitcode == 1
    assert "error: compiled code ended the process by C's exit before the run was over" in capfd.readouterr().err
