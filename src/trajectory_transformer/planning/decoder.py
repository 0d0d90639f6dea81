"""What the search asks of a sequence model."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .sampling import Choice, choose


class BeamDecoder(ABC):
    """Next-token logits for beams of sequences, in several environments at once.

    Sequences branch and are pruned in turn: ``expand``, some tokens, ``keep``, some tokens, ``expand``, …
    """

    @abstractmethod
    def prefill(self, tokens: Tensor) -> None:
        """Begin anew with one sequence for each environment.

        Args:
            tokens: (environment, time) integers.
        """

    @abstractmethod
    def expand(self, candidates: int) -> None:
        """Continue each sequence in several ways: candidate ``c`` of row ``b`` becomes row ``b * candidates + c``."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Prune: keep these rows, in this order; a row may be kept more than once.

        Args:
            rows: (environment, new rows) int64 indices into the present rows.
        """

    @abstractmethod
    def step(self, tokens: Tensor) -> None:
        """Append one token to each sequence.

        Args:
            tokens: (environment, rows) integers.
        """

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """(environment, rows, vocabulary) logits of the token that comes next."""

    def extend(self, uniforms: Tensor, choice: Choice) -> Tensor:
        """Sample tokens and append them, one after the other.

        Args:
            uniforms: (environment, tokens, rows) numbers in [0, 1) that decide the draws.
            choice: how they are drawn.

        Returns:
            (environment, rows, tokens) int64.
        """
        drawn = []
        for u in uniforms.unbind(1):
            drawn.append(choose(self.logits, u, choice))
            self.step(drawn[-1])
        return torch.stack(drawn, dim=2)
