"""Beam search over transitions (paper §3.2; the original's ``beam_plan``), for several environments at once.

The search knows a model only as a :class:`~.decoder.BeamDecoder`, and rewards only through an estimate of their
predicted distributions.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..configuration import PlannerConfig
from ..layout import TransitionLayout
from .decoder import BeamDecoder
from .sampling import choose

RewardEstimate = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(…, vocabulary) probabilities of the reward and of the value token -> (…) reward and (…) return-to-go."""


@dataclass(frozen=True)
class SearchStep:
    """One transition of the search, for those who want to look inside.

    Attributes:
        tokens: (environment, candidates, transition) token of each candidate: action, reward and value tokens of this
            transition.
        rewards, values: (environment, candidates) estimates.
        kept: (environment, beam_width) indices of the candidates kept, best first; candidate ``b * n_expand + e`` is
            continuation ``e`` of the ``b``-th sequence kept before.
    """

    tokens: Tensor
    rewards: Tensor
    values: Tensor
    kept: Tensor


@dataclass(frozen=True)
class SearchResult:
    """The best sequence of each environment.

    Attributes:
        tokens: (environment, horizon, transition_dim) int64.
        rewards: (environment, horizon) estimated rewards.
        value: (environment,) estimated return-to-go after the last transition.
        score: (environment,) discounted sum of both: what the search maximised.
        steps: one for each transition.
    """

    tokens: Tensor
    rewards: Tensor
    value: Tensor
    score: Tensor
    steps: list[SearchStep]


class _Sequences:
    """The planned part of all sequences, beside the decoder that knows their past.

    Attributes:
        tokens: (environment, rows, time so far).
        logits: (environment, rows, vocabulary) of the next token.
        returns: (environment, rows, horizon + 1) estimated rewards, then the return-to-go after the last of them.
    """

    def __init__(self, decoder: BeamDecoder, prefix: Tensor, settings: PlannerConfig, layout: TransitionLayout) -> None:
        self.decoder, self.temperature = decoder, settings.temperature
        self.logits = decoder.prefill(prefix)
        self.tokens = prefix[:, None, -layout.observation_dim :]
        self.returns = self.logits.new_zeros(len(prefix), 1, settings.horizon + 1)

    def expand(self, candidates: int) -> None:
        self.decoder.expand(candidates)
        self.tokens, self.returns, self.logits = (
            x.repeat_interleave(candidates, dim=1) for x in (self.tokens, self.returns, self.logits)
        )

    def keep(self, rows: Tensor) -> None:
        self.decoder.keep(rows)
        self.tokens, self.returns = gather_rows(self.tokens, rows), gather_rows(self.returns, rows)

    def append(self, tokens: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(2)], dim=2)

    def extend(self, uniforms: Tensor, k: int | None, cdf: float | None) -> None:
        """Sample as many tokens as there are uniforms (environment, tokens, rows)."""
        for u in uniforms.unbind(1):
            tokens = choose(self.logits / self.temperature, u, k, cdf)
            self.append(tokens)
            self.logits = self.decoder.step(tokens)

    def reward_and_value(self, estimate: RewardEstimate) -> tuple[Tensor, Tensor, Tensor]:
        """Append reward and value tokens, greedily as the original does (its k_rew = 1).

        Returns:
            estimated rewards and returns-to-go, and the value tokens, which the decoder has not seen; each
            (environment, rows).
        """
        rewards = self.logits.softmax(dim=-1)
        tokens = self.logits.argmax(dim=-1)
        self.append(tokens)
        self.logits = self.decoder.step(tokens)
        value_tokens = self.logits.argmax(dim=-1)
        self.append(value_tokens)
        return *estimate(rewards, self.logits.softmax(dim=-1)), value_tokens


def gather_rows(values: Tensor, rows: Tensor) -> Tensor:
    """(environment, old rows, …) values and (environment, new rows) indices -> (environment, new rows, …)."""
    index = rows.view(*rows.shape, *[1] * (values.dim() - 2)).expand(*rows.shape, *values.shape[2:])
    return values.gather(1, index)


def beam_search(
    decoder: BeamDecoder,
    prefix: Tensor,
    layout: TransitionLayout,
    settings: PlannerConfig,
    estimate: RewardEstimate,
    uniforms: Tensor,
) -> SearchResult:
    """Plan ``settings.horizon`` transitions: expand, score by reward plus return-to-go, keep the best, go on.

    All candidates of the first transition continue the same prefix, so it is decoded once.

    Args:
        prefix: (environment, time) tokens: whole past transitions, then the current observation.
        estimate: reward and return-to-go from their predicted distributions.
        uniforms: (environment, horizon, transition_dim, n_expand * beam_width) numbers in [0, 1) that decide all
            draws.
        settings: ``discount`` must be set; it applies to the rewards within the plan and to the return-to-go.

    Raises:
        ValueError: the model's predictions are not finite.
    """
    assert settings.discount is not None
    width, horizon = settings.beam_width, settings.horizon
    discounts = settings.discount ** torch.arange(horizon + 1, dtype=torch.float32, device=prefix.device)
    sequences = _Sequences(decoder, prefix, settings, layout)
    scores, steps = discounts.new_zeros(len(prefix), 1), []
    for t in range(horizon):
        sequences.expand(settings.n_expand * (width if t == 0 else 1))
        sequences.extend(uniforms[:, t, layout.action], settings.k_act, settings.cdf_act)
        rewards, values, value_tokens = sequences.reward_and_value(estimate)
        sequences.returns[:, :, t], sequences.returns[:, :, t + 1] = rewards, values
        scores = (sequences.returns * discounts).sum(dim=-1)
        # Stable, so that of equal candidates (copies of one sequence) the first are kept, on every machine.
        scores, kept = (ranked[:, :width] for ranked in scores.sort(dim=1, descending=True, stable=True))
        steps.append(SearchStep(sequences.tokens[:, :, -layout.action_dim - 2 :], rewards, values, kept))
        sequences.keep(kept)
        if t < horizon - 1:
            sequences.logits = decoder.step(gather_rows(value_tokens, kept))
            sequences.extend(uniforms[:, t + 1, layout.observation, :width], settings.k_obs, cdf=None)
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("the model predicts values that are not finite (NaN weights?)")
    # Kept candidates come best first.
    best = sequences.tokens[:, 0].view(len(prefix), horizon, layout.transition_dim)
    return SearchResult(best, sequences.returns[:, 0, :-1], sequences.returns[:, 0, -1], scores[:, 0], steps)
