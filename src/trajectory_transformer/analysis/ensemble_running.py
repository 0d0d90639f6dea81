"""Continuations by an ensemble of probabilistic dynamics models, each sample by one member (PETS's TS∞)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class ProbabilisticDynamics(Protocol):
    """Several models of the next observation, each a normal distribution with independent dimensions."""

    @property
    def num_members(self) -> int: ...

    def distribution(self, observations: Tensor, actions: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the next observations, in real units.

        Args:
            observations: (n, observation_dim).
            actions: (n, action_dim).
            members: (n,) int64, which member predicts each row.

        Returns:
            (n, observation_dim) each.
        """
        ...


@dataclass(frozen=True)
class GaussianContinuations:
    """Samples of an ensemble in real units; entry t follows action t.

    Attributes:
        observations: (samples, horizon, observation_dim).
        means, deviations: likewise, of the distributions that they were drawn from.
    """

    observations: Tensor
    means: Tensor
    deviations: Tensor


@torch.inference_mode()
def continue_with_members(
    dynamics: ProbabilisticDynamics,
    start: Tensor,
    actions: Tensor,
    samples: int,
    bounds: tuple[Tensor, Tensor],
    generator: torch.Generator,
    on_transitions: Callable[[int], None] = lambda _: None,
) -> GaussianContinuations:
    """Sample continuations of one start under given actions; sample i follows member ``i % num_members`` throughout.

    Args:
        dynamics: on the CPU.
        start: (observation_dim,) observation.
        actions: (horizon, action_dim), taken by all samples.
        samples: how many.
        bounds: (observation_dim,) lowest and highest values of the data. A sample is kept within three times that
            range, so that one that explodes stays a number.
        generator: decides all draws.
        on_transitions: called with the number of transitions sampled since the last call.
    """
    # Differs from the paper: it names no propagation; a member for the whole rollout is PETS's better one.
    members = torch.arange(samples) % dynamics.num_members
    low, high = bounds
    current, steps = start.expand(samples, -1), []
    for action in actions:
        mean, deviation = dynamics.distribution(current, action.expand(samples, -1), members)
        mean = mean.nan_to_num().clamp(low - (high - low), high + (high - low))
        noise = torch.randn(mean.shape, generator=generator)
        current = (mean + deviation * noise).clamp(low - (high - low), high + (high - low))
        steps.append((current, mean, deviation))
        on_transitions(samples)
    return GaussianContinuations(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))
