"""Which data and which module each learner has; all else of training is the same."""

from dataclasses import replace

import lightning as L
from torch import nn

from ..building import TYPED_BY_USER, locate, targets_in
from ..configuration import TrainConfig
from ..model.config import TransformerConfig
from ..training.checkpoint_io import run_facts, standalone_facts
from ..training.datamodule import OfflineDataModule, TrajectoryDataModule
from ..training.learner_module import LearnerModule
from ..training.metrics import make_own_metrics
from ..training.optimization import TrainingPlan
from .ensemble import DynamicsEnsemble
from .iql import ImplicitQ, reward_transform
from .transformer_module import TrajectoryModule
from .transition_datamodule import TransitionDataModule
from .transition_module import EnsembleModule, ImplicitQModule


def make_datamodule(config: TrainConfig) -> OfflineDataModule:
    """The data as ``config.learner`` sees it, not yet set up."""
    if config.learner == "transformer":
        return TrajectoryDataModule(config.data, config.seed, config.model.goal_conditioned)
    members = config.ensemble.num_members if config.learner == "ensemble" else None
    return TransitionDataModule(config.data, config.seed, members)


def require_own_classes(config: TrainConfig) -> list[str]:
    """Find the classes that ``model.block`` and ``trainer.metrics`` name, rather before data sets are made than after.

    Returns:
        The packages that the user has named for blocks, so that the run's own checkpoints may name them, too.

    Raises:
        UserError: there is no such class, or it is no module or metric.
    """
    make_own_metrics(config.trainer.metrics)
    targets = targets_in(config.model.block)
    found = [locate(target, nn.Module, "model.block", TYPED_BY_USER).__module__ for target in targets]
    return sorted({path.partition(".")[0] for path in (*targets, *found)})


def make_module(config: TrainConfig, datamodule: OfflineDataModule) -> LearnerModule:
    """The learner with its initial weights, which follow from the seed.

    Args:
        config: options of the run.
        datamodule: of :func:`make_datamodule`, set up.

    Raises:
        UserError: the data does not fit the learner.
    """
    L.seed_everything(config.seed, verbose=False)  # the initial weights; every update seeds itself
    order = datamodule.train_order()
    plan = TrainingPlan(
        config.seed, config.trainer.max_steps, order.steps_per_epoch, order.batch_size, config.trainer.log_every
    )
    if isinstance(datamodule, TrajectoryDataModule):
        return _transformer(config, datamodule, plan)
    assert isinstance(datamodule, TransitionDataModule)
    return (_iql if config.learner == "iql" else _ensemble)(config, datamodule, plan)


def _transformer(config: TrainConfig, datamodule: TrajectoryDataModule, plan: TrainingPlan) -> TrajectoryModule:
    model = TransformerConfig.for_data(
        config.model, datamodule.layout, config.data.discretizer.num_bins, config.data.sequence_length
    )
    plan = replace(plan, tokens_per_step=plan.tokens_per_step * model.block_size)
    facts = standalone_facts(config, datamodule.data, datamodule.discretizer)
    return TrajectoryModule(model, config.optimizer, plan, facts, config.trainer.metrics)


def _iql(config: TrainConfig, datamodule: TransitionDataModule, plan: TrainingPlan) -> ImplicitQModule:
    network = ImplicitQ.of_environment(datamodule.data.environment, config.iql)
    transform = reward_transform(config.iql.rewards, *datamodule.train_returns)
    facts = run_facts(config, datamodule.data)
    return ImplicitQModule(network, transform, config.data.discount, config.optimizer, plan, facts)


def _ensemble(config: TrainConfig, datamodule: TransitionDataModule, plan: TrainingPlan) -> EnsembleModule:
    environment = datamodule.data.environment
    network = DynamicsEnsemble(environment.observation_dim, environment.action_dim, config.ensemble)
    network.normalize_like(datamodule.train_set.all)
    return EnsembleModule(network, config.optimizer, plan, run_facts(config, datamodule.data))
