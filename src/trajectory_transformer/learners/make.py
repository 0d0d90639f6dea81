"""Which data and which module each learner has; all else of training is the same."""

from dataclasses import replace

import lightning as L

from ..configuration import TrainConfig
from ..training.checkpoint_io import run_facts, standalone_facts
from ..training.datamodule import OfflineDataModule, TrajectoryDataModule
from ..training.learner_module import LearnerModule
from ..training.optimization import TrainingPlan
from .ensemble import DynamicsEnsemble
from .iql import ImplicitQ, reward_transform
from .transformer_module import TrajectoryModule, make_model_config
from .transition_datamodule import TransitionDataModule
from .transition_module import EnsembleModule, ImplicitQModule


def make_datamodule(config: TrainConfig) -> OfflineDataModule:
    """The data as ``config.learner`` sees it, not yet set up."""
    if config.learner == "transformer":
        return TrajectoryDataModule(config.data, config.seed, config.model.goal_conditioned)
    members = config.ensemble.num_members if config.learner == "ensemble" else None
    return TransitionDataModule(config.data, config.seed, members)


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
    model = make_model_config(
        config.model, datamodule.layout, config.data.discretizer.num_bins, config.data.sequence_length
    )
    plan = replace(plan, tokens_per_step=plan.tokens_per_step * model.block_size)
    facts = standalone_facts(config, datamodule.data, datamodule.discretizer)
    return TrajectoryModule(model, config.optimizer, plan, facts)


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
