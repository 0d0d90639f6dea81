"""Files and folders: by which process they are written, whole or not at all; and checkpoints named wrongly."""

import contextlib
import errno
import fcntl
import os
import shutil
import socket
import tempfile
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Self

from .errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is being written
LOCK = ".lock"  # in a folder that a process has, or had, to itself
SLURM_OWN_STEPS = 0xFFFFFFF0  # from this number on: SLURM's batch script, interactive shell, and the like
SLURM_SHELLS = ("bash", "interactive")  # job names that Lightning takes for a shell in which one works by hand
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)  # what a file system without locks says


class FolderInUseError(UserError):
    """Another process, which is still there, has the folder to itself."""


class FolderLock:
    """A folder that this process alone works in, until :meth:`release`, the end of a ``with``, or its own end.

    The kernel keeps the lock, so that no holder leaves one behind, however it ends. Another ``file`` is another lock.
    A file system that knows no locks gives none, and refuses nobody. With ``wait``, it waits for another holder's end.

    Raises:
        FolderInUseError: another process, or another lock of this one, holds it.
        OSError: nothing can be written in the folder.
    """

    _files: "weakref.WeakSet[IO[str]]" = weakref.WeakSet()  # of the locks that this process holds

    def __init__(self, folder: Path, file: str = LOCK, wait: bool = False) -> None:
        self._file = (folder / file).open("a+", encoding="utf-8")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            if os.fstat(self._file.fileno()).st_nlink == 0:
                raise BlockingIOError  # by a process that took the folder for a dead one's, and removed it
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
        """Let others have the folder. The file stays: whoever waits for the lock has it open."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    @classmethod
    def close_all(cls) -> None:
        """In a process that was forked: a child that outlives the holder must not keep its locks."""
        for file in cls._files:
            file.close()


os.register_at_fork(after_in_child=FolderLock.close_all)


def is_in_use(folder: Path) -> bool:
    """True if a process holds the folder's lock."""
    try:
        FolderLock(folder).release()
    except FolderInUseError:
        return True
    except OSError:  # no such folder, or one that cannot be written in
        return False
    return False


@contextlib.contextmanager
def staging_folder(parent: Path, prefix: str) -> Iterator[Path]:
    """A new folder in ``parent``, to prepare files in; removed at the end or, where it was killed, by the next one.

    Raises:
        OSError: it cannot be made.
    """
    for left in parent.glob(f"{prefix}*"):
        with contextlib.suppress(FolderInUseError, OSError), FolderLock(left):
            shutil.rmtree(left, ignore_errors=True)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        with contextlib.suppress(FolderInUseError, FileNotFoundError):  # just taken for a dead process's
            lock = FolderLock(folder)
            break
    try:
        with lock:
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def is_first_process() -> bool:
    """This process is the one that writes files: rank 0, also where SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


def slurm_step() -> str | None:
    """The number of the srun step that this process is a task of; None elsewhere, as in a batch script itself."""
    step = os.environ.get("SLURM_STEP_ID", "")
    own = not step.isdecimal() or int(step) >= SLURM_OWN_STEPS or os.environ.get("SLURM_JOB_NAME") in SLURM_SHELLS
    return None if own else step


def write_whole(file: Path, content: str | bytes | bytearray) -> None:
    """Replace ``file`` at once: another process reads all of it, or what was there before.

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
    with contextlib.suppress(OSError):  # the new name itself survives a power cut, where the file system allows it
        descriptor = os.open(file.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def writable_folder(option: str, folder: str) -> Path:
    """The folder that an option names, made where it is missing; UserError if nothing can be written in it."""
    path = Path(folder).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"{option}={folder} cannot be written ({error.strerror}); choose another folder") from error
    return path


def remove_partial_files(directory: str | os.PathLike[str]) -> None:
    """Delete what writers that were killed left behind in ``directory``."""
    for leftover in Path(directory).glob(f".*{PARTIAL}"):
        leftover.unlink(missing_ok=True)


def write_output(what: str, file: Path, content: str | bytes | bytearray) -> None:
    """As :func:`write_whole`, in a folder that is made where it is missing, or raise UserError about ``what``."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_whole(file, content)
    except OSError as error:
        raise UserError(f"{what} cannot be written to {file}: {error.strerror or error}") from error


def reading_remedy(error: BaseException, path: Path, otherwise: str) -> str:
    """What to do about an error while ``path``, a file or a folder, was read: ``otherwise`` where its contents are bad.

    The end of a sentence, from its semicolon on.
    """
    number = getattr(error, "errno", None)
    if number in (errno.EACCES, errno.EPERM):
        return f"; you may not read it: `chmod -R u+rX '{path}'`, or ask whom it belongs to"
    if number in (errno.EAGAIN, errno.EDEADLK, errno.ENOLCK) or "unable to lock file" in str(error):
        return (
            "; another process has locked it: wait until that one has written it, or set HDF5_USE_FILE_LOCKING=FALSE "
            "where a network file system knows no locks"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return "; too many files are open: end other programs, or raise the limit with `ulimit -n`"
    if number in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO):
        return "; the disk or the network file system fails: the set may be whole, so try again once that is mended"
    if number == errno.ENOMEM or isinstance(error, MemoryError):
        return "; there is not enough memory free to read it"
    if isinstance(error, ImportError):
        return "; a package that reads this format is missing: pip install 'trajectory-transformer[arrow]'"
    return otherwise


def require_file(checkpoint: str) -> None:
    """Refuse a checkpoint that is not there, naming those nearby, before torch is imported to read it."""
    path = Path(checkpoint)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"checkpoint '{path}' {what}{checkpoints_near(path)}")


def checkpoints_near(path: Path) -> str:
    """Other checkpoints near a missing one, as the end of a sentence."""
    folder = path if path.is_dir() else path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    nearby = {*folder.glob("*.ckpt"), *folder.glob("checkpoints/*.ckpt"), *folder.glob("*/checkpoints/*.ckpt")}
    newest = sorted((file for file in nearby if file.is_file()), key=lambda file: file.stat().st_mtime, reverse=True)
    if not newest:
        return f"; there is no *.ckpt near '{folder}' either"
    return "; nearby there is " + ", ".join(f"'{file}'" for file in newest[:5])
