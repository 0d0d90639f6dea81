"""Files: by which process they are written, whole or not at all; and checkpoints named wrongly."""

import contextlib
import errno
import os
from pathlib import Path

from .errors import UserError

PARTIAL = ".partial"  # ends the name of a file that is being written


def is_first_process() -> bool:
    """This process is the one that writes files: rank 0, also where SLURM or torchrun start every rank."""
    if "RANK" in os.environ:
        return os.environ["RANK"] == "0"
    names = ("SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")
    return all(os.environ.get(name, "0") == "0" for name in names)


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
