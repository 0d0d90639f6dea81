"""Behaviour cloning for Lightning: its module, policy and data module."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..configuration import TrainConfig
from ..data.episodes import Episode
from ..data.transition_set import TransitionBatch
from ..environments.spec import EnvironmentSpec
from .mlp import make_mlp
from .transition_datamodule import TransitionDataModule
from .transition_module import TransitionModule

if TYPE_CHECKING:
    from .bc import BehaviorCloning


class CloningPolicy(nn.Module):
    """A feed-forward policy: normalised observations -> actions; UserError unless actions have finite bounds."""

    observation_mean: Tensor  # (observation_dim,) of the training data, as the deviation; actions' are (action_dim,)
    observation_deviation: Tensor
    action_middle: Tensor
    action_half_range: Tensor

    def __init__(self, environment: EnvironmentSpec, options: "BehaviorCloning") -> None:
        super().__init__()
        low, high = (torch.tensor(bound) for bound in environment.finite_action_bounds(options.kind))
        inputs = environment.observation_dim
        self.register_buffer("observation_mean", torch.zeros(inputs))
        self.register_buffer("observation_deviation", torch.ones(inputs))
        self.register_buffer("action_middle", (low + high) / 2)
        self.register_buffer("action_half_range", (high - low) / 2)
        self.layers = make_mlp(inputs, options.hidden_layers, options.hidden_width, len(low))

    @torch.no_grad()
    def normalize_like(self, observations: Tensor) -> None:
        """Set the normalisation to mean and deviation of observations (n, observation_dim)."""
        self.observation_mean.copy_(observations.mean(dim=0))
        self.observation_deviation.copy_(observations.std(dim=0, unbiased=False).clamp_min(1e-6))

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (…, action_dim) for observations (…, observation_dim)."""
        output = self.layers((observations - self.observation_mean) / self.observation_deviation).tanh()
        return self.action_middle + self.action_half_range * output


class BestEpisodes(TransitionDataModule):
    """Transitions of the training episodes with the highest returns, and of all validation episodes."""

    def __init__(self, config: TrainConfig, best_fraction: float) -> None:
        super().__init__(config.data, config.seed)
        self.best_fraction = best_fraction

    @override
    def select(self, train: list[Episode]) -> list[Episode]:
        count = max(1, round(self.best_fraction * len(train)))
        return sorted(train, key=lambda episode: -float(episode.rewards.sum()))[:count]


class CloningModule(TransitionModule):
    """Minimises the mean squared error of actions, in units of half their range."""

    logged = ("loss",)
    network: CloningPolicy

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        error = (self.network(batch.observations) - batch.actions) / self.network.action_half_range
        loss = error.square().mean()
        return loss, {"loss": loss}
