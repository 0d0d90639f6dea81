"""Beam search over transitions (paper §3.2; the original's ``beam_plan``), for several environments at once.

The search uses a model only as a :class:`~.decoder.BeamDecoder`, estimates rewards and return-to-go from their
predicted distributions, and ranks sequences by an :class:`~.objectives.Objective`.
"""

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional

from ..configuration import PlannerConfig, require
from ..layout import TransitionLayout
from .deadline import Deadline
from .decoder import BeamDecoder, gather_rows
from .objectives import Candidates, Objective, Return
from .sampling import Choice

RewardEstimate = Callable[[Tensor], Tensor]
"""Probabilities (…, 2, vocabulary) of the reward and value tokens -> estimated reward and return-to-go (…, 2)."""

Decode = Callable[[Tensor, slice], Tensor]
"""Tokens (…, columns) of a slice of a transition's columns -> their real values."""


@dataclass(frozen=True)
class SearchStep:
    """Candidates of one transition of the search, and those kept."""

    tokens: Tensor  # (environment, candidates, action_dim + 2): action, reward and value tokens of each candidate
    rewards: Tensor  # (environment, candidates) estimated rewards
    values: Tensor  # (environment, candidates) estimated returns-to-go
    # (environment, beam_width) indices of the candidates kept, best first; candidate b * n_expand + e continues the
    # b-th sequence kept in the step before
    kept: Tensor
    # (environment, candidates, num_bins) probabilities of the value token, for ``act=conditioned`` only
    value_probabilities: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        """All tensors that there are, by the names of their fields; the first dimension is the environment."""
        return {name: tensor for name, tensor in vars(self).items() if tensor is not None}


@dataclass(frozen=True)
class SearchResult:
    """The best sequence of each environment."""

    tokens: Tensor  # (environment, horizon, transition_dim) int64; fewer transitions where a deadline ended the search
    rewards: Tensor  # (environment, horizon) estimates, or NaN
    value: Tensor  # (environment,) estimated return-to-go after the last transition, or NaN
    score: Tensor  # (environment,) the objective's
    steps: list[SearchStep]  # one for each transition; empty for a search by likelihood or of one's own
    beam_width: int  # sequences kept; fewer than ``settings.beam_width`` if the deadline required it
    late: bool = False  # the deadline had passed when the search ended
    # (environment, beams, observation_dim) observation tokens sampled after each step but the last; empty for a search
    # by likelihood, and for a captured search, which copies only what plans need
    observations: list[Tensor] = field(default_factory=list)
    # (environment, horizon, action_dim) real values to execute instead of the tokens' actions, in searches of one's own
    actions: Tensor | None = None

    def states_ahead(self, environment: int, number: int, transitions: int | None = None) -> Tensor:
        """Predicted observation tokens (beams, transitions - 1, observation_dim) of one environment's best sequences.

        Best first, without the present ones; arguments are those of :meth:`.agent.Agent.beams`. Empty if
        ``observations`` is, or after one transition.
        """
        steps = self.steps[:transitions]
        seen = self.observations[: max(len(steps) - 1, 0)]
        if not seen:
            return self.tokens.new_zeros(0, 0, 0)
        traced = _trace_back(steps, number)[1:]
        return torch.stack(
            [observed[environment, rows[environment]] for (rows, _), observed in zip(traced, seen, strict=True)], dim=1
        )


def beam_search(
    decoder: BeamDecoder,
    prefix: Tensor,
    layout: TransitionLayout,
    settings: PlannerConfig,
    estimate: RewardEstimate,
    uniforms: Tensor,
    deadline: Deadline | None = None,
    objective: Objective | None = None,
    decode: Decode | None = None,
    executed: Tensor | None = None,
) -> SearchResult:
    """Plan ``settings.horizon`` transitions: expand each sequence, score the candidates, keep the best, repeat.

    All candidates of the first transition continue the same prefix, which is decoded once. A candidate whose
    predictions are not finite is worse than any other.

    Args:
        decoder: decodes the model.
        prefix: (environment, time) tokens: whole past transitions, then the current observation.
        layout: positions within a transition.
        settings: ``discount`` must be set; it applies to the rewards within the plan and to the return-to-go.
        estimate: estimates reward and return-to-go from their predicted distributions.
        uniforms: (environment, horizon, transition_dim, n_expand * beam_width) numbers in [0, 1) that determine all
            draws.
        deadline: shortens and narrows the search; already started.
        objective: scores candidates; None: reward plus return-to-go.
        decode: gives the objective real values.
        executed: (environment, action_dim) actions last executed, for the objective, NaN where none; None: no one has.

    Returns:
        The best sequence of each environment; its score is -inf if no prediction in that environment is finite.

    Raises:
        UserError: the shape of the objective's scores differs from that of the candidates.
    """
    assert settings.discount is not None
    objective = Return() if objective is None else objective
    environments, width, horizon = len(prefix), settings.beam_width, settings.horizon
    for_actions = Choice(settings.k_act, settings.cdf_act, settings.temperature)
    for_observations = Choice(settings.k_obs, None, settings.temperature)
    discounts = settings.discount ** torch.arange(horizon + 1, dtype=torch.float32, device=prefix.device)
    decoder.prefill(prefix)
    observations = prefix[:, None, -layout.observation_dim :]
    returns = discounts.new_zeros(environments, 1, horizon + 1)  # estimated rewards, then the return-to-go
    likelihoods = returns.new_zeros(environments, 1) if objective.needs_log_likelihoods else None
    scores, steps, seen = returns[:, :, 0], [], []
    for t in range(horizon):
        if deadline is not None:
            affordable = deadline.width(t, environments, width)
            if affordable == 0:
                break
            width = affordable
        if steps:
            values = steps[-1].tokens[:, :, -1].gather(1, steps[-1].kept)
            draws = uniforms[:, t, layout.observation, :width]
            observations = decoder.extend(draws, for_observations, values, likelihoods)
        candidates = settings.n_expand * (width if t == 0 else 1)
        decoder.expand(candidates)
        returns = returns.repeat_interleave(candidates, dim=1)
        likelihoods = None if likelihoods is None else likelihoods.repeat_interleave(candidates, dim=1)
        draws = uniforms[:, t, layout.action, : settings.n_expand * width]
        actions = decoder.extend(draws, for_actions, None, likelihoods)
        estimates, outcomes, probabilities = predict_outcome(decoder, estimate)
        returns[:, :, t : t + 2] = estimates
        tokens = torch.cat([actions, outcomes], dim=2)
        whole = torch.cat([observations.repeat_interleave(candidates, dim=1), tokens], dim=2)
        of_bins = probabilities[..., :-1]  # without the stop token
        known = Candidates(
            t=t,
            returns=returns,
            discounts=discounts,
            tokens=whole,
            layout=layout,
            decode=decode,
            sampled=likelihoods,
            traced=functools.partial(_plans_so_far, tuple(steps), tuple(seen), whole),
            executed=executed,
            probabilities=of_bins,
        )
        scores = objective(known)
        require(
            scores.shape == whole.shape[:2],
            f"planner.objective returns scores of shape {tuple(scores.shape)}; it must return one for each candidate, "
            f"{tuple(whole.shape[:2])}",
        )
        scores = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        # A stable sort keeps the first of equal candidates (copies of one sequence) on every machine.
        scores, kept = (ranked[:, :width] for ranked in scores.sort(dim=1, descending=True, stable=True))
        of_value = of_bins[:, :, 1] if settings.act == "conditioned" else None
        steps.append(SearchStep(tokens, estimates[:, :, 0], estimates[:, :, 1], kept, of_value))
        seen.append(observations)
        decoder.keep(kept)
        returns = gather_rows(returns, kept)
        likelihoods = None if likelihoods is None else likelihoods.gather(1, kept)
        if deadline is not None:
            kept.cpu()  # waits for the GPU's queued work
            deadline.planned(t, environments, width)
    late = deadline is not None and deadline.late
    rewards, value = returns[:, 0, : len(steps)], returns[:, 0, len(steps)]
    return SearchResult(_kept(steps, seen, 1)[:, 0], rewards, value, scores[:, 0], steps, width, late, seen[1:])


def predict_outcome(decoder: BeamDecoder, estimate: RewardEstimate) -> tuple[Tensor, Tensor, Tensor]:
    """Predict reward and return-to-go of sequences that end with an action, and append the reward's token.

    Returns:
        Estimates (environment, rows, 2); the most likely tokens (environment, rows, 2), as the original takes them (its
        k_rew = 1); and the predicted probabilities (environment, rows, 2, vocabulary).
    """
    reward_logits = decoder.logits
    reward_tokens = reward_logits.argmax(dim=-1)
    decoder.step(reward_tokens)
    value_logits = decoder.logits
    tokens = torch.stack([reward_tokens, value_logits.argmax(dim=-1)], dim=2)
    probabilities = torch.stack([reward_logits, value_logits], dim=2).softmax(dim=-1)
    return estimate(probabilities), tokens, probabilities


def actions_to_average(steps: Sequence[SearchStep], action_dim: int, beams: int | None) -> Tensor:
    """Action tokens (environment, number, horizon, action_dim) of the sequences whose actions are averaged.

    Args:
        steps: all steps of the search.
        beams: number of finally kept sequences, best first, at most all of them. None: all candidates of each
            transition instead.
    """
    if beams is None:
        return torch.stack([step.tokens[:, :, :action_dim] for step in steps], dim=2)
    return _kept_actions(steps, action_dim, beams)


def return_weights(
    steps: Sequence[SearchStep], centers: Tensor, discount: float, share: float, elite_share: float = 1.0
) -> Tensor:
    """Probability (environment, candidates, transitions) that a candidate's return is among the highest.

    The return of a candidate of transition t is its sequence's estimated, discounted rewards up to t plus the
    discounted return-to-go, of which the model predicts a distribution. "The highest" are the returns from a threshold
    on, which is the largest that the returns of all candidates of an environment reach with a probability of at least
    ``share``. Actions averaged with these weights are E[action | return at least the threshold] under the model. With
    ``share`` 1 all weights are equal.

    Differs from the paper, which takes the action of the highest expected return. Actions given a high return: Trifle
    (Liu et al. 2024), which draws them in the order of tokens; here all candidates are weighted.

    Args:
        steps: all steps of a search, with ``value_probabilities``.
        centers: (num_bins,) ascending returns-to-go of the value tokens.
        discount: factor per transition, in (0, 1].
        share: in (0, 1].
        elite_share: fraction, in (0, 1], of each transition's candidates that keep their weight: those of the largest
            weights. The others get 0, unless their weight is as large as one that is kept.
    """
    before, found, factor = steps[0].rewards.new_zeros(len(steps[0].rewards), 1), [], 1.0
    for step in steps:
        assert step.value_probabilities is not None
        rewards = before.repeat_interleave(step.rewards.shape[1] // before.shape[1], dim=1) + factor * step.rewards
        weights = _reaching(rewards, factor * discount * centers, step.value_probabilities, share)
        kept = max(1, round(elite_share * weights.shape[1]))
        found.append(weights.masked_fill(weights < weights.topk(kept, dim=1).values[:, -1:], 0.0))
        before, factor = rewards.gather(1, step.kept), factor * discount
    return torch.stack(found, dim=2)


def effective_share(weights: Tensor) -> Tensor:
    """Kish's effective sample size by the number n of candidates, (environment, transitions), in [1 / n, 1].

    It is (Σw)² / (n Σw²) for weights (environment, n, transitions): 1 if all are equal, 1 / n if all but one are 0.
    """
    return weights.sum(dim=1).square() / (weights.shape[1] * weights.square().sum(dim=1))


def _reaching(rewards: Tensor, values: Tensor, probabilities: Tensor, share: float) -> Tensor:
    """Probability (environment, n) that each candidate's reward plus value reaches the threshold of ``share``.

    Rewards are (environment, n), ascending values (bins,), and their probabilities (environment, n, bins). They are
    relative to those of all bins, without the stop token; candidates of probabilities that are not finite get 0.
    """
    probabilities = (probabilities / probabilities.sum(dim=-1, keepdim=True)).nan_to_num(nan=0.0)
    at_least = functional.pad(probabilities.flip(-1).cumsum(dim=-1).flip(-1), (0, 1))
    rewards = rewards.nan_to_num(nan=0.0)
    wanted = share * at_least[:, :, 0].mean(dim=1, keepdim=True)

    def reaching(thresholds: Tensor) -> Tensor:  # (environment, k) -> (environment, n, k)
        missing = (thresholds.unsqueeze(1) - rewards.unsqueeze(2)).contiguous()
        return at_least.gather(2, torch.searchsorted(values, missing))

    # Six times a sixteenth of the interval: the one with the threshold. The first begins a little below all returns.
    sections = torch.linspace(0.0, 1.0, 17, dtype=rewards.dtype, device=rewards.device)[:-1]
    low, high = rewards.amin(dim=1, keepdim=True) + values[0], rewards.amax(dim=1, keepdim=True) + values[-1]
    low = low - 0.001 * (high - low)
    width = high - low
    for _ in range(6):
        thresholds = low + width * sections
        enough = reaching(thresholds).mean(dim=1) >= wanted * (1 - 1e-5)
        low = thresholds.gather(1, (enough.sum(dim=1, keepdim=True) - 1).clamp(min=0))
        width = width / 16
    return reaching(low)[:, :, 0]


def _plans_so_far(steps: Sequence[SearchStep], observations: Sequence[Tensor], latest: Tensor) -> Tensor:
    """Tokens (environment, n, t + 1, transition_dim) of plans: of earlier steps, and the ``latest`` transition."""
    kept = steps[-1].kept.shape[1]
    earlier = _kept(steps, observations, kept).repeat_interleave(latest.shape[1] // kept, dim=1)
    return torch.cat([earlier, latest.unsqueeze(2)], dim=2)


def _kept(steps: Sequence[SearchStep], observations: Sequence[Tensor], number: int) -> Tensor:
    """Tokens (environment, number, steps, transition_dim) of the sequences kept after the last step, best first.

    ``observations`` are, for each step, the tokens (environment, rows, observation_dim) before its candidates' actions.
    """
    parts = [
        torch.cat([gather_rows(observed, rows), gather_rows(step.tokens, candidates)], dim=2)
        for step, observed, (rows, candidates) in zip(steps, observations, _trace_back(steps, number), strict=True)
    ]
    return torch.stack(parts, dim=2)


def _kept_actions(steps: Sequence[SearchStep], action_dim: int, number: int) -> Tensor:
    """Action tokens (environment, number, steps, action_dim) of the sequences kept after the last step, best first."""
    traced = zip(steps, _trace_back(steps, number), strict=True)
    return torch.stack([gather_rows(step.tokens[:, :, :action_dim], own) for step, (_, own) in traced], dim=2)


def _trace_back(steps: Sequence[SearchStep], number: int) -> list[tuple[Tensor, Tensor]]:
    """For each step, the rows that the sequences kept after the last step continue, and their candidates.

    Both are (environment, number) int64, best first; a row is a sequence kept in the step before, or the only prefix.
    """
    rows = torch.arange(min(number, steps[-1].kept.shape[1]), device=steps[-1].kept.device)
    rows = rows.expand(len(steps[-1].kept), -1)
    traced = []
    for t in range(len(steps) - 1, -1, -1):
        candidates = steps[t].kept.gather(1, rows)
        rows = candidates // (steps[t].tokens.shape[1] // (steps[t - 1].kept.shape[1] if t > 0 else 1))
        traced.append((rows, candidates))
    return traced[::-1]


def require_finite_scores(scores: Tensor) -> None:
    """Raise UserError, which names the environments, unless the best scores (environment,) are finite."""
    broken = [environment for environment, score in enumerate(scores.tolist()) if not math.isfinite(score)]
    require(
        not broken,
        f"no prediction of the model is finite in environment {broken}: its weights or the bins' edges are broken",
    )
