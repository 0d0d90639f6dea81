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


@dataclass(frozen=True)
class SearchResult:
    """The best sequence of each environment."""

    tokens: Tensor  # (environment, horizon, transition_dim) int64; fewer transitions where a deadline ended the search
    rewards: Tensor  # (environment, horizon) estimates, or NaN
    value: Tensor  # (environment,) estimated return-to-go after the last transition, or NaN
    score: Tensor  # (environment,) the objective's
    steps: list[SearchStep]  # one for each transition; empty for a search by likelihood
    beam_width: int  # sequences kept; fewer than ``settings.beam_width`` if the deadline required it
    late: bool = False  # the deadline had passed when the search ended
    # (environment, beams, observation_dim) observation tokens sampled after each step but the last; empty for a search
    # by likelihood, and for a captured search, which copies only what plans need
    observations: list[Tensor] = field(default_factory=list)

    def states_ahead(self, environment: int, number: int, transitions: int | None = None) -> Tensor:
        """Predicted observation tokens of the best sequences of one environment, best first, without the present ones.

        Args:
            environment: index of the environment.
            number: of sequences, at most.
            transitions: return the sequences kept after this many transitions; None: after the last.

        Returns:
            (beams, transitions - 1, observation_dim); empty if ``observations`` is empty, or after one transition.
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
        traced = functools.partial(_actions_so_far, tuple(steps), actions)
        scores = objective(Candidates(t, returns, discounts, whole, layout, decode, likelihoods, traced, executed))
        require(
            scores.shape == whole.shape[:2],
            f"planner.objective returns scores of shape {tuple(scores.shape)}; it must return one for each candidate, "
            f"{tuple(whole.shape[:2])}",
        )
        scores = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        # A stable sort keeps the first of equal candidates (copies of one sequence) on every machine.
        scores, kept = (ranked[:, :width] for ranked in scores.sort(dim=1, descending=True, stable=True))
        steps.append(SearchStep(tokens, estimates[:, :, 0], estimates[:, :, 1], kept))
        seen.append(observations)
        decoder.keep(kept)
        returns = gather_rows(returns, kept)
        likelihoods = None if likelihoods is None else likelihoods.gather(1, kept)
        if deadline is not None:
            kept.cpu()  # waits for the GPU's queued work
            deadline.planned(t, environments, width)
    late = deadline is not None and deadline.late
    rewards, value = returns[:, 0, : len(steps)], returns[:, 0, len(steps)]
    return SearchResult(_best(steps, seen), rewards, value, scores[:, 0], steps, width, late, seen[1:])


def _best(steps: list[SearchStep], observations: list[Tensor]) -> Tensor:
    """Tokens (environment, horizon, transition_dim) of the best sequence, traced back from the last step.

    ``observations`` are, for each step, the tokens (environment, rows, observation_dim) before its candidates' actions.
    """
    row, found = torch.zeros_like(steps[-1].kept[:, :1]), []
    for step, observation in zip(reversed(steps), reversed(observations), strict=True):
        candidate = step.kept.gather(1, row)
        row = candidate // (step.tokens.shape[1] // observation.shape[1])
        found.append(torch.cat([gather_rows(observation, row), gather_rows(step.tokens, candidate)], dim=2))
    return torch.cat(found[::-1], dim=1)


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


def _actions_so_far(steps: Sequence[SearchStep], actions: Tensor) -> Tensor:
    """Action tokens (environment, n, t + 1, action_dim) of plans: of earlier steps, and the latest ``actions``."""
    kept = steps[-1].kept.shape[1]
    earlier = _kept_actions(steps, actions.shape[2], kept).repeat_interleave(actions.shape[1] // kept, dim=1)
    return torch.cat([earlier, actions.unsqueeze(2)], dim=2)


def _kept_actions(steps: Sequence[SearchStep], action_dim: int, number: int) -> Tensor:
    """Action tokens (environment, number, steps, action_dim) of the sequences kept after the last step, best first."""
    kept = steps[-1].kept[:, :number]
    row = torch.arange(kept.shape[1], device=kept.device).expand(kept.shape)
    found = []
    for t in range(len(steps) - 1, -1, -1):
        candidate = steps[t].kept.gather(1, row)
        found.append(gather_rows(steps[t].tokens[:, :, :action_dim], candidate))
        row = candidate // (steps[t].tokens.shape[1] // (steps[t - 1].kept.shape[1] if t > 0 else 1))
    return torch.stack(found[::-1], dim=2)


def require_finite_scores(scores: Tensor) -> None:
    """Check that the best scores (environment,) are finite.

    Raises:
        UserError: they are not; the message names the environments.
    """
    broken = [environment for environment, score in enumerate(scores.tolist()) if not math.isfinite(score)]
    require(
        not broken,
        f"no prediction of the model is finite in environment {broken}: its weights or the bins' edges are broken",
    )
