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
        kept: (environment, beam_width) indices of the candidates kept, best first.
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


class _Search:
    """The state of one search: rows of tokens, their logits, their rewards."""

    def __init__(self, decoder: BeamDecoder, prefix: Tensor, horizon: int) -> None:
        self.decoder = decoder
        self.logits = decoder.prefill(prefix)
        self.tokens = prefix.unsqueeze(1)
        self.returns = self.logits.new_zeros(len(prefix), 1, horizon + 1)

    def select(self, rows: Tensor) -> None:
        self.decoder.select(rows)
        self.tokens, self.returns, self.logits = (
            gather_rows(x, rows) for x in (self.tokens, self.returns, self.logits)
        )

    def append(self, tokens: Tensor) -> None:
        self.tokens = torch.cat([self.tokens, tokens.unsqueeze(2)], dim=2)

    def step(self, tokens: Tensor) -> None:
        self.append(tokens)
        self.logits = self.decoder.step(tokens)


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

    Candidates lie in the original's order: candidate ``e * rows + b`` is continuation ``e`` of kept sequence ``b``.
    All candidates begin with the same prefix, so it is decoded once.

    Args:
        prefix: (environment, time) tokens: whole past transitions, then the current observation.
        estimate: reward and return-to-go from their predicted distributions.
        uniforms: (environment, horizon, transition_dim, n_expand * beam_width) numbers in [0, 1) that decide all
            draws.
        settings: ``discount`` must be set; it applies to the rewards within the plan and to the return-to-go.

    Raises:
        ValueError: the model's predictions are not finite.
    """
    environments = len(prefix)
    width, expand, horizon = settings.beam_width, settings.n_expand, settings.horizon
    assert settings.discount is not None
    discounts = settings.discount ** torch.arange(horizon + 1, dtype=torch.float32, device=prefix.device)
    search = _Search(decoder, prefix, horizon)
    scores, steps = search.logits.new_zeros(environments, 1), []
    for t in range(horizon):
        parents = torch.zeros(width, dtype=torch.int64) if t == 0 else torch.arange(width)
        search.select(parents.repeat(expand).to(prefix.device).expand(environments, -1))
        for dimension in range(layout.action.start, layout.action.stop):
            u = uniforms[:, t, dimension]
            search.step(choose(search.logits / settings.temperature, u, settings.k_act, settings.cdf_act))
        rewards_probabilities = search.logits.softmax(dim=-1)
        search.step(search.logits.argmax(dim=-1))  # the original samples reward and value greedily: k_rew = 1
        values_probabilities = search.logits.softmax(dim=-1)
        value_tokens = search.logits.argmax(dim=-1)
        search.append(value_tokens)
        rewards, values = estimate(rewards_probabilities, values_probabilities)
        search.returns[:, :, t], search.returns[:, :, t + 1] = rewards, values
        scores = (search.returns * discounts).sum(dim=-1)
        # Stable, so that of equal candidates (copies of one sequence) the first are kept, on every machine.
        scores, kept = (ranked[:, :width] for ranked in scores.sort(dim=1, descending=True, stable=True))
        steps.append(SearchStep(search.tokens[:, :, -layout.action_dim - 2 :], rewards, values, kept))
        search.select(kept)
        if t < horizon - 1:
            search.logits = decoder.step(gather_rows(value_tokens, kept))
            for dimension in range(layout.observation_dim):
                u = uniforms[:, t + 1, dimension, :width]
                search.step(choose(search.logits / settings.temperature, u, settings.k_obs))
    if not bool(torch.isfinite(scores).all()):
        raise ValueError("the model predicts values that are not finite (NaN weights?)")
    # Kept candidates come best first.
    best = search.tokens[:, 0, -horizon * layout.transition_dim :].view(environments, horizon, layout.transition_dim)
    return SearchResult(best, search.returns[:, 0, :-1], search.returns[:, 0, -1], scores[:, 0], steps)
