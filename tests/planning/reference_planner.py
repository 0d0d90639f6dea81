"""The oracle: beam search without a cache, one environment at a time, as in the original.

It uses the same uniform numbers as the planner, so both must choose the same tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.model.gpt import TrajectoryTransformer
from trajectory_transformer.planning.beam_search import SearchResult
from trajectory_transformer.planning.planner import BeamPlanner


@dataclass
class ReferencePlan:
    tokens: Tensor  # (horizon, transition_dim)
    score: float
    kept: list[list[list[int]]]  # at each transition: action, reward and value tokens of the kept beams, best first
    rewards: list[float]  # estimated, of the best sequence
    value: float


def keep_likely(probabilities: list[float], threshold: float) -> list[bool]:
    """The tokens that the original's cumulative filter keeps, computed by its definition in plain Python."""
    ascending = sorted(probabilities)
    cutoff, mass = ascending[0], 0.0
    for p in ascending:
        mass += p
        if mass >= threshold:
            break
        cutoff = p
    kept = [p > cutoff for p in probabilities]
    return kept if any(kept) else [True] * len(kept)


def pick(logits: Tensor, uniform: float, k: int | None, cdf: float | None) -> int:
    """One token from (vocabulary,) logits."""
    if k == 1:
        return int(logits.argmax())
    if cdf is not None:
        kept = keep_likely(logits.softmax(0).tolist(), cdf)
        logits = torch.where(torch.tensor(kept), logits, -1000.0)
    if k is not None:
        logits = torch.where(logits >= logits.sort(descending=True).values[k - 1], logits, -torch.inf)
    cumulative = logits.softmax(0).cumsum(0)
    return int((cumulative <= uniform * cumulative[-1]).sum())


class ReferencePlanner:
    def __init__(self, model: TrajectoryTransformer, settings: PlannerConfig, centers: Tensor) -> None:
        """``centers``: (transition_dim, vocab_size) the real value of each bin."""
        self.model, self.settings, self.centers = model, settings, centers

    def logits(self, sequences: list[list[int]]) -> Tensor:
        """Logits after each sequence; the whole window is computed again for every token."""
        width = self.model.config.transition_dim
        growing = self.settings.window == "growing"
        limit = self.model.config.block_size if growing else self.settings.context * width - 1
        while len(sequences[0]) > limit:
            sequences = [sequence[width:] for sequence in sequences]
        with torch.no_grad():
            return self.model(torch.tensor(sequences), use_cache=False).logits[:, -1]

    def extend(self, sequences: list[list[int]], uniforms: Tensor, k: int | None, cdf: float | None) -> list[list[int]]:
        """``uniforms``: (tokens, sequences)."""
        for row in uniforms.tolist():
            logits = self.logits(sequences) / self.settings.temperature
            chosen = [pick(of_one, uniform, k, cdf) for of_one, uniform in zip(logits, row, strict=True)]
            sequences = [[*sequence, token] for sequence, token in zip(sequences, chosen, strict=True)]
        return sequences

    def estimate(self, sequences: list[list[int]], dimension: int) -> tuple[list[float], list[list[int]]]:
        probabilities = self.logits(sequences).softmax(-1)
        tokens = probabilities.argmax(-1).tolist()
        longer = [[*sequence, token] for sequence, token in zip(sequences, tokens, strict=True)]
        return (probabilities[:, :-1] @ self.centers[dimension]).tolist(), longer

    def plan(self, prefix: list[int], uniforms: Tensor) -> ReferencePlan:
        """``uniforms``: (horizon, transition_dim, n_expand * beam_width)."""
        settings, layout = self.settings, self.model.layout
        discount = settings.discount
        assert discount is not None
        beams, rewards = [prefix] * settings.beam_width, [[] for _ in range(settings.beam_width)]
        scores, kept_at, best_rewards, best_value = [0.0], [], [0.0], 0.0
        for t in range(settings.horizon):
            candidates = [beam for beam in beams for _ in range(settings.n_expand)]
            earned = [of_beam for of_beam in rewards for _ in range(settings.n_expand)]
            candidates = self.extend(candidates, uniforms[t, layout.action], settings.k_act, settings.cdf_act)
            reward, candidates = self.estimate(candidates, layout.reward)
            value, candidates = self.estimate(candidates, layout.value)
            earned = [[*before, r] for before, r in zip(earned, reward, strict=True)]
            scores = [sum(discount**i * r for i, r in enumerate([*earned[c], value[c]])) for c in range(len(value))]
            order = sorted(range(len(scores)), key=lambda i: -scores[i])[: settings.beam_width]
            beams, rewards = [candidates[i] for i in order], [earned[i] for i in order]
            kept_at.append([sequence[-layout.action_dim - 2 :] for sequence in beams])
            scores = [scores[i] for i in order]
            best_rewards, best_value = rewards[0], value[order[0]]
            if t < settings.horizon - 1:
                u = uniforms[t + 1, layout.observation, : settings.beam_width]
                beams = self.extend(beams, u, settings.k_obs, None)
        best = torch.tensor(beams[0][-settings.horizon * layout.transition_dim :])
        return ReferencePlan(best.view(settings.horizon, -1), scores[0], kept_at, best_rewards, best_value)


class ReferenceBeamPlanner(BeamPlanner):
    """A :class:`BeamPlanner` that plans with the oracle, from the same random numbers."""

    def plan(
        self,
        prefix: Tensor,
        generators: Sequence[torch.Generator],
        share: float = 1.0,
        executed: Tensor | None = None,
    ) -> SearchResult:
        edges = self.discretizer.edges
        oracle = ReferencePlanner(self.model, self.settings, (edges[:, 1:] + edges[:, :-1]) / 2)
        shape = (self.settings.horizon, self.layout.transition_dim, self.settings.n_expand * self.settings.beam_width)
        plans = [
            oracle.plan(tokens, torch.rand(shape, generator=generator))
            for tokens, generator in zip(prefix.tolist(), generators, strict=True)
        ]
        return SearchResult(
            torch.stack([plan.tokens for plan in plans]),
            torch.tensor([plan.rewards for plan in plans]),
            torch.tensor([plan.value for plan in plans]),
            torch.tensor([plan.score for plan in plans]),
            [],
            self.settings.beam_width,
        )
