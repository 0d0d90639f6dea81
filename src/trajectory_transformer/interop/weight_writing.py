"""Weights as safetensors: one file, or shards and their index."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ..errors import UserError
from .weights import INDEX_SUFFIX, SAFETENSORS_FILE

_UNITS = {"": 1, "B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
_EARLIER = re.compile(r"(model|pytorch_model)(-\d{5}-of-\d{5})?\.(safetensors|bin)(\.index\.json)?")


def write_weights(weights: Mapping[str, Tensor], directory: Path, limit: int) -> None:
    """Write ``model.safetensors``, or shards of it with an index, and remove other weights in the directory.

    Args:
        weights: by name; no two may share memory.
        directory: exists.
        limit: bytes of one file; a larger tensor gets a file of its own.

    Raises:
        OSError: a file cannot be written; the earlier weights are kept.
    """
    shards = _shards({name: t.detach().cpu().contiguous() for name, t in weights.items()}, limit)
    names = [SAFETENSORS_FILE]
    if len(shards) > 1:
        names = [f"model-{i:05}-of-{len(shards):05}.safetensors" for i in range(1, len(shards) + 1)]
    partial = [directory / f".{name}.{os.getpid()}.partial" for name in names]
    complete = False
    try:
        for file, shard in zip(partial, shards, strict=True):
            save_file(shard, file, metadata={"format": "pt"})
        complete = True
    except SafetensorError as error:  # what its writer makes of a full disk
        raise OSError(str(error)) from error
    finally:
        for file in () if complete else partial:
            file.unlink(missing_ok=True)
    for file in [file for file in directory.iterdir() if _EARLIER.fullmatch(file.name)]:
        file.unlink()
    for file, name in zip(partial, names, strict=True):
        file.replace(directory / name)
    if len(shards) > 1:
        files = {tensor: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        total = sum(tensor.nbytes for shard in shards for tensor in shard.values())
        index = {"metadata": {"total_size": total}, "weight_map": files}
        (directory / (SAFETENSORS_FILE + INDEX_SUFFIX)).write_text(json.dumps(index, indent=2) + "\n")


def _shards(weights: Mapping[str, Tensor], limit: int) -> list[dict[str, Tensor]]:
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in weights.items():
        if shards[-1] and size + tensor.nbytes > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensor
        size += tensor.nbytes
    return shards


def parse_size(size: int | str) -> int:
    """Bytes, given as such or as "200KB", "10MB", "5GB" (or KiB, MiB, GiB).

    Raises:
        UserError: it is not a size.
    """
    found = re.fullmatch(r"(\d+)\s*([KMG]?I?B?)", str(size).strip().upper())
    if found is None or found[2] not in _UNITS or int(found[1]) == 0:
        raise UserError(f"max_shard_size={size!r} is no size; write it as a number of bytes, or as '200KB', '5GB'")
    return int(found[1]) * _UNITS[found[2]]
