"""Plans of an agent, and counts of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """Plans of each environment, in real units; NaN beyond one that a deadline cut short."""

    observations: np.ndarray  # (environment, horizon, observation_dim); the first one is the present, discretised
    actions: np.ndarray  # (environment, horizon, action_dim)
    rewards: np.ndarray  # (environment, horizon) expected; NaN of a plan for likelihood
    value: np.ndarray  # (environment,) return-to-go expected after the plan; NaN of a plan for likelihood
    score: np.ndarray  # (environment,) what the search maximised; NaN for an environment without a plan

    def predicted_return(self, discount: float) -> np.ndarray:
        """(environment,) return that is expected from the present on; NaN of a plan for likelihood.

        ``discount``, in (0, 1], should be the one that the model's return-to-go was trained with.
        """
        planned = np.isfinite(self.rewards)
        discounted = np.where(planned, self.rewards, 0.0) * discount ** np.arange(self.rewards.shape[1])
        return discounted.sum(axis=1) + discount ** planned.sum(axis=1) * self.value


@dataclass(frozen=True)
class PlanCounts:
    """Counts of plans since the agent's last ``reset``, and of those that ``planner.deadline_ms`` changed."""

    plans: int = 0  # made, one for each environment
    shortened: int = 0  # planned fewer transitions than ``planner.horizon``
    narrowed: int = 0  # kept fewer beams than ``planner.beam_width``
    late: int = 0  # were not ready in time all the same
