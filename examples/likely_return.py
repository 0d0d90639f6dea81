"""An objective of your own: the return of likely plans only.

``PYTHONPATH=examples python train.py --config-dir examples/configs planner=likely_return``
"""

from dataclasses import dataclass

from trajectory_transformer.planning.objectives import Objective


@dataclass
class LikelyReturn(Objective):
    """Return plus a penalty on plans less likely than a floor (Trajectory Autoencoding Planner, Jiang et al. 2023)."""

    floor: float = -2.0
    """Mean log-likelihood of a sampled token, in nats, below which a plan is penalised."""
    penalty: float = 10.0
    """Return subtracted for each nat below the floor."""

    needs_log_likelihoods = True

    def __call__(self, candidates):
        layout, t = candidates.layout, candidates.t
        num_tokens = layout.action_dim + t * (layout.observation_dim + layout.action_dim)
        expected = (candidates.returns * candidates.discounts).sum(dim=-1)
        return expected + self.penalty * (candidates.log_likelihoods / num_tokens).clamp(max=self.floor)
