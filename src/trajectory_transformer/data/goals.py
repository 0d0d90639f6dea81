"""Goals as the first transition of a sequence (paper §3.2, goal-conditioned reinforcement learning).

::

    [ goal | stop … stop ] [ observation | action | reward | value ] …      the goal is in the observation's place

Stop tokens fill the rest of the transition, so that the goal shifts later positions by exactly one transition.
"""

# Differs from the paper: the goal is a whole transition; the paper prepends its observation tokens only.

from collections.abc import Sequence

import torch
from torch import Tensor

from ..layout import TransitionLayout
from .discretizer import Discretizer


def goal_transitions(
    goals: Tensor, dimensions: Sequence[int], layout: TransitionLayout, discretizer: Discretizer
) -> Tensor:
    """Encode goals (n, goal_dim), values of these observation ``dimensions``, as (n, transition_dim) int64 tokens.

    All other dimensions hold stop tokens.
    """
    observations = torch.zeros(len(goals), layout.observation_dim)
    observations[:, list(dimensions)] = goals.to(observations)
    encoded = discretizer.encode(observations, layout.observation)
    tokens = torch.full((len(goals), layout.transition_dim), discretizer.stop_token, device=encoded.device)
    tokens[:, list(dimensions)] = encoded[:, list(dimensions)]
    return tokens
