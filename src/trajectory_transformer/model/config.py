"""Configuration of the model, field for field the reference API's."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from ..layout import TransitionLayout

HIDDEN_ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")


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
        use_cache: whether ``forward`` returns keys and values when not told otherwise.

    Raises:
        ValueError: sizes below 1, contradictory dimensions, dropout outside [0, 1), or an unknown activation.
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

    def __post_init__(self) -> None:
        for name in ("vocab_size", "block_size", "n_layer", "n_head", "n_embd"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.n_embd % self.n_head:
            raise ValueError(f"n_embd={self.n_embd} must be divisible by n_head={self.n_head}")
        if self.transition_dim != self.layout.transition_dim:
            raise ValueError(
                f"transition_dim={self.transition_dim} must be observation_dim + action_dim + 2 = "
                f"{self.layout.transition_dim}"
            )
        if self.block_size > self.max_position_embeddings:
            raise ValueError(
                f"block_size={self.block_size} exceeds max_position_embeddings={self.max_position_embeddings}"
            )
        for name in ("embd_pdrop", "resid_pdrop", "attn_pdrop"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must lie in [0, 1), got {getattr(self, name)}")
        if not callable(self.hidden_act) and self.hidden_act not in HIDDEN_ACTIVATIONS:
            raise ValueError(
                f"hidden_act={self.hidden_act!r} is not one of {', '.join(HIDDEN_ACTIVATIONS)} or a function"
            )

    @property
    def layout(self) -> TransitionLayout:
        return TransitionLayout(self.observation_dim, self.action_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints.

        Raises:
            ValueError: ``hidden_act`` is a function, which no file can carry.
        """
        if callable(self.hidden_act):
            raise ValueError(
                "hidden_act is a function and cannot be saved; name one of " + ", ".join(HIDDEN_ACTIVATIONS)
            )
        return asdict(self)
