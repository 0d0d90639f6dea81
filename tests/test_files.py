"""Locks on folders, and partial files of killed processes."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from trajectory_transformer.files import FolderInUseError, FolderLock, is_in_use, remove_partial_files, staging_folder

HOLDER = """
import os, sys, time
from pathlib import Path
from trajectory_transformer.files import FolderLock

lock = FolderLock(Path(sys.argv[1]))
if os.fork() == 0:
    print(os.getpid(), flush=True)  # by the child, which has closed its locks by now
time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the lock of ``tmp_path``, and has a child, whose id it printed."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    child = int(process.stdout.readline())
    yield process
    for victim in (process.pid, child):
        os.kill(victim, signal.SIGKILL)  # the process is not reaped yet, so its id is still its own
    process.wait()
    process.stdout.close()


def test_a_held_folder_is_refused_with_its_holder(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    with pytest.raises(FolderInUseError, match=f"is in use by process {holder.pid} on .*: wait until it has ended"):
        FolderLock(tmp_path)
    assert is_in_use(tmp_path)


def test_a_killed_holder_keeps_no_lock_though_its_child_lives(tmp_path: Path, holder: subprocess.Popen[str]) -> None:
    holder.send_signal(signal.SIGKILL)
    os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    FolderLock(tmp_path).release()


def test_a_lock_ends_with_its_block_and_holds_against_this_process_too(tmp_path: Path) -> None:
    with FolderLock(tmp_path):
        assert is_in_use(tmp_path)
        FolderLock(tmp_path, ".other").release()
    assert not is_in_use(tmp_path)
    assert not is_in_use(tmp_path / "nowhere")


def test_a_lock_on_a_folder_that_was_removed_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def removed_meanwhile(file: IO[str], operation: int) -> None:
        (tmp_path / ".lock").unlink()

    monkeypatch.setattr("fcntl.flock", removed_meanwhile)
    with pytest.raises(FolderInUseError):
        FolderLock(tmp_path)


def test_a_dead_process_s_staging_folder_is_removed_at_once_and_a_living_one_s_kept(tmp_path: Path) -> None:
    (dead := tmp_path / ".making-dead").mkdir()
    (dead / "half").write_text("written")
    with staging_folder(tmp_path, ".making-") as first:
        assert not dead.exists()
        with staging_folder(tmp_path, ".making-") as second:
            assert first.is_dir()
            assert second.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_remove_partial_files(tmp_path: Path) -> None:
    (tmp_path / "last.ckpt").touch()
    (tmp_path / ".last.ckpt.123.partial").write_bytes(b"half")
    remove_partial_files(tmp_path)
    assert list(tmp_path.iterdir()) == [tmp_path / "last.ckpt"]
