"""Weight files: finding them in a directory or on the hub, and reading and writing tensors without executing code."""

import io
import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import torch
from huggingface_hub import save_torch_state_dict
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from torch import Tensor

from ..checkpoint_file import why_inflating
from ..errors import UserError
from ..files import staging_folder
from ..reachability import hub_unreachable
from .config import CONFIG_FILE, read_json

SAFETENSORS_FILE = "model.safetensors"
PICKLED_FILE = "pytorch_model.bin"
INDEX_SUFFIX = ".index.json"
WEIGHT_FILES = (SAFETENSORS_FILE, SAFETENSORS_FILE + INDEX_SUFFIX, PICKLED_FILE, PICKLED_FILE + INDEX_SUFFIX)
HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")

# Files to download from a hub's repository; the pickled ones only if there are no others.
_PATTERNS = (
    (CONFIG_FILE, SAFETENSORS_FILE, "model-*.safetensors", SAFETENSORS_FILE + INDEX_SUFFIX),
    (PICKLED_FILE, "pytorch_model-*.bin", PICKLED_FILE + INDEX_SUFFIX),
)
_EARLIER = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")
_ZIP_START, _ZIP_END, _ZIP_END_LENGTH = b"PK\x03\x04", b"PK\x05\x06", 22
_EXACT = (torch.float16, torch.bfloat16, torch.float32)  # dtypes that float32 holds without loss


def download(repo_id: str, options: Mapping[str, Any], subfolder: str = "") -> Path:
    """Download a hub repository's model files, unless they are in the client's cache; returns their folder.

    Raises:
        UserError: they are not available; the message gives the reason.
    """
    reason = None if options.get("local_files_only") else hub_unreachable()
    chosen = {**options, "local_files_only": True} if reason else options
    folder = Path()
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        for patterns in _PATTERNS:
            wanted = [prefix + pattern for pattern in patterns]
            root = huggingface_hub.snapshot_download(repo_id, allow_patterns=wanted, etag_timeout=2, **chosen)
            folder = Path(root) / prefix
            if any((folder / name).is_file() for name in WEIGHT_FILES):
                break
    except Exception as error:  # the client and the network may raise anything
        raise UserError(
            f"'{repo_id}' is not a directory, and could not be downloaded from the hub "
            f"({reason or first_line(error)}); download it where there is a network, and give its directory"
        ) from None
    return folder


def first_line(error: Exception) -> str:
    """Type and first line of an error, for a message."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def find_weights(directory: Path, run: bool = False) -> Path:
    """Find a model directory's weight file, or the index of its shards; with ``run``, also a training run's latest."""
    names = [*WEIGHT_FILES, *(["model_last.pt"] if run else [])]
    if present := [name for name in names if (directory / name).is_file()]:
        return directory / present[0]
    states = [file for file in directory.glob("state_*.pt") if run and file.stem[6:].isdecimal()]
    if not states:
        or_states = " or state_N.pt" if run else ""
        raise UserError(f"'{directory}' holds no weights: it has none of {', '.join(names)}{or_states}")
    return max(states, key=lambda file: int(file.stem[6:]))


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read all tensors of a file, or of the shards that a ``*.index.json`` names, on the CPU.

    Raises:
        UserError: the file is missing, truncated, not a weight file, or contains anything but tensors.
    """
    if not path.name.endswith(INDEX_SUFFIX):
        return _read_file(path)
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise UserError(f"'{path}' has no 'weight_map' from tensors to files")
    weights: dict[str, Tensor] = {}
    for name in dict.fromkeys(shards.values()):
        if Path(name).name != name or not (path.parent / name).is_file():
            raise UserError(f"'{path}' names the shard '{name}', which is not in its directory")
        weights |= _read_file(path.parent / name)
    if missing := sorted(shards.keys() - weights.keys()):
        raise UserError(f"'{path}' lists the tensor '{missing[0]}', which is in none of the shards")
    return weights


def write_weights(weights: Mapping[str, Tensor], directory: Path, limit: int | str) -> None:
    """Write ``model.safetensors``, or shards and an index, and remove other weights in the directory.

    No file is larger than ``limit``, in bytes or as "200KB", unless it is a single tensor. If writing fails with an
    OSError, earlier files are kept.
    """
    with staging_folder(directory, ".partial-") as partial:
        try:
            save_torch_state_dict(dict(weights), partial, max_shard_size=limit)
        except SafetensorError as error:  # its writer raises this if the disk is full
            raise OSError(str(error)) from error
        for file in [file for file in directory.iterdir() if _EARLIER.fullmatch(file.name)]:
            file.unlink()
        for file in partial.glob("[!.]*"):
            file.replace(directory / file.name)


def checked(weights: Mapping[str, Tensor], path: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Convert tensors to ``dtype``; UserError if that would lose precision, or one has NaN or infinite values."""
    for name, tensor in weights.items():
        if tensor.dtype not in (*_EXACT, dtype) or tensor.layout != torch.strided:
            kind = str(tensor.dtype if tensor.layout == torch.strided else tensor.layout).removeprefix("torch.")
            raise UserError(f"'{path}': the tensor '{name}' is {kind}; weights must be float32, or 16-bit floats")
        if not torch.isfinite(tensor).all():
            raise UserError(f"'{path}': the tensor '{name}' has NaN or infinite values; the weights cannot be used")
    return {name: tensor.to(dtype) for name, tensor in weights.items()}


def _read_file(path: Path) -> dict[str, Tensor]:
    try:
        data = path.read_bytes()
    except OSError as error:
        reason = "does not exist" if isinstance(error, FileNotFoundError) else f"cannot be read: {error.strerror}"
        raise UserError(f"'{path}' {reason}") from None
    if not data:
        raise UserError(f"'{path}' is empty")
    if wrong := why_inflating(data):
        raise UserError(f"'{path}' {wrong}")
    contents: object
    try:
        if path.suffix == ".safetensors":
            contents = load_safetensors(data)
        else:
            contents = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # the libraries may raise anything for a malformed file
        raise UserError(f"'{path}' {_what_is_wrong(data, error)}") from None
    if not isinstance(contents, dict) or not contents:
        raise UserError(f"'{path}' holds no named tensors")
    for name, value in contents.items():
        if isinstance(value, Tensor) and value.numel() * value.element_size() > len(data):
            raise UserError(f"'{path}': the tensor '{name}' is larger than its file; it was not loaded")
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise UserError(f"'{path}' holds '{name}', a {type(value).__name__}; a file of weights must hold tensors")
    return dict(contents)


def _what_is_wrong(data: bytes, error: Exception) -> str:
    """The reason why a file was refused, as the end of a sentence."""
    reason = " ".join(str(error).split())
    if isinstance(error, SafetensorError):
        return f"is cut short or not a safetensors file ({reason})"
    if data.startswith(_ZIP_START) and not data[-_ZIP_END_LENGTH:].startswith(_ZIP_END):
        return "is cut short: its end is missing; download it again"
    if isinstance(error, pickle.UnpicklingError) and "GLOBAL" in reason:
        return "holds Python objects besides tensors; it was refused, and nothing in it was executed"
    return f"is cut short or not a file of weights ({type(error).__name__}); nothing in it was executed"
