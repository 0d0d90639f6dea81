"""The output of ``forward``."""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

from torch import Tensor

from .memory import KeyValueCache


@dataclass
class TrajectoryTransformerOutput:
    """Results of ``forward``, read by name, by index among the fields that are not None, or by :meth:`to_tuple`."""

    loss: Tensor | None = None  # scalar, where there are targets
    logits: Tensor | None = None  # (batch, time, vocab_size + 1); the last column is the stop token
    past_key_values: KeyValueCache | None = None  # keys and values of all tokens so far
    hidden_states: tuple[Tensor, ...] | None = None  # (batch, time, n_embd) embeddings, then each block's output
    attentions: tuple[Tensor, ...] | None = None  # (batch, head, time, total time) of each layer, before dropout

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
