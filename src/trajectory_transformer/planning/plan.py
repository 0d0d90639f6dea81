"""Plans of an agent, and counts of them."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """The plan of each environment, as real values; NaN after the end of a plan that a deadline shortened."""

    observations: np.ndarray  # (environment, horizon, observation_dim); the first is the present one, discretised
    actions: np.ndarray  # (environment, horizon, action_dim)
    rewards: np.ndarray  # (environment, horizon) estimated; NaN for a plan by likelihood
    value: np.ndarray  # (environment,) estimated return-to-go after the plan; NaN for a plan by likelihood
    score: np.ndarray  # (environment,) the objective's score; NaN for an environment without a plan

    def predicted_return(self, discount: float) -> np.ndarray:
        """Predicted return (environment,) from the present on; NaN for a plan by likelihood.

        ``discount``, in (0, 1], should be that of the model's training data.
        """
        planned = np.isfinite(self.rewards)
        discounted = np.where(planned, self.rewards, 0.0) * discount ** np.arange(self.rewards.shape[1])
        return discounted.sum(axis=1) + discount ** planned.sum(axis=1) * self.value


@dataclass(frozen=True)
class PlanCounts:
    """Counts of plans since the agent's last ``reset``, and of those that ``planner.deadline_ms`` changed."""

    plans: int = 0  # plans made, one for each environment
    shortened: int = 0  # plans with fewer transitions than ``planner.horizon``
    narrowed: int = 0  # plans with fewer beams than ``planner.beam_width``
    late: int = 0  # plans that were finished after the deadline
