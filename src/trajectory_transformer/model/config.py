"""Configuration of the model, field for field the reference API's, and the ``config.json`` that carries it."""

import functools
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch

from ..errors import UserError
from ..interop.config_file import (
    ARCHITECTURE,
    CONFIG_FILE,
    MODEL_TYPE,
    WITHOUT_EFFECT,
    known_fields,
    read_json,
    require_known_names,
)
from ..layout import TransitionLayout

HIDDEN_ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")
WHOLE_NUMBERS = ("vocab_size", "block_size", "action_dim", "observation_dim", "transition_dim", "n_layer", "n_head",
                 "n_embd", "max_position_embeddings")  # fmt: skip
REAL_NUMBERS = ("action_weight", "reward_weight", "value_weight", "embd_pdrop", "resid_pdrop", "attn_pdrop",
                "initializer_range", "layer_norm_eps", "kaiming_initializer_range")  # fmt: skip

Class = TypeVar("Class", bound=type)


def _with_checked_names(cls: Class) -> Class:
    """Let the constructor take :data:`WITHOUT_EFFECT`, and refuse unknown names with the nearest valid ones."""
    construct = cls.__init__

    @functools.wraps(construct)
    def __init__(self: object, *args: Any, **options: Any) -> None:
        names = [field.name for field in fields(cls)]
        kept = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        require_known_names(kept, names, "TrajectoryTransformerConfig")
        construct(self, *args, **kept)

    cls.__init__ = __init__
    return cls


@_with_checked_names
@dataclass
class TrajectoryTransformerConfig:
    """Sizes, dropout, loss weights and initialisation, with the reference API's names and defaults.

    Attributes:
        vocab_size: bins per dimension V; the model adds one stop token, V.
        action_weight, reward_weight, value_weight: loss weights of these tokens; observation tokens weigh 1.
        block_size: longest input in tokens; ``sequence_length * transition_dim - 1`` in training.
        transition_dim: must equal ``observation_dim + action_dim + 2``.
        hidden_act: "gelu" (exact), "relu", "selu", "gelu_new" (tanh approximation) or a function of a tensor.
        max_position_embeddings: upper limit of ``block_size``.
        initializer_range: standard deviation of the normal initialisation of linear and embedding weights.
        layer_norm_eps: 1e-5, what the published weights were trained with (the deprecated port's 1e-12 was unused).
        kaiming_initializer_range: widens the heads' Kaiming-uniform initialisation, a = √5 / range.
        use_cache, output_attentions, output_hidden_states, return_dict: what ``forward`` does when not told otherwise.
        goal_conditioned: the first transition of every input is a goal, as :func:`..data.goals.goal_transitions` makes
            them; one more transition then fits ``block_size``. A whole transition, so that all positions keep their
            meaning, value tokens and the mask that hides them among them.

    ``learning_rate``, ``pad_token_id``, ``bos_token_id`` and ``eos_token_id`` are taken too, as by the reference, and
    have no effect, as there.

    Raises:
        UserError: an unknown field, a value of the wrong type, sizes below 1, contradictory dimensions, dropout outside
            [0, 1), or an unknown activation.
    """

    vocab_size: int = 100
    action_weight: float = 5
    reward_weight: float = 1
    value_weight: float = 1
    block_size: int = 249
    action_dim: int = 6
    observation_dim: int = 17
    transition_dim: int = 25
    n_layer: int = 4
    n_head: int = 4
    n_embd: int = 128
    embd_pdrop: float = 0.1
    resid_pdrop: float = 0.1
    attn_pdrop: float = 0.1
    hidden_act: str | Callable[[torch.Tensor], torch.Tensor] = "gelu"
    max_position_embeddings: int = 512
    initializer_range: float = 0.02
    layer_norm_eps: float = 1e-5
    kaiming_initializer_range: float = 1
    use_cache: bool = True
    output_attentions: bool = False
    output_hidden_states: bool = False
    return_dict: bool = True
    goal_conditioned: bool = False

    model_type: ClassVar[str] = MODEL_TYPE

    def __post_init__(self) -> None:
        self._require_numbers()
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise UserError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise UserError(f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}")
        if self.transition_dim != self.layout.transition_dim:
            raise UserError(
                f"transition_dim={self.transition_dim} must be observation_dim + action_dim + 2 = "
                f"{self.layout.transition_dim}"
            )
        if self.block_size > self.max_position_embeddings:
            raise UserError(
                f"block_size={self.block_size} exceeds max_position_embeddings={self.max_position_embeddings}"
            )
        for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise UserError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not callable(self.hidden_act) and self.hidden_act not in HIDDEN_ACTIVATIONS:
            raise UserError(
                f"hidden_act={self.hidden_act!r} is not one of {', '.join(HIDDEN_ACTIVATIONS)} or a function"
            )

    def _require_numbers(self) -> None:
        for names, kinds, kind in ((WHOLE_NUMBERS, int, "a whole number"), (REAL_NUMBERS, (int, float), "a number")):
            for name in names:
                value = getattr(self, name)
                if isinstance(value, bool) or not isinstance(value, kinds):
                    raise UserError(f"{name} must be {kind}, got {value!r}")

    @property
    def sequence_length(self) -> int:
        """Transitions that it sees at once, the last one up to its value; a goal not counted."""
        return (self.block_size + 1) // self.transition_dim - self.goal_conditioned

    @property
    def layout(self) -> TransitionLayout:
        return TransitionLayout(self.observation_dim, self.action_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints.

        Raises:
            UserError: ``hidden_act`` is a function, which no file can carry.
        """
        if callable(self.hidden_act):
            raise UserError(
                "hidden_act is a function and cannot be saved; name one of " + ", ".join(HIDDEN_ACTIVATIONS)
            )
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], **overrides: Any) -> "TrajectoryTransformerConfig":
        """From the contents of a ``config.json``, of this project or of the reference.

        Args:
            values: field values; what only transformers reads is passed over.
            overrides: fields that replace them.

        Raises:
            UserError: an unknown field, or values that contradict each other.
        """
        return cls(**{**known_fields(values, [field.name for field in fields(cls)]), **overrides})

    @classmethod
    def stated(cls, values: Mapping[str, Any], path: Path) -> dict[str, Any]:
        """The fields that the contents of a ``config.json`` set, be they right or wrong.

        Raises:
            UserError: an unknown field, or another architecture; the message names ``path``.
        """
        try:
            return known_fields(values, [field.name for field in fields(cls)])
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None

    @classmethod
    def from_pretrained(cls, directory: str | os.PathLike[str], **overrides: Any) -> "TrajectoryTransformerConfig":
        """From ``config.json`` in a directory; ``overrides`` replace its fields.

        Raises:
            UserError: it is missing, is no JSON object, or :meth:`from_dict` refuses it.
        """
        path = Path(directory) / CONFIG_FILE
        stated = cls.stated(read_json(path), path)
        try:
            return cls(**{**stated, **overrides})
        except UserError as error:
            raise UserError(f"'{path}': {error}") from None

    def to_json_string(self) -> str:
        """Contents of ``config.json``: all fields and the model's type."""
        return (
            json.dumps({"model_type": MODEL_TYPE, "architectures": [ARCHITECTURE], **self.to_dict()}, indent=2) + "\n"
        )

    def save_pretrained(self, directory: str | os.PathLike[str]) -> None:
        """Write ``config.json`` into a directory, which is made if missing."""
        text = self.to_json_string()
        Path(directory).mkdir(parents=True, exist_ok=True)
        (Path(directory) / CONFIG_FILE).write_text(text)

    # The reference's other names for sizes.
    @property
    def hidden_size(self) -> int:
        return self.n_embd

    @property
    def num_attention_heads(self) -> int:
        return self.n_head

    @property
    def num_hidden_layers(self) -> int:
        return self.n_layer
