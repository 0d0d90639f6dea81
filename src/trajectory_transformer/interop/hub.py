"""To and from the Hugging Face hub, by way of its client, which is imported only here and only when needed."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
        UserError: it cannot be had; the message says why.
    """
    client = _client()
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
            folder = Path(client.snapshot_download(repo_id, allow_patterns=wanted, etag_timeout=2, **chosen)) / prefix
            if any((folder / name).is_file() for name in WEIGHT_FILES):
                break
    except Exception as error:  # whatever the client and the network raise
        why = reason or _first_line(error)
        raise UserError(
            f"'{repo_id}' is no directory here, and could not be fetched from the hub ({why}); fetch it where there is "
            "a network and give the directory"
        ) from None
    return folder


def upload(directory: Path, repo_id: str, commit_message: str, private: bool | None, options: Mapping[str, Any]) -> Any:
    """Commit a directory's files to a repository, which is made if there is none.

    Args:
        directory: what to upload.
        repo_id: user or organisation, and name.
        commit_message: of the commit.
        private: whether a new repository is; None: the account's default.
        options: any of ``token``, ``revision``, ``create_pr``.

    Returns:
        The client's description of the commit.

    Raises:
        UserError: the hub refused it or cannot be reached.
    """
    options = {name: value for name, value in options.items() if value is not None}
    token = options.pop("token", None)
    client = _client()
    try:
        api = client.HfApi(token=token)
        made = api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
        return api.upload_folder(
            repo_id=getattr(made, "repo_id", repo_id), folder_path=directory, commit_message=commit_message, **options
        )
    except Exception as error:  # as above
        raise UserError(
            f"'{repo_id}' could not be pushed to the hub ({_first_line(error)}); `hf auth login` stores a token, and "
            "save_pretrained(DIRECTORY) needs none"
        ) from error


def _client() -> Any:
    try:
        import huggingface_hub
    except ImportError:
        raise UserError("the hub needs its client: pip install 'trajectory-transformer[hub]'") from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
