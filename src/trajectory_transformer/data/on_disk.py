"""Arrays in memory-mapped files; the kernel keeps as much of them in memory as there is room for.

They are written by ordinary writes, so that a full disk raises an error, and only read through the mapping.
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

DIGEST_BYTES = 32  # length of a kept file's header: SHA-256 of its key and rows


def joined_rows(chunks: Iterable[np.ndarray], folder: Path | None) -> np.ndarray:
    """Concatenate the rows of ``chunks`` (at least one, of equal type and width) into one array.

    The array is in memory or, with a ``folder``, in an unnamed file there, which is deleted when this process ends.

    Raises:
        UserError: the folder is not writable, or the disk is full.
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
    """Return the rows that ``chunks`` makes, stored in ``folder`` under ``key`` for later calls and other processes.

    A file with any altered bit is written again, with a warning. A file gets its name only when it is complete, so a
    killed writer leaves none. If several processes need it, one writes it and the others wait.

    Args:
        folder: an existing folder.
        key: hexadecimal digest of everything that determines the rows.
        chunks: function that yields the rows from the first on.
        dtype, shape: type and shape of the whole array.

    Raises:
        UserError: the folder is not writable, or the disk is full.
    """
    file = folder / f"{key}.tokens"
    if (found := _whole(file, key, dtype, shape)) is not None:
        return found
    with _writing(folder), _alone(folder, f".{key}.lock"):
        if (found := _whole(file, key, dtype, shape)) is not None:  # written by another process in the meantime
            return found
        if file.exists():
            warnings.warn(f"'{file}' is damaged and is written again", stacklevel=2)
        for left in folder.glob(f".{key}.*{PARTIAL}"):  # left by killed writers
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
    """Return the hexadecimal SHA-256 of an array's type, shape and numbers, reading ``rows`` rows at a time."""
    digest = hashlib.sha256(f"{values.dtype}{values.shape}".encode())
    for first in range(0, len(values), rows):
        digest.update(np.ascontiguousarray(values[first : first + rows]).data)
        forget(values)
    return digest.hexdigest()


def forget(array: np.ndarray) -> None:
    """Release the memory of a mapped array's pages; does nothing for other arrays."""
    if (mapping := _mapping(array)) is not None:
        mapping.madvise(mmap.MADV_DONTNEED)


def in_random_order(array: np.ndarray) -> None:
    """Disable the kernel's read-ahead for a mapped array."""
    if (mapping := _mapping(array)) is not None:
        mapping.madvise(mmap.MADV_RANDOM)


def read_ahead(array: np.ndarray, firsts: Iterable[int], rows: int) -> None:
    """Start reading ``rows`` rows of a mapped array at each of ``firsts``, without waiting for them."""
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
    """Map a non-empty file as an array; changes to the array are not written to the file."""
    return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), dtype, offset=offset)


def _whole(file: Path, key: str, dtype: np.dtype, shape: tuple[int, ...]) -> np.ndarray | None:
    """Return the rows of a kept file, or None if it is missing or altered."""
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
    """Hold a lock, waiting for other processes; its file is removed at the end."""
    while True:
        with contextlib.suppress(FolderInUseError):
            lock = FolderLock(folder, file)
            break
        time.sleep(0.2)
    with lock:
        yield
        (folder / file).unlink(missing_ok=True)  # waiting processes then make a new one


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"data.cache={folder} cannot be written ({error.strerror or error}); choose a folder on a disk with space"
        ) from error
