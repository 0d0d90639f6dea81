"""The oracle: beam search without cache, batch or tricks, one environment at a time, as the original does it.

It consumes the same uniform numbers as the product, so that both must choose the same tokens.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.model.gpt import TrajectoryTransformerModel


@dataclass
class ReferencePlan:
    tokens: Tensor  # (horizon, transition_dim)
    score: float
    kept: list[list[list[int]]]  # at each transition: action, reward and value tokens of the kept beams, best first


def keep_likely(probabilities: list[float], threshold: float) -> list[bool]:
    """Which tokens the original's cumulative filter keeps, by its definition and in plain Python."""
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
    def __init__(self, model: TrajectoryTransformerModel, settings: PlannerConfig, centers: Tensor) -> None:
        """``centers``: (transition_dim, vocab_size) the real value of each bin."""
        self.model, self.settings, self.centers = model, settings, centers

    def logits(self, sequence: list[int]) -> Tensor:
        config = self.model.config
        width = config.transition_dim
        limit = config.block_size if self.settings.window == "growing" else self.settings.context * width - 1
        while len(sequence) > limit:
            sequence = sequence[width:]
        with torch.no_grad():
            return self.model(torch.tensor([sequence]), use_cache=False).logits[0, -1]

    def extend(self, sequence: list[int], uniforms: Tensor, k: int | None, cdf: float | None) -> list[int]:
        for uniform in uniforms.tolist():
            logits = self.logits(sequence) / self.settings.temperature
            sequence = [*sequence, pick(logits, uniform, k, cdf)]
        return sequence

    def estimate(self, sequence: list[int], dimension: int) -> tuple[float, int]:
        probabilities = self.logits(sequence).softmax(0)
        return float(probabilities[:-1] @ self.centers[dimension]), int(probabilities.argmax())

    def plan(self, prefix: list[int], uniforms: Tensor) -> ReferencePlan:
        """``uniforms``: (horizon, transition_dim, n_expand * beam_width)."""
        settings, layout = self.settings, self.model.layout
        discount = settings.discount
        assert discount is not None
        beams: list[tuple[list[int], list[float]]] = [(prefix, [])] * settings.beam_width
        scores, kept_at = [0.0], []
        for t in range(settings.horizon):
            candidates = []
            copies = [beam for beam in beams for _ in range(settings.n_expand)]
            for index, (sequence, rewards) in enumerate(copies):
                u = uniforms[t, layout.action, index]
                sequence = self.extend(sequence, u, settings.k_act, settings.cdf_act)
                reward, token = self.estimate(sequence, layout.reward)
                sequence = [*sequence, token]
                value, token = self.estimate(sequence, layout.value)
                candidates.append(([*sequence, token], [*rewards, reward], value))
            scores = [sum(discount**i * r for i, r in enumerate([*rs, v])) for _, rs, v in candidates]
            order = sorted(range(len(scores)), key=lambda i: -scores[i])[: settings.beam_width]
            beams = [candidates[i][:2] for i in order]
            kept_at.append([sequence[-layout.action_dim - 2 :] for sequence, _ in beams])
            scores = [scores[i] for i in order]
            if t < settings.horizon - 1:
                beams = [
                    (self.extend(sequence, uniforms[t + 1, layout.observation, row], settings.k_obs, None), rewards)
                    for row, (sequence, rewards) in enumerate(beams)
                ]
        best = torch.tensor(beams[0][0][-settings.horizon * layout.transition_dim :])
        return ReferencePlan(best.view(settings.horizon, -1), scores[0], kept_at)
