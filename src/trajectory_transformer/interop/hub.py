"""Model files from the Hugging Face hub, by way of its client."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub

from .. import reachability
from ..errors import UserError
from .weights import INDEX_SUFFIX, PICKLED_FILE, SAFETENSORS_FILE, WEIGHT_FILES

HUB_ID = re.compile(r"[\w][\w.-]*(/[\w][\w.-]*)?")
DOWNLOAD_OPTIONS = ("cache_dir", "force_download", "local_files_only", "revision", "token")
# What a repository may hold of each kind of weights.
_PATTERNS = (
    ("config.json", SAFETENSORS_FILE, "model-*.safetensors", SAFETENSORS_FILE + INDEX_SUFFIX),
    (PICKLED_FILE, "pytorch_model-*.bin", PICKLED_FILE + INDEX_SUFFIX),
)


def download(repo_id: str, options: Mapping[str, Any], subfolder: str = "") -> Path:
    """The folder of a repository's model files, fetched unless they are in the client's cache.

    Args:
        repo_id: such as ``CarlCochet/trajectory-transformer-hopper-medium-v2``.
        options: any of :data:`DOWNLOAD_OPTIONS`.
        subfolder: of the repository.

    Raises:
        UserError: it is not available; the message says why.
    """
    reason = None
    if not options.get("local_files_only"):
        reason = reachability.unreachable(os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/"))
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "TRUE", "YES", "ON"):
        reason = "HF_HUB_OFFLINE is set"
    chosen = {**options, "local_files_only": True} if reason else dict(options)
    folder = Path()
    prefix = f"{subfolder.strip('/')}/" if subfolder else ""
    try:
        for patterns in _PATTERNS:
            wanted = [prefix + pattern for pattern in patterns]
            root = huggingface_hub.snapshot_download(repo_id, allow_patterns=wanted, etag_timeout=2, **chosen)
            folder = Path(root) / prefix
            if any((folder / name).is_file() for name in WEIGHT_FILES):
                break
    except Exception as error:  # whatever the client and the network raise
        why = reason or first_line(error)
        raise UserError(
            f"'{repo_id}' is no directory here, and could not be fetched from the hub ({why}); fetch it where there is "
            "a network and give the directory"
        ) from None
    return folder


def first_line(error: Exception) -> str:
    """Kind and first line of an error, for a sentence."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
