"""Saving, loading and sharing models, under the reference API's names."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import nn

from ..errors import UserError
from ..model.config import TrajectoryTransformerConfig
from . import hub
from .config_file import CONFIG_FILE, read_json
from .foreign import ForeignWeights, fit_config, load_weights, require_same_tensors
from .model_card import model_card
from .weight_writing import parse_size, write_weights
from .weights import find_weights

CARD_FILE = "README.md"
# Options of transformers' loaders that have no meaning for a model of this size.
WITHOUT_MEANING = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


class TrajectoryTransformerPreTrainedTransformer(nn.Module):
    """What the reference's base class gives a model besides its layers.

    Args:
        config: sizes.

    Attributes:
        gradient_checkpointing: in training, compute each block's inner values again in the backward pass instead of
            keeping them.
    """

    config_class: ClassVar[type[TrajectoryTransformerConfig]] = TrajectoryTransformerConfig
    base_model_prefix: ClassVar[str] = "trajectory_transformer"
    main_input_name: ClassVar[str] = "trajectories"
    supports_gradient_checkpointing: ClassVar[bool] = True

    def __init__(self, config: TrajectoryTransformerConfig) -> None:
        super().__init__()
        self.config = config
        self.gradient_checkpointing = False

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Save memory in training at the cost of a second forward pass; the argument is the reference's, unused."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all inner values for the backward pass."""
        self.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.gradient_checkpointing

    @property
    def device(self) -> torch.device:
        """Of the first parameter."""
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """Of the first parameter."""
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Numbers in all parameters, or in those with gradients."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_block_size(self) -> int:
        """Longest input in tokens."""
        return self.config.block_size

    @classmethod
    def from_pretrained(
        cls,
        pretrained_transformer_name_or_path: str | os.PathLike[str],
        *,
        config: TrajectoryTransformerConfig | None = None,
        dtype: torch.dtype | str | None = None,
        subfolder: str = "",
        **options: Any,
    ) -> Self:
        """A model in evaluation mode, from a directory or from the hub.

        Reads ``model.safetensors`` or the old ``pytorch_model.bin``, whole or in shards, and never executes anything.
        Where ``config.json`` contradicts the weights (it does in most published sets), the weights are right, and a
        warning says what was wrong.

        Args:
            pretrained_transformer_name_or_path: a directory, or a hub id.
            config: replaces ``config.json``, and must fit the weights.
            dtype: of the parameters; "auto": as stored; None: float32. ``torch_dtype`` is another name for it.
            subfolder: of the directory or repository.
            options: configuration fields that replace those of ``config.json``; the hub client's ``cache_dir``,
                ``force_download``, ``local_files_only``, ``revision`` and ``token``.

        Raises:
            UserError: there is no such directory and the hub does not give it; a file is missing, damaged, or holds
                more than tensors; the weights are another model's.
        """
        dtype = options.pop("torch_dtype", None) if dtype is None else dtype
        hub_options = {name: options.pop(name) for name in hub.DOWNLOAD_OPTIONS if name in options}
        chosen = {name: value for name, value in options.items() if name not in WITHOUT_MEANING}
        directory = _directory(pretrained_transformer_name_or_path, hub_options, subfolder)
        found = load_weights(find_weights(directory), _dtype(dtype))
        if config is None:
            config = _config(directory, chosen, found)
        with torch.random.fork_rng(devices=[]):  # initial weights, overwritten at once
            model = cls(config)
        require_same_tensors(model, found.weights, found.path)
        model.to(found.dtype).load_state_dict(found.weights)
        return model.eval()

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and, unless there is one, a model card ``README.md``.

        Args:
            save_directory: made if missing; weights in it are replaced.
            max_shard_size: bytes of one file, also as "200KB", "10MB", "5GB"; larger models are cut into shards.
            is_main_process: False to do nothing, as one process among several.
            push_to_hub: also commit it to the hub, as ``repo_id``, or under the directory's name.
            options: of :meth:`push_to_hub`; also the reference's ``safe_serialization``, which has to be True.

        Raises:
            UserError: the configuration holds a function, the size is not one, an option is unknown, or the directory
                cannot be written.
        """
        if not options.pop("safe_serialization", True):
            raise UserError("safe_serialization=False asks for pickled weights; only safetensors are written")
        if options and not push_to_hub:
            raise UserError(f"save_pretrained has no option {', '.join(options)} unless push_to_hub=True")
        if not is_main_process:
            return
        directory = Path(save_directory)
        config_text, limit = self.config.to_json_string(), parse_size(max_shard_size)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_weights(self.state_dict(), directory, limit)
            (directory / CONFIG_FILE).write_text(config_text)
            if not (directory / CARD_FILE).exists():
                (directory / CARD_FILE).write_text(model_card(self.config, self.num_parameters()))
        except OSError as error:
            raise UserError(f"the model could not be saved in '{directory}': {error.strerror or error}") from error
        if push_to_hub:
            self.push_to_hub(options.pop("repo_id", directory.name), **options)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        commit_message: str = "Upload a Trajectory Transformer",
        private: bool | None = None,
        max_shard_size: int | str = "5GB",
        **options: Any,
    ) -> Any:
        """Commit what :meth:`save_pretrained` writes to the hub.

        Args:
            repo_id: user or organisation, and name; made if there is none.
            commit_message: of the commit.
            private: whether a new repository is; None: the account's default.
            max_shard_size: as for :meth:`save_pretrained`.
            options: the client's ``token``, ``revision`` and ``create_pr``.

        Returns:
            The client's description of the commit.

        Raises:
            UserError: the hub refused it or cannot be reached.
        """
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory, max_shard_size=max_shard_size)
            return hub.upload(Path(directory), repo_id, commit_message, private, options)


def _directory(name: str | os.PathLike[str], hub_options: dict[str, Any], subfolder: str) -> Path:
    directory = Path(name)
    if directory.is_dir():
        return directory / subfolder
    if directory.exists():
        raise UserError(
            f"'{directory}' is a file, not a directory; `python -m trajectory_transformer.interop.convert {directory} "
            "DIRECTORY` makes one of it"
        )
    if not hub.HUB_ID.fullmatch(str(name)):
        raise UserError(f"there is no directory '{directory}', and that is no hub id (OWNER/NAME) either")
    return hub.download(str(name), hub_options, subfolder)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    named = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not isinstance(named, torch.dtype):
        raise UserError(f"dtype='{dtype}' is no torch dtype; choose one such as torch.float32, or 'auto'")
    return None if dtype == "auto" else named


def _config(directory: Path, chosen: dict[str, Any], found: ForeignWeights) -> TrajectoryTransformerConfig:
    """The directory's configuration with the caller's choices, corrected where the weights contradict it."""
    path = directory / CONFIG_FILE
    stated = TrajectoryTransformerConfig.stated(read_json(path), path)
    config, corrections = fit_config(stated, chosen, found.weights, found.path)
    if corrections:
        warn_of_corrections(path, corrections)
    return config


def warn_of_corrections(path: Path, corrections: Sequence[str]) -> None:
    """Say what of a configuration file the weights contradict."""
    warnings.warn(f"'{path}' does not fit the weights beside it: {'; '.join(corrections)}", stacklevel=4)
