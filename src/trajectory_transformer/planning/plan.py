"""Plans of an agent, and counts of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The planned actions and expected observations of each environment, in real units.

    What lies beyond a plan that a deadline cut short is NaN.

    Attributes:
        observations: (environment, horizon, observation_dim); the first one is the present, discretised.
        actions: (environment, horizon, action_dim).
        rewards: (environment, horizon) expected rewards; NaN of a plan for likelihood.
        value: (environment,) expected return-to-go after the last transition; NaN of a plan for likelihood.
        score: (environment,) what the search maximised; NaN for an environment without a plan.
    """

    observations: np.ndarray
    actions: np.ndarray
    rewards: np.ndarray
    value: np.ndarray
    score: np.ndarray


@dataclass(frozen=True)
class PlanCounts:
    """Counts of plans since the agent's last ``reset``, and of those that ``planner.deadline_ms`` changed.

    Attributes:
        plans: made, one for each environment.
        shortened: planned fewer transitions than ``planner.horizon``.
        narrowed: kept fewer beams than ``planner.beam_width``.
        late: were not ready in time all the same.
    """

    plans: int = 0
    shortened: int = 0
    narrowed: int = 0
    late: int = 0
