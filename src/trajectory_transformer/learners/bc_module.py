"""Behaviour cloning for Lightning: its module, policy and data module."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..configuration import OptimizerConfig, TrainConfig, require
from ..data.episodes import Episode
from ..data.transitions import join_episodes
from ..environments.spec import EnvironmentSpec
from ..layout import TransitionLayout
from ..progress import WorkProgress
from ..training.batches import PRETRAINING, random_stream
from ..training.datamodule import OfflineDataModule
from ..training.optimization import TrainingPlan
from .advantage_weights import AdvantageWeights, are_equal
from .mlp import make_mlp
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

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations (…, observation_dim) minus their mean, in standard deviations."""
        return (observations - self.observation_mean) / self.observation_deviation

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (…, action_dim) for observations (…, observation_dim)."""
        output = self.layers(self.normalized(observations)).tanh()
        return self.action_middle + self.action_half_range * output


class Steps:
    """Rows [observation | action | reward | return-to-go] (n, transition_dim) on one device, gathered by index."""

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def device(self) -> torch.device:
        return self.rows.device

    def gather(self, indices: Tensor) -> Tensor:
        """Rows (batch, transition_dim) with ``indices`` (batch,) in [0, len), on any device."""
        return self.rows[indices.to(self.device)]


class BestEpisodes(OfflineDataModule[Tensor]):
    """Steps of the training episodes with the highest returns, and of all validation episodes."""

    layout: TransitionLayout
    rows: dict[str, Tensor]  # of the parts "train" and "validation", on the CPU

    def __init__(self, config: TrainConfig, best_fraction: float) -> None:
        super().__init__(config.data, config.seed)
        self.best_fraction = best_fraction

    @override
    def select(self, train: list[Episode]) -> list[Episode]:
        count = max(1, round(self.best_fraction * len(train)))
        return sorted(train, key=lambda episode: -float(episode.rewards.sum()))[:count]

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        environment, parts = self.data.environment, {"train": train, "validation": validation}
        self.layout = TransitionLayout(environment.observation_dim, environment.action_dim)
        self.rows = {part: torch.from_numpy(join_episodes(parts[part], self.config).values) for part in parts}

    def returns(self, rows: Tensor) -> Tensor:
        """Return (n,) from each row's step on, its own reward included, discounted by ``data.discount``."""
        return rows[:, self.layout.reward] + self.config.discount * rows[:, self.layout.value]

    @override
    def make_examples(self, part: str) -> Steps:
        return Steps(self.rows[part].to(self.device))


class CloningModule(TransitionModule):
    """Minimises the mean squared error of actions, in units of half their range.

    With ``advantage``, each step has its weight; ``datamodule`` has the steps to which these are fitted first.
    """

    logged = ("loss",)
    only_training = ("advantage.",)
    network: CloningPolicy

    def __init__(
        self,
        network: CloningPolicy,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
        datamodule: BestEpisodes,
        advantage: AdvantageWeights | None = None,
    ) -> None:
        super().__init__(network, optimizer, plan, record)
        self.advantage, self._data = advantage, datamodule

    @override
    def pretrain(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        if self.advantage is None or self.advantage.fitted:
            return
        steps = self._data.train_examples
        assert isinstance(steps, Steps)
        observations, returns = steps.rows[:, self._data.layout.observation], self._data.returns(steps.rows)
        require(
            not are_equal(returns),
            f"all steps have a return of {returns.mean().item():g}, so learner.inverse_temperature has no effect: "
            "leave it out",
        )
        inputs = observations, self.network.normalized, returns
        stream = random_stream(self.plan.seed, PRETRAINING)
        self.advantage.fit(*inputs, max(1, self.plan.max_steps // 2), stream, stopped, progress)
        # The same on all processes, also where their processors round differently.
        self.advantage.load_state_dict(self.trainer.strategy.broadcast(self.advantage.state_dict()))

    @override
    def losses(self, batch: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        layout, network = self._data.layout, self.network
        observations = batch[:, layout.observation]
        squares = ((network(observations) - batch[:, layout.action]) / network.action_half_range).square()
        if self.advantage is not None:
            weights = self.advantage(network.normalized(observations), self._data.returns(batch))
            squares = weights.unsqueeze(1) * squares
        loss = squares.mean()
        return loss, {"loss": loss}

    @override
    def examples_in(self, batch: Tensor) -> int:
        return len(batch)
