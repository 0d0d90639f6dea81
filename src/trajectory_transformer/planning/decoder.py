"""The interface between the search and a sequence model."""

import time
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from .sampling import Choice, choose


class BeamDecoder(ABC):
    """Next-token logits for beams of sequences, in several environments at once.

    Sequences branch and are pruned in turn: ``expand``, tokens, ``keep``, tokens, ``expand``, …
    """

    model_seconds: float = 0.0
    sampling_seconds: float = 0.0

    @property
    def seconds(self) -> tuple[float, float]:
        """Seconds spent so far in the model and in sampling; on a GPU, only until the work was queued."""
        return self.model_seconds, self.sampling_seconds

    @abstractmethod
    def prefill(self, tokens: Tensor) -> None:
        """Start over with one sequence for each environment: integer tokens (environment, time)."""

    @abstractmethod
    def expand(self, candidates: int) -> None:
        """Copy each sequence into candidates: candidate ``c`` of row ``b`` becomes row ``b * candidates + c``."""

    @abstractmethod
    def keep(self, rows: Tensor) -> None:
        """Keep only these rows (environment, new rows), in this order; a row may be kept more than once."""

    @abstractmethod
    def step(self, tokens: Tensor) -> None:
        """Append one token to each sequence: integers (environment, rows)."""

    @property
    @abstractmethod
    def logits(self) -> Tensor:
        """Logits (environment, rows, vocabulary) of the next token."""

    def extend(
        self, uniforms: Tensor, choice: Choice, given: Tensor | None = None, log_likelihoods: Tensor | None = None
    ) -> Tensor:
        """Sample tokens and append them, one after the other.

        Args:
            uniforms: (environment, tokens, rows) numbers in [0, 1) that determine the draws.
            choice: filters and temperature of the draws.
            given: (environment, rows) tokens to append first.
            log_likelihoods: (environment, rows) float32; the log-probabilities, in nats, of each row's sampled tokens
                are added to it: under the model's own distribution, at temperature 1 and without filters.

        Returns:
            (environment, rows, tokens) int64.
        """
        if given is not None:
            self.step(given)
            return self.extend(uniforms, choice, log_likelihoods=log_likelihoods)
        drawn = []
        for u in uniforms.unbind(1):
            start = time.perf_counter()
            logits = self.logits
            drawn.append(choose(logits, u, choice))
            if log_likelihoods is not None:
                log_likelihoods += logits.log_softmax(dim=-1).gather(2, drawn[-1].unsqueeze(2)).squeeze(2)
            self.sampling_seconds += time.perf_counter() - start
            self.step(drawn[-1])
        return torch.stack(drawn, dim=2)


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """(environment, old rows, …) values and (environment, new rows) indices -> (environment, new rows, …)."""
    index = rows.view(*rows.shape, *[1] * (values.dim() - 2)).expand(*rows.shape, *values.shape[2:])
    return values.gather(1, index)
