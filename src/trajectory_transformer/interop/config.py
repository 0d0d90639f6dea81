"""The reference API's configuration and its ``config.json``."""

import difflib
import functools
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Self

from ..errors import UserError
from ..model.config import TransformerConfig

CONFIG_FILE = "config.json"
MODEL_TYPE = "trajectory_transformer"

# The reference's fields, in its order; further ones of TransformerConfig follow them.
REFERENCE_FIELDS = (
    "vocab_size", "action_weight", "reward_weight", "value_weight", "block_size", "action_dim", "observation_dim",
    "transition_dim", "n_layer", "n_head", "n_embd", "embd_pdrop", "resid_pdrop", "attn_pdrop", "hidden_act",
    "max_position_embeddings", "initializer_range", "layer_norm_eps", "kaiming_initializer_range", "use_cache",
)  # fmt: skip
# Names that the reference's constructor takes but its model never reads; also accepted and ignored here.
WITHOUT_EFFECT = ("learning_rate", "pad_token_id", "bos_token_id", "eos_token_id")
# Further names in a ``config.json`` written by a transformers release or for the published weights.
_FOREIGN_NAMES = """
    N _name_or_path activation_function add_cross_attention architectures auto_map bad_words_ids batch_size
    begin_suppress_tokens chunk_size_feed_forward cross_attention_hidden_size decoder_start_token_id discount
    diversity_penalty do_sample dtype early_stopping encoder_no_repeat_ngram_size exponential_decay_length_penalty
    finetuning_task forced_bos_token_id forced_eos_token_id gradient_checkpointing id2label is_decoder
    is_encoder_decoder label2id layer_norm_epsilon length_penalty lr_decay max_length min_length model_type n_ctx
    n_epochs_ref n_positions n_saves no_repeat_ngram_size num_beam_groups num_beams num_return_sequences
    output_scores prefix problem_type pruned_heads remove_invalid_values repetition_penalty resume
    return_dict_in_generate seed sep_token_id step subsampled_sequence_length summary_activation
    summary_first_dropout summary_proj_to_labels summary_type summary_use_proj suppress_tokens task_specific_params
    temperature termination_penalty tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k
    top_p torch_dtype torchscript transformers_version typical_p use_bfloat16 use_return_dict
"""


class TrajectoryTransformerConfig(TransformerConfig):
    """Sizes, dropout, loss weights and initialisation, with the reference API's names and defaults.

    Values may be given in the reference's order. ``learning_rate`` and three token ids are accepted and ignored, as in
    the reference.

    Attributes, beside the sizes of :class:`~..model.config.TransformerConfig`:
        action_weight, reward_weight, value_weight: loss weights of these tokens; observation tokens weigh 1.
        hidden_act: "gelu" (exact), "relu", "selu", "gelu_new" (tanh approximation) or a function of a tensor.
        layer_norm_eps: 1e-5, what the published weights were trained with (the deprecated port's 1e-12 was unused).
        initializer_range: standard deviation of the normal initialisation of linear and embedding weights.
        kaiming_initializer_range: widens the heads' Kaiming-uniform initialisation, a = √5 / range.
        goal_conditioned: each input begins with a goal transition of :func:`..data.goals.goal_transitions`.
        block: class of the blocks, ``{"_target_": "package.Class", …}``; None: the paper's.

    Raises:
        UserError: an unknown field, a value of the wrong type or out of range, or contradictory dimensions.
    """

    model_type: ClassVar[str] = MODEL_TYPE
    # The reference's other names for sizes.
    hidden_size = property(lambda self: self.n_embd)
    num_attention_heads = property(lambda self: self.n_head)
    num_hidden_layers = property(lambda self: self.n_layer)

    if not TYPE_CHECKING:  # type checkers, like help(), see the fields

        @functools.wraps(TransformerConfig.__init__)
        def __init__(self, *args: Any, **options: Any) -> None:
            given = {**dict(zip(REFERENCE_FIELDS, args, strict=False)), **options}
            kept = {name: value for name, value in given.items() if name not in WITHOUT_EFFECT}
            _require_known(kept, "TrajectoryTransformerConfig")
            super().__init__(**kept)

    def to_dict(self) -> dict[str, Any]:
        """Plain values of all fields, the reference's first and in its order; raises as the base class does."""
        return dict.fromkeys(REFERENCE_FIELDS) | super().to_dict()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> Self:
        """Make a configuration from the contents of this project's or the reference's ``config.json``.

        ``overrides`` replace fields.

        Raises:
            UserError: an unknown field, or values that contradict each other.
        """
        return cls(**{**_stated(values), **overrides})

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **overrides: Any) -> Self:
        """Read ``config.json`` from a directory; ``overrides`` replace its fields.

        Raises:
            UserError: it is missing or not a JSON object, or :meth:`from_dict` raises it.
        """
        path = Path(directory) / CONFIG_FILE
        stated = read_config(path)
        try:
            return cls(**{**stated, **overrides})
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None

    def to_json_string(self) -> str:
        """The text of ``config.json``: all fields and the model's type."""
        kind = {"model_type": MODEL_TYPE, "architectures": ["TrajectoryTransformerModel"]}
        return json.dumps({**kind, **self.to_dict()}, indent=2) + "\n"

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` to a directory, which is made if missing."""
        text = self.to_json_string()
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / CONFIG_FILE).write_text(text, encoding="utf-8")


def read_config(path: Path) -> dict[str, Any]:
    """The fields that a ``config.json`` sets; UserError if one is unknown, or the model is of another type."""
    return _stated(read_json(path), f"'{path}': ")


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; UserError if the file is missing, cannot be read, or contains something else."""
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); it may be cut short") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' does not hold a JSON object")
    return values


def _stated(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """The fields of a ``config.json`` that affect the model; messages begin with ``where``."""
    model_type = values.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
        raise UserError(f"{where}model_type '{model_type}' is another architecture; only '{MODEL_TYPE}' can be read")
    ignored = {*_FOREIGN_NAMES.split(), *WITHOUT_EFFECT}
    kept = {name: value for name, value in values.items() if name not in ignored}
    _require_known(kept, f"{where}the configuration")
    if "transformers_version" in values or "layer_norm_epsilon" in values:
        # Whatever transformers wrote for these fields, its model used 1e-5 and the exact GELU.
        kept.pop("layer_norm_eps", None)
        kept.pop("hidden_act", None)
    return kept


def _require_known(options: Iterable[str], where: str) -> None:
    """Raise UserError for the first option that is not a field, and suggest similar names."""
    names = dict.fromkeys([*REFERENCE_FIELDS, *(field.name for field in fields(TransformerConfig))])
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            meant = " or ".join(f"'{other}'" for other in near)
            hint = f"did you mean {meant}?" if near else f"it has {', '.join(names)}"
            raise UserError(f"{where} has no field '{name}'; {hint}")
