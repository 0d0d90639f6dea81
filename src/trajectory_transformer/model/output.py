"""The output of ``forward``."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .memory import KeyValueCache


@dataclass
class TrajectoryTransformerOutput:
    """Results of ``forward``, by name, by index (those that are not None) and by :meth:`to_tuple`.

    Attributes:
        loss: scalar, or None without targets.
        logits: (batch, time, vocab_size + 1); the last column is the stop token.
        past_key_values: keys and values of all tokens so far, or None.
        hidden_states: n_layer + 1 tensors (batch, time, n_embd): the embeddings, then each block's output.
        attentions: n_layer tensors (batch, head, time, total time), before dropout.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: KeyValueCache | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None

    def keys(self) -> list[str]:
        """Names of the fields that are not None, in order."""
        return [field.name for field in fields(self) if getattr(self, field.name) is not None]

    def to_tuple(self) -> tuple[Any, ...]:
        """The fields that are not None, in order."""
        return tuple(getattr(self, name) for name in self.keys())

    def __getitem__(self, key: int | slice | str) -> Any:
        if not isinstance(key, str):
            return self.to_tuple()[key]
        if key not in self.keys():
            raise KeyError(key)
        return getattr(self, key)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.to_tuple())

    def __contains__(self, key: object) -> bool:
        return key in self.keys()

    def __len__(self) -> int:
        return len(self.keys())
