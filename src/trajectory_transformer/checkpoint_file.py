"""The file format of checkpoints: written completely or not at all, and verified to the last bit before it is read.

::

    [ zip archive as torch.save makes it | "trajectory-transformer sha256:" | 64 hexadecimal digits ]
                                           \\______________ the archive's comment ______________/

The digest covers every byte before itself. A zip archive may carry a comment, so plain ``torch.load(path,
weights_only=True)`` reads the file too.
"""

import contextlib
import errno
import hashlib
import io
import os
import pickle
import shutil
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from .errors import UserError
from .files import checkpoints_near, write_whole

FORMAT = 1
SECTION = "trajectory_transformer"  # key of everything except weights and training state

DEEPEST = 100  # levels of nested containers
_BYTEARRAYS = (b"cbuiltins\nbytearray\n", b"c__builtin__\nbytearray\n")  # as pickles name it, now and in Python 2

_COMMENT = b"trajectory-transformer sha256:"
_DIGEST_LENGTH = 64
_ZIP_START, _ZIP_END = b"PK\x03\x04", b"PK\x05\x06"
_ZIP_END_LENGTH = 22  # the end record without a comment; its last two bytes are the comment's length


def write_checkpoint(path: str | os.PathLike[str], contents: Mapping[str, Any]) -> None:
    """Save ``contents`` so that ``path`` holds either the complete new file or its previous contents.

    Args:
        path: the final name; missing folders are made.
        contents: tensors and plain values in dicts, lists and tuples; tensors on another device are copied to the CPU.
            ``contents["trajectory_transformer"]["format"]`` must be 1 for :func:`read_checkpoint` to accept it.

    Raises:
        UserError: it cannot be written (full disk, no permission); nothing partial is left behind.
    """
    path, buffer = Path(path), io.BytesIO()
    torch.save(_on_cpu(contents), buffer)
    data = bytearray(buffer.getbuffer())
    data[-2:] = (len(_COMMENT) + _DIGEST_LENGTH).to_bytes(2, "little")
    data += _COMMENT
    data += hashlib.sha256(data).hexdigest().encode()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, data)
    except OSError as error:
        message = f"'{path}' could not be saved: {error.strerror or error}; it needs {len(data):,} bytes"
        with contextlib.suppress(OSError):
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                message += f" and {shutil.disk_usage(path.parent).free:,} are free"
        with contextlib.suppress(OSError):
            message += "; the previous file is kept" if path.is_file() else ""
        raise UserError(message) from error


def _on_cpu(value: Any) -> Any:
    """Return ``value`` with all tensors on the CPU, so that a file from a GPU loads on a machine without one."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu()
    if isinstance(value, Mapping):
        return {key: _on_cpu(item) for key, item in value.items()}
    return type(value)(map(_on_cpu, value)) if type(value) in (list, tuple) else value


def read_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Read a file that :func:`write_checkpoint` wrote, with tensors on the CPU; nothing in it is executed.

    Raises:
        UserError: the file is missing, empty, truncated, altered in any bit, or not of this project, or one of its
            weights is NaN or infinite.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise UserError(f"checkpoint '{path}' does not exist{checkpoints_near(path)}") from None
    except OSError as error:
        raise UserError(f"checkpoint '{path}' cannot be read: {error.strerror}") from error
    if wrong := _what_is_wrong(data):
        raise UserError(f"checkpoint '{path}' {wrong}")
    if wrong := why_inflating(data):
        raise UserError(f"checkpoint '{path}' {wrong}")
    try:
        contents = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, RecursionError) as error:
        raise UserError(
            f"checkpoint '{path}' holds something other than tensors and plain values; it was refused and nothing in "
            "it was executed"
        ) from error
    if unlike := _why_unlike_stored(contents, len(data)):
        raise UserError(f"checkpoint '{path}' {unlike}")
    section = contents.get(SECTION) if isinstance(contents, dict) else None
    if not isinstance(section, dict) or "format" not in section:
        raise UserError(f"checkpoint '{path}' has no '{SECTION}' section: this project did not write it")
    if section["format"] != FORMAT:
        raise UserError(
            f"checkpoint '{path}' has format {section['format']!r}, and this version reads format {FORMAT}; "
            "use the version of the project that wrote it"
        )
    weights = contents.get("state_dict")
    try:
        name = not_finite(weights) if isinstance(weights, dict) else None
    except RuntimeError as error:  # sparse, quantised, without values
        raise UserError(f"checkpoint '{path}' holds tensors of a kind that no network here has") from error
    if name is not None:
        raise UserError(f"checkpoint '{path}' cannot be used: its weights '{name}' hold NaN or infinity; train again")
    return contents


def why_inflating(data: bytes) -> str | None:
    """Return the end of a message about an archive that would need more memory than its size; None for any other file.

    ``torch.save`` does not compress, so it did not write an archive with compressed or overlapping entries. Of the
    calls that torch allows in a pickle, only ``bytearray(n)`` allocates n bytes that are not in the file.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entries = archive.infolist()
            total = sum(entry.file_size for entry in entries)
            if total <= len(data) and all(entry.compress_type == zipfile.ZIP_STORED for entry in entries):
                pickles = [archive.read(entry) for entry in entries if entry.filename.endswith(".pkl")]
                made = any(call in pickled for pickled in pickles for call in _BYTEARRAYS)
                return "makes a bytearray, of any size, which no network here has; it was not loaded" if made else None
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError):
        return None  # an older format of torch, or damaged: reported elsewhere
    return f"is compressed: {len(data):,} bytes would become {total:,}, which torch.save never writes; it was not read"


def _why_unlike_stored(contents: Any, stored: int) -> str | None:
    """Return the end of a message about contents larger than the ``stored`` bytes of their file, or None.

    A tensor can repeat one number, and nested lists that share entries can double in size at each level.
    """
    count, left = 0, [(contents, 0)]
    while left:
        value, depth = left.pop()
        count += 1
        if count > stored or depth > DEEPEST:
            return "holds values nested too deeply or without end; it was not loaded"
        if isinstance(value, torch.Tensor) and (needed := value.numel() * value.element_size()) > stored:
            return f"holds a tensor of {needed:,} bytes in a file of {stored:,}; it was not loaded"
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, (list, tuple, set)) else ()
        left += [(entry, depth + 1) for entry in inner]
    return None


def not_finite(weights: Mapping[str, Any]) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity, or None."""
    tensors = ((name, value) for name, value in weights.items() if isinstance(value, torch.Tensor))
    return next((name for name, value in tensors if not torch.isfinite(value).all()), None)


def _what_is_wrong(data: bytes) -> str | None:
    """Return the end of a message about a file that :func:`write_checkpoint` did not write, or that was altered."""
    body, digest = data[:-_DIGEST_LENGTH], data[-_DIGEST_LENGTH:]
    if not data:
        return "is empty"
    if body.endswith(_COMMENT):
        whole = hashlib.sha256(body).hexdigest().encode() == digest
        return None if whole else "is damaged: its SHA-256 does not match its contents; restore it from a copy"
    if not data.startswith(_ZIP_START):
        return "is not a checkpoint of this project (it is not an archive); it was not loaded"
    if data[-_ZIP_END_LENGTH:].startswith(_ZIP_END):
        return "is an archive that this project did not write; it was not loaded"
    return "is cut short or damaged: its end is missing; restore it from a copy"
