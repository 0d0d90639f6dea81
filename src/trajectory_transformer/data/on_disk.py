"""Rows of numbers in files, mapped into memory: the kernel keeps what there is room for, and reads the rest again.

They are written by ordinary writes, which fail with a sentence on a full disk, and only read once they are mapped.
"""

import contextlib
import hashlib
import itertools
import mmap
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import UserError
from ..files import PARTIAL, FolderInUseError, FolderLock

DIGEST_BYTES = 32  # at the start of a kept file: SHA-256 of its key and rows


def joined_rows(chunks: Iterable[np.ndarray], folder: Path | None) -> np.ndarray:
    """All rows of ``chunks`` (at least one, of equal type and width) as one array.

    In memory, or with a ``folder`` in a file there that has no name, and so ends with this process however it ends.

    Raises:
        UserError: the folder cannot be written in, or the disk is full.
    """
    if folder is None:
        return np.concatenate(list(chunks))
    with _writing(folder), tempfile.TemporaryFile(dir=folder) as file:
        rest = iter(chunks)
        first = next(rest)
        for chunk in itertools.chain((first,), rest):
            file.write(np.ascontiguousarray(chunk).data)
        file.flush()
        return _mapped(file, first.dtype, 0).reshape(-1, *first.shape[1:])


def kept_rows(
    folder: Path, key: str, chunks: Callable[[], Iterable[np.ndarray]], dtype: np.dtype, shape: tuple[int, ...]
) -> np.ndarray:
    """Rows that ``chunks`` makes once, and that later calls and other processes find in ``folder`` under ``key``.

    A file that is not what was written, to the last bit, is made again, with a warning. It gets its name when it is
    whole, so that a killed writer leaves none; of several processes that want it one makes it, and the others wait.

    Args:
        folder: exists.
        key: tells all that the rows follow from, in hexadecimal.
        chunks: makes the rows from the first on.
        dtype, shape: of all rows.

    Raises:
        UserError: the folder cannot be written in, or the disk is full.
    """
    file = folder / f"{key}.tokens"
    if (found := _whole(file, key, dtype, shape)) is not None:
        return found
    with _writing(folder), _alone(folder, f".{key}.lock"):
        if (found := _whole(file, key, dtype, shape)) is not None:  # which another process has made in the meantime
            return found
        if file.exists():
            warnings.warn(f"'{file}' is damaged; it is made again", stacklevel=2)
        for left in folder.glob(f".{key}.*{PARTIAL}"):  # by killed writers
            left.unlink(missing_ok=True)
        partial = folder / f".{key}.{os.getpid()}{PARTIAL}"
        try:
            with partial.open("wb") as opened:
                digest = hashlib.sha256(key.encode())
                opened.write(bytes(DIGEST_BYTES))
                for chunk in chunks():
                    rows = np.ascontiguousarray(chunk, dtype).data
                    digest.update(rows)
                    opened.write(rows)
                opened.seek(0)
                opened.write(digest.digest())
                opened.flush()
                os.fsync(opened.fileno())
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        with file.open("rb") as opened:
            return _mapped(opened, dtype, DIGEST_BYTES).reshape(shape)


def rows_digest(values: np.ndarray, rows: int) -> str:
    """SHA-256 of an array's type, shape and numbers in hexadecimal, ``rows`` of them at a time."""
    digest = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
    for first in range(0, len(values), rows):
        digest.update(np.ascontiguousarray(values[first : first + rows]).data)
        forget(values)
    return digest.hexdigest()


def forget(array: np.ndarray) -> None:
    """Take what was read of a mapped array out of this process's memory; any other array is left as it is."""
    if (mapping := _mapping(array)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def in_random_order(array: np.ndarray) -> None:
    """Have the kernel read just what is asked for of a mapped array, not what lies beside it."""
    if (mapping := _mapping(array)) is not None:
        mapping.madvise(mmap.MADV_RANDOM)


def read_ahead(array: np.ndarray, firsts: Iterable[int], rows: int) -> None:
    """Begin to read ``rows`` rows of a mapped array from each of ``firsts`` on, without waiting for them."""
    if (mapping := _mapping(array)) is None:
        return
    before = len(mapping) - array.nbytes
    width = array.strides[0]
    for first in firsts:
        start = before + first * width
        page = start - start % mmap.PAGESIZE
        mapping.madvise(mmap.MADV_WILLNEED, page, min(start + rows * width, len(mapping)) - page)


def _mapping(array: np.ndarray) -> mmap.mmap | None:
    base: object = array
    while isinstance(base, np.ndarray):
        base = base.base
    base = base.obj if isinstance(base, memoryview) else base
    return base if isinstance(base, mmap.mmap) else None


def _mapped(file: IO[bytes], dtype: np.dtype, offset: int) -> np.ndarray:
    """The numbers of a file that is not empty; changes to the array would not reach the file."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype, offset=offset)


def _whole(file: Path, key: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """The rows of a kept file, or None where it is missing or not as it was written."""
    try:
        with file.open("rb") as opened:
            stored = opened.read(DIGEST_BYTES)
            if os.fstat(opened.fileno()).st_size != DIGEST_BYTES + int(np.prod(shape)) * dtype.itemsize:
                return None
            found = hashlib.file_digest(opened, lambda: hashlib.sha256(key.encode()))
            return _mapped(opened, dtype, DIGEST_BYTES).reshape(shape) if found.digest() == stored else None
    except OSError:
        return None


@contextlib.contextmanager
def _alone(folder: Path, file: str) -> Iterator[None]:
    """Wait until no other process holds the lock, which is removed at the end."""
    while True:
        with contextlib.suppress(FolderInUseError):
            lock = FolderLock(folder, file)
            break
        time.sleep(0.2)
    with lock:
        yield
        (folder / file).unlink(missing_ok=True)  # whoever waits finds it gone, and makes another


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache={folder} cannot be written ({error.strerror or error}); choose a folder on a disk with room"
        ) from error
