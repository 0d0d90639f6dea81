"""``config.json``: reading it, and what to make of one that others wrote."""

import difflib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError

CONFIG_FILE = "config.json"
MODEL_TYPE = "trajectory_transformer"
ARCHITECTURE = "TrajectoryTransformerModel"

# Names that the reference's constructor takes and its model never reads; accepted, without effect here too.
WITHOUT_EFFECT = ("learning_rate", "pad_token_id", "bos_token_id", "eos_token_id")
# What else ``config.json`` holds when a transformers release or the published weight sets wrote it.
_FOREIGN = """
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
FOREIGN_NAMES = frozenset(_FOREIGN.split())


def require_known_names(options: Mapping[str, Any], names: list[str], where: str) -> None:
    """Refuse options that are none of ``names``.

    Raises:
        UserError: naming the first such option and what it may have meant.
    """
    for name in options:
        if name not in names:
            near = difflib.get_close_matches(name, names, n=3)
            hint = "did you mean " + " or ".join(f"'{n}'" for n in near) if near else "it has " + ", ".join(names)
            raise UserError(f"{where} has no field '{name}'; {hint}{'?' if near else ''}")


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
        UserError: the file is missing, cannot be read, or holds something else.
    """
    try:
        values = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist") from None
    except OSError as error:
        raise UserError(f"'{path}' cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"'{path}' is not valid JSON ({error}); it may be cut short") from None
    if not isinstance(values, dict):
        raise UserError(f"'{path}' does not hold a JSON object")
    return values


def known_fields(values: Mapping[str, Any], names: list[str]) -> dict[str, Any]:
    """The fields of a ``config.json`` that mean something to the model.

    A file that transformers wrote says 1e-12 for ``layer_norm_eps``, and may name an activation; its model computed
    with 1e-5 and the exact GELU whatever they said, so these are left out.

    Args:
        values: contents of the file.
        names: all fields of the model's configuration.

    Raises:
        UserError: it is another model's, or has a field that nobody knows.
    """
    model_type = values.get("model_type", MODEL_TYPE)
    if model_type != MODEL_TYPE:
        raise UserError(f"model_type '{model_type}' is another architecture; only '{MODEL_TYPE}' can be read")
    ignored = FOREIGN_NAMES.union(WITHOUT_EFFECT)
    kept = {name: value for name, value in values.items() if name not in ignored}
    require_known_names(kept, names, "the configuration")
    if "transformers_version" in values or "layer_norm_epsilon" in values:
        kept.pop("layer_norm_eps", None)
        kept.pop("hidden_act", None)
    return kept
