"""The public model class: the transformer with saving, loading and sharing, as in the reference API."""

import os
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Self

import huggingface_hub
import torch

from ..checkpoint_file import not_finite
from ..errors import UserError
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer
from .config import CONFIG_FILE, TrajectoryTransformerConfig, read_config
from .foreign import fill, fit_config, load_weights, require_sizes
from .weights import DOWNLOAD_OPTIONS, HUB_ID, download, find_weights, first_line, write_weights

# Options of transformers' loaders that are accepted and ignored.
WITHOUT_MEANING = ("low_cpu_mem_usage", "trust_remote_code", "use_safetensors")


class TrajectoryTransformerPreTrainedModel(TrajectoryTransformer):
    """The reference's base class: saving, loading, sharing and sizes of a model.

    Arguments and errors are those of :class:`~..model.gpt.TrajectoryTransformer`, whose ``config`` is also accepted.
    """

    config: TrajectoryTransformerConfig
    config_class: ClassVar[type[TrajectoryTransformerConfig]] = TrajectoryTransformerConfig
    base_model_prefix: ClassVar[str] = "trajectory_transformer"
    main_input_name: ClassVar[str] = "trajectories"
    supports_gradient_checkpointing: ClassVar[bool] = True

    def __init__(self, config: TransformerConfig, allow: Sequence[str] | None = ()) -> None:
        own = config if isinstance(config, TrajectoryTransformerConfig) else TrajectoryTransformerConfig(**vars(config))
        super().__init__(own, allow)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: dict[str, Any] | None = None) -> None:
        """Save memory in training at the cost of a second forward pass; the argument, the reference's, is ignored."""
        self.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        """Keep all activations for the backward pass."""
        self.gradient_checkpointing = False

    @property
    def is_gradient_checkpointing(self) -> bool:
        return self.gradient_checkpointing

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def num_parameters(self, only_trainable: bool = False) -> int:
        """Number of weights in all parameters, or in trainable ones only."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def get_block_size(self) -> int:
        """Longest input in tokens."""
        return self.config.block_size

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        config: TrajectoryTransformerConfig | None = None,
        dtype: torch.dtype | str | None = None,
        subfolder: str = "",
        allow: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """Load a model in evaluation mode, from a directory or from the hub.

        Reads ``model.safetensors`` or the older ``pytorch_model.bin``, in one file or in shards, and never executes
        code. If ``config.json`` contradicts the weights, as in most published sets, the weights take precedence, and a
        warning says what was wrong.

        Args:
            pretrained_model_name_or_path: a directory, or a hub id.
            config: replaces ``config.json``; it must fit the weights.
            dtype: dtype of the parameters; "auto": as stored; None: float32. ``torch_dtype`` is another name for it.
            subfolder: folder of the model within the directory or the hub's repository.
            allow: packages besides this one that the ``block`` in ``config.json`` may name.
            options: configuration fields that replace those of ``config.json``; the hub client's ``cache_dir``,
                ``force_download``, ``local_files_only``, ``revision`` and ``token``.

        Raises:
            UserError: the directory does not exist and the hub does not provide it; a file is missing, damaged, or
                contains more than tensors; the weights are another model's; ``block`` is not allowed.
        """
        dtype = options.pop("torch_dtype", None) if dtype is None else dtype
        hub_options = {name: options.pop(name) for name in DOWNLOAD_OPTIONS if name in options}
        chosen = {name: value for name, value in options.items() if name not in WITHOUT_MEANING}
        directory = _directory(pretrained_model_name_or_path, hub_options, subfolder)
        file, config_file = find_weights(directory), directory / CONFIG_FILE
        stated = read_config(config_file) if config is None else vars(config)
        found = load_weights(file, _dtype(dtype), stated.get("block") is not None)
        if config is None:
            config, corrections = fit_config(stated, chosen, found.weights, found.path)
            if corrections:
                wrong = f"'{config_file}' does not fit the weights beside it: {'; '.join(corrections)}"
                warnings.warn(wrong, stacklevel=2)
        require_sizes(config, found)
        with torch.random.fork_rng(devices=[]):  # for the initial weights, which are then overwritten
            model = cls(config, allow)
        fill(model, found)
        return model

    def save_pretrained(
        self,
        save_directory: str | os.PathLike[str],
        *,
        max_shard_size: int | str = "5GB",
        is_main_process: bool = True,
        push_to_hub: bool = False,
        **options: Any,
    ) -> None:
        """Write ``config.json``, ``model.safetensors`` and, unless it exists, a model card ``README.md``.

        Args:
            save_directory: made if missing; weights in it are replaced.
            max_shard_size: largest size of a file, in bytes or as "200KB"; larger models are split into shards.
            is_main_process: False: do nothing.
            push_to_hub: also commit the files to the hub, as ``repo_id``, or under the directory's name.
            options: options of :meth:`push_to_hub`, and the reference's ``safe_serialization``, which must be True.

        Raises:
            UserError: ``hidden_act`` is a function, ``max_shard_size`` is not a size, an option is unknown, a weight is
                NaN or infinite, or writing fails.
        """
        if not options.pop("safe_serialization", True):
            raise UserError("safe_serialization=False requests pickled weights; only safetensors are written")
        if options and not push_to_hub:
            raise UserError(f"save_pretrained has no option {', '.join(options)} unless push_to_hub=True")
        if not is_main_process:
            return
        directory, weights = Path(save_directory), self.state_dict()
        if (name := not_finite(weights)) is not None:
            raise UserError(f"the model was not saved in '{directory}': its '{name}' holds NaN or infinity")
        config_text = self.config.to_json_string()
        try:
            huggingface_hub.split_torch_state_dict_into_shards(weights, max_shard_size=max_shard_size)
        except ValueError:
            raise UserError(
                f"max_shard_size={max_shard_size!r} is not a size; give a number of bytes, or text such as '200KB'"
            ) from None
        try:
            directory.mkdir(parents=True, exist_ok=True)
            write_weights(weights, directory, max_shard_size)
            (directory / CONFIG_FILE).write_text(config_text, encoding="utf-8")
            if not (card := directory / "README.md").exists():
                card.write_text(self._card(), encoding="utf-8")
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
        """Commit the files of :meth:`save_pretrained` to the hub; returns the client's description of the commit.

        Args:
            repo_id: "OWNER/NAME" of the repository, which is made if it does not exist.
            commit_message: message of the commit.
            private: True to make a new repository private; None: the account's default.
            max_shard_size: as in :meth:`save_pretrained`.
            options: the client's ``token``, ``revision`` and ``create_pr``.

        Raises:
            UserError: the hub refused the commit or cannot be reached.
        """
        chosen = {name: value for name, value in options.items() if value is not None}
        with tempfile.TemporaryDirectory() as directory:
            self.save_pretrained(directory, max_shard_size=max_shard_size)
            try:
                api = huggingface_hub.HfApi(token=chosen.pop("token", None))
                made = api.create_repo(repo_id=repo_id, private=private, exist_ok=True)
                target = getattr(made, "repo_id", repo_id)
                return api.upload_folder(repo_id=target, folder_path=directory, commit_message=commit_message, **chosen)
            except Exception as error:  # the client and the network may raise anything
                raise UserError(
                    f"'{repo_id}' could not be pushed to the hub ({first_line(error)}); `hf auth login` stores a "
                    "token, and save_pretrained(DIRECTORY) needs none"
                ) from error

    def _card(self) -> str:
        data = huggingface_hub.ModelCardData(
            library_name="trajectory-transformer",
            pipeline_tag="reinforcement-learning",
            tags=["trajectory-transformer", "reinforcement-learning", "offline-rl", "planning"],
        )
        template = str(Path(__file__).with_name("model_card.md"))
        facts = {"config": self.config, "num_parameters": f"{self.num_parameters():,}"}
        return str(huggingface_hub.ModelCard.from_template(data, template, **facts))


class TrajectoryTransformerModel(TrajectoryTransformerPreTrainedModel):
    """GPT over transition tokens (paper §3.1), under the reference API: ``forward``, saving, loading and sharing."""


def _directory(name: str | os.PathLike[str], hub_options: dict[str, Any], subfolder: str) -> Path:
    directory = Path(name)
    if directory.is_dir():
        return directory / subfolder
    if directory.exists():
        raise UserError(
            f"'{directory}' is a file, not a directory; `python -m trajectory_transformer.interop.convert {directory} "
            "DIRECTORY` converts it to one"
        )
    if not HUB_ID.fullmatch(str(name)):
        raise UserError(f"'{directory}' is neither an existing directory nor a hub id (OWNER/NAME)")
    return download(str(name), hub_options, subfolder)


def _dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype or torch.float32
    named = getattr(torch, dtype.removeprefix("torch."), None)
    if dtype != "auto" and not isinstance(named, torch.dtype):
        raise UserError(f"dtype='{dtype}' is not a torch dtype; choose one such as torch.float32, or 'auto'")
    return None if dtype == "auto" else named
