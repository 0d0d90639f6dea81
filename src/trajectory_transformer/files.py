"""Writing files atomically and by one process, locks on folders, and messages about files that cannot be read."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from difflib import SequenceMatcher
from pathlib import Path
from typing import IO, Self

from .errors import UserError

PARTIAL = ".partial"  # end of the name of a file that is being written
LOCK = ".lock"  # name of the lock file in a folder
SLURM_OWN_STEPS = 0xFFFFFFF0  # step numbers from here on are SLURM's batch script, interactive shell and the like
SLURM_SHELLS = ("bash", "interactive")  # job names that Lightning takes for an interactive shell
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # errors of a file system without locks


class FolderInUseError(UserError):
    """The folder is locked by another process that is still running."""


class FolderLock:
    """Exclusive lock on a folder, held until :meth:`release`, the end of a ``with`` block, or the end of the process.

    The kernel keeps the lock, so it never outlives its process. Each ``file`` is a lock of its own. On a file system
    without locks, every process gets the lock. With ``wait``, the constructor blocks until the lock is free.

    Raises:
        FolderInUseError: another process, or another lock object of this process, holds it.
        OSError: the folder is not writable.
    """

    _files: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()  # of the locks that this process holds

    def __init__(self, folder: Path, file: str = LOCK, wait: bool = False) -> None:
        self._file = (folder / file).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise BlockingIOError  # the folder was removed by a process that took it for a dead one's
            self._file.truncate(0)
            self._file.write(f"process {os.getpid()} on {socket.gethostname()}")
            self._file.flush()
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read(200) or "another process"
            self._file.close()
            raise FolderInUseError(
                f"{folder} is in use by {holder}: wait until it has ended, or choose another folder"
            ) from None
        except OSError as error:
            if error.errno not in NO_LOCKS:
                self._file.close()
                raise
        self._files.add(self._file)

    def release(self) -> None:
        """Release the lock. The file stays, because a process that waits for the lock has it open."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def close_all(cls) -> None:
        """Close the locks in a forked child, so that a child that outlives the holder does not keep them."""
        for file in cls._files:
            file.close()


os.register_at_fork(after_in_child=FolderLock.close_all)


def is_in_use(folder: Path) -> bool:
    """Return True if a process holds the folder's lock."""
    try:
        FolderLock(folder).release()
    except FolderInUseError:
        return True
    except OSError:  # no such folder, or not writable
        return False
    return False


def holder(folder: Path) -> int | None:
    """Return the number of the process that holds the folder's lock, on whatever machine, or None."""
    if not is_in_use(folder):
        return None
    words = (folder / LOCK).read_text(encoding="utf-8").split()  # as FolderLock writes them
    return int(words[1]) if words[:1] == ["process"] else None


@contextlib.contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """Make a temporary folder in ``parent``; it is removed at the end or, if the process was killed, by the next call.

    Raises:
        OSError: the folder cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(FolderInUseError, OSError), FolderLock(left):
            shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        # Another process may just have removed it, taking it for a dead one's.
        with contextlib.suppress(FolderInUseError, FileNotFoundError):
            lock = FolderLock(folder)
            break
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_first_process() -> bool:
    """Return True in the process that writes files: rank 0, also when SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def slurm_step() -> str | None:
    """Return the number of the srun step that this process belongs to; None outside of one, as in a batch script."""
    step = os.environ.get("SLURM_STEP_ID", "")
    own = not step.isdecimal() or int(step) >= SLURM_OWN_STEPS or os.environ.get("SLURM_JOB_NAME") in SLURM_SHELLS
    return None if own else step


def write_whole(file: Path, content: str | bytes | bytearray) -> None:
    """Replace ``file`` atomically: other processes read either all of it or its previous contents.

    Raises:
        OSError: it cannot be written; nothing partial is left behind, unless the process is killed.
    """
    temporary = file.with_name(f".{file.name}.{os.getpid()}{PARTIAL}")
    try:
        with temporary.open("wb") as opened:
            opened.write(content.encode() if isinstance(content, str) else content)
            opened.flush()
            os.fsync(opened.fileno())
        temporary.replace(file)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    with contextlib.suppress(OSError):  # make the new name survive a power cut, if the file system supports it
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def writable_folder(option: str, folder: str) -> Path:
    """Return the folder that an option names, making it if needed; raises UserError if it is not writable."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{option}={folder} cannot be written ({error.strerror}); choose another folder") from error
    return path


def remove_partial_files(directory: str | os.PathLike[str]) -> None:
    """Delete the partial files that killed processes left in ``directory``."""
    for leftover in Path(directory).glob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_output(what: str, file: Path, content: str | bytes | bytearray) -> None:
    """Write ``file`` by :func:`write_whole`, making its folder if needed; an error raises UserError about ``what``."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise UserError(f"{what} cannot be written to {file}: {error.strerror or error}") from error


def reading_remedy(error: BaseException, path: Path, otherwise: str) -> str:
    """Return the remedy for an error raised while reading ``path``, a file or folder; ``otherwise`` if it is damaged.

    The result is the end of a message, beginning with its semicolon.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return f"; you may not read it: `chmod -R u+rX '{path}'`, or ask its owner"
    if number in (errno.EAGAIN, errno.EDEADLK, errno.ENOLCK) or "unable to lock file" in str(error):
        return (
            "; another process has locked it: wait until it has finished, or set HDF5_USE_FILE_LOCKING=FALSE "
            "on a network file system without locks"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return "; too many files are open: end other programs, or raise the limit with `ulimit -n`"
    if number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO):
        return "; the disk or the network file system has failed: repair it and try again, the data set may be intact"
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return "; there is not enough free memory to read it"
    if isinstance(error, ImportError):
        return "; a package that reads this format is missing: pip install 'trajectory-transformer[arrow]'"
    return otherwise


def require_file(checkpoint: str, place: str = "") -> None:
    """Raise UserError for a checkpoint that does not exist, naming those nearby, without importing torch.

    ``place`` begins the message.
    """
    path = Path(checkpoint)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"{place}checkpoint '{path}' {what}{checkpoints_near(path)}")


def checkpoints_near(path: Path) -> str:
    """Return the end of a message that lists other checkpoints near a missing one."""
    folder = path if path.is_dir() else path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    nearby = {*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt"), *folder.glob("*/checkpoints/*.ckpt")}
    newest = sorted((file for file in nearby if file.is_file()), key=lambda file: file.stat().st_mtime, reverse=True)
    newest.sort(
        key=lambda file: SequenceMatcher(None, str(file), str(path)).ratio() < 0.9
    )  # likely misspelt ones first
    if not newest:
        return f"; there is no *.ckpt near '{folder}' either"
    return "; nearby there is " + ", ".join(f"'{file}'" for file in newest[:5])
