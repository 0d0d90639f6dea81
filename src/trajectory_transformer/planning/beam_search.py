"""Beam search over transitions (paper §3.2; the original's ``beam_plan``), for several environments at once.

The search knows a model only as a :class:`~.decoder.BeamDecoder`, rewards only through an estimate of their predicted
distributions, and what it is for only as an :class:`~.objectives.Objective`.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..configuration import PlannerConfig, require
from ..layout import TransitionLayout
from .deadline import Deadline
from .decoder import BeamDecoder, gather_rows
from .objectives import Candidates, Objective, Return
from .sampling import Choice

RewardEstimate = Callable[[Tensor], Tensor]
"""(…, 2, vocabulary) probabilities of the reward and of the value token -> (…, 2) reward and return-to-go."""

Decode = Callable[[Tensor, slice], Tensor]
"""Tokens (…, columns) of some columns of a transition -> their real values."""


@dataclass(frozen=True)
class SearchStep:
    """One transition of the search."""

    tokens: Tensor  # (environment, candidates, action_dim + 2): action, reward and value tokens of each candidate
    rewards: Tensor  # (environment, candidates) estimates, like the values
    values: Tensor
    kept: Tensor  # (environment, beam_width) candidates, best first; b * n_expand + e continues the b-th kept before


@dataclass(frozen=True)
class SearchResult:
    """The best sequence of each environment."""

    tokens: Tensor  # (environment, horizon, transition_dim) int64; fewer transitions where a deadline ended the search
    rewards: Tensor  # (environment, horizon) estimates, or NaN
    value: Tensor  # (environment,) estimated return-to-go after the last transition, or NaN
    score: Tensor  # (environment,) by the objective
    steps: list[SearchStep]  # of each transition; none of a search for likelihood, which estimates nothing
    beam_width: int  # sequences kept; fewer than asked for where the deadline was too near for more
    late: bool = False  # the deadline had passed when the search ended
    # (environment, beams, observation_dim) tokens that follow what each step but the last kept; none where steps are
    # none, nor of a captured search, which copies no more than plans need
    observations: list[Tensor] = field(default_factory=list)

    def states_ahead(self, environment: int, number: int, transitions: int | None = None) -> Tensor:
        """Observation tokens that the best sequences of one environment lead to, best first, without the present.

        Args:
            number: of sequences, at most.
            transitions: after which they were kept; None: the last.

        Returns:
            (beams, transitions - 1, observation_dim); none where ``observations`` are none, or after one transition.
        """
        steps = self.steps[:transitions]
        seen = self.observations[: max(len(steps) - 1, 0)]
        if not seen:
            return self.tokens.new_zeros(0, 0, 0)
        row = torch.arange(min(number, steps[-1].kept.shape[1]), device=self.tokens.device)
        found = []
        for step, observations in zip(reversed(steps[1:]), reversed(seen), strict=True):
            row = step.kept[environment, row] // (step.tokens.shape[1] // observations.shape[1])
            found.append(observations[environment, row])
        return torch.stack(found[::-1], dim=1)


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
) -> SearchResult:
    """Plan ``settings.horizon`` transitions: expand, score, keep the best, go on.

    All candidates of the first transition continue the same prefix, so it is decoded once. A candidate whose
    predictions are not finite is worse than any other.

    Args:
        prefix: (environment, time) tokens: whole past transitions, then the current observation.
        estimate: reward and return-to-go from their predicted distributions.
        uniforms: (environment, horizon, transition_dim, n_expand * beam_width) numbers in [0, 1) that decide all
            draws.
        settings: ``discount`` must be set; it applies to the rewards within the plan and to the return-to-go.
        deadline: shortens and narrows the search; it has been started.
        objective: scores candidates; None: by reward plus return-to-go.
        decode: what it asks for real values.

    Returns:
        A score is -inf where all that the model predicts in that environment is not finite.

    Raises:
        UserError: the objective's scores have another shape than the candidates.
    """
    assert settings.discount is not None
    objective = Return() if objective is None else objective
    environments, width, horizon = len(prefix), settings.beam_width, settings.horizon
    for_actions = Choice(settings.k_act, settings.cdf_act, settings.temperature)
    for_observations = Choice(settings.k_obs, None, settings.temperature)
    discounts = settings.discount ** torch.arange(horizon + 1, dtype=torch.float32, device=prefix.device)
    decoder.prefill(prefix)
    observations = prefix[:, None, -layout.observation_dim :]
    returns = discounts.new_zeros(environments, 1, horizon + 1)  # estimated rewards, then the return-to-go after them
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
        # Reward and value greedily, as the original does (its k_rew = 1).
        reward_logits = decoder.logits
        reward_tokens = reward_logits.argmax(dim=-1)
        decoder.step(reward_tokens)
        value_logits = decoder.logits
        value_tokens = value_logits.argmax(dim=-1)
        estimates = estimate(torch.stack([reward_logits, value_logits], dim=2).softmax(dim=-1))
        returns[:, :, t : t + 2] = estimates
        tokens = torch.cat([actions, reward_tokens.unsqueeze(2), value_tokens.unsqueeze(2)], dim=2)
        whole = torch.cat([observations.repeat_interleave(candidates, dim=1), tokens], dim=2)
        scores = objective(Candidates(t, returns, discounts, whole, layout, decode, likelihoods))
        require(
            scores.shape == whole.shape[:2],
            f"planner.objective gives scores of shape {tuple(scores.shape)}; it must give one for each candidate, "
            f"{tuple(whole.shape[:2])}",
        )
        scores = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        # Stable, so that of equal candidates (copies of one sequence) the first are kept, on every machine.
        scores, kept = (ranked[:, :width] for ranked in scores.sort(dim=1, descending=True, stable=True))
        steps.append(SearchStep(tokens, estimates[:, :, 0], estimates[:, :, 1], kept))
        seen.append(observations)
        decoder.keep(kept)
        returns = gather_rows(returns, kept)
        likelihoods = None if likelihoods is None else likelihoods.gather(1, kept)
        if deadline is not None:
            kept.cpu()  # waits for a GPU to do what so far may only have been queued
            deadline.planned(t, environments, width)
    late = deadline is not None and deadline.late
    rewards, value = returns[:, 0, : len(steps)], returns[:, 0, len(steps)]
    return SearchResult(_best(steps, seen), rewards, value, scores[:, 0], steps, width, late, seen[1:])


def _best(steps: list[SearchStep], observations: list[Tensor]) -> Tensor:
    """Tokens (environment, horizon, transition_dim) of the sequence that came first in the end, found backwards.

    Args:
        observations: (environment, rows, observation_dim) tokens that each step's candidates follow.
    """
    row, found = torch.zeros_like(steps[-1].kept[:, :1]), []
    for step, observation in zip(reversed(steps), reversed(observations), strict=True):
        candidate = step.kept.gather(1, row)
        row = candidate // (step.tokens.shape[1] // observation.shape[1])
        found.append(torch.cat([gather_rows(observation, row), gather_rows(step.tokens, candidate)], dim=2))
    return torch.cat(found[::-1], dim=1)


def actions_to_average(steps: list[SearchStep], action_dim: int, beams: int | None) -> Tensor:
    """Action tokens (environment, number, horizon, action_dim) of several sequences.

    Args:
        steps: of the search.
        beams: those of so many of the sequences kept in the end, best first; there are no more than were kept. None:
            all candidates' of each transition, which from the second on continue those kept.
    """
    if beams is None:
        return torch.stack([step.tokens[:, :, :action_dim] for step in steps], dim=2)
    kept = steps[-1].kept[:, :beams]
    row = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape)
    found = []
    for t in range(len(steps) - 1, -1, -1):
        candidate = steps[t].kept.gather(1, row)
        found.append(gather_rows(steps[t].tokens[:, :, :action_dim], candidate))
        row = candidate // (steps[t].tokens.shape[1] // (steps[t - 1].kept.shape[1] if t > 0 else 1))
    return torch.stack(found[::-1], dim=2)


def require_finite_scores(scores: Tensor) -> None:
    """Refuse (environment,) best scores of which one is not finite.

    Raises:
        UserError: naming the environments.
    """
    broken = [environment for environment, score in enumerate(scores.tolist()) if not math.isfinite(score)]
    require(
        not broken,
        f"nothing that the model predicts in environment {broken} is finite: its weights or the bins' edges are broken",
    )
