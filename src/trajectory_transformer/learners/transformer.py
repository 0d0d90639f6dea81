"""The Trajectory Transformer as a learner; its options are those of ``model``."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import TrainConfig, require
from ..planning.objectives import PlanningContext, make_objective, require_same_purpose
from ..training.learner import Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..model.config import TransformerConfig
    from ..planning.agent import Agent
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .transformer_datamodule import TrajectoryDataModule
    from .transformer_module import TrajectoryModule


@dataclass
class TransformerLearner(Learner):
    """A transformer over the tokens of trajectories (paper §3.1), whose agent plans by beam search."""

    kind = "transformer"
    plans = True
    ignores = ()

    @override
    def check(self, config: TrainConfig) -> None:
        config.planner.require_fits(config.data.sequence_length)
        require(
            config.trainer.strategy != "fsdp" or not config.model.regresses,
            f"model.numerical_regression={config.model.numerical_regression} and model.numerical_pretraining="
            f"{config.model.numerical_pretraining} read weights that trainer.strategy=fsdp divides among processes; "
            "set both to 0",
        )
        require(
            config.trainer.strategy != "fsdp" or config.model.action_improvement == 0.0,
            f"model.action_improvement={config.model.action_improvement} is not supported with trainer.strategy=fsdp; "
            "set it to 0",
        )
        require(
            config.trainer.strategy != "fsdp" or config.model.members == 1,
            f"model.members={config.model.members} is not supported with trainer.strategy=fsdp; set it to 1",
        )
        require(
            config.trainer.strategy != "fsdp" or config.optimizer.muon == 0.0,
            f"optimizer.muon={config.optimizer.muon} needs whole matrices, which trainer.strategy=fsdp divides among "
            "processes; set it to 0",
        )
        require(
            config.trainer.strategy != "fsdp" or config.trainer.loss is None,
            "trainer.loss is not supported with trainer.strategy=fsdp; leave one of them out",
        )
        require_same_purpose(make_objective(config.planner), config.planner.name, config.model.goal_conditioned)

    @override
    def check_data(self, config: TrainConfig, datamodule: "OfflineDataModule[Any]") -> None:
        import torch

        from ..building import TYPED_BY_USER
        from ..model.gpt import TrajectoryTransformer
        from ..planning.trial import try_model, try_objective
        from .transformer_datamodule import TrajectoryDataModule
        from .trial import try_loss, try_search

        assert isinstance(datamodule, TrajectoryDataModule)
        self._require_memory(config, datamodule)
        settings = replace(config.planner, discount=config.planner.discount or config.data.discount)
        layout, discretizer, data = datamodule.layout, datamodule.discretizer, datamodule.data
        context = PlanningContext(layout, discretizer, settings, "cpu", data.environment, data.fingerprint)
        objective = make_objective(config.planner)
        objective.prepare(context)
        try_objective(objective, context)
        if config.evaluation.episodes > 0 or config.evaluation.every is not None:
            with torch.random.fork_rng(devices=[]):
                try_model(TrajectoryTransformer(_model_of(config, datamodule), TYPED_BY_USER))
        if config.planner.search is not None:
            with torch.random.fork_rng(devices=[]):
                untrained = TrajectoryTransformer(_model_of(config, datamodule), TYPED_BY_USER)
                try_search(untrained, discretizer, settings, data.environment)
        if config.trainer.loss is not None:
            with torch.random.fork_rng(devices=[]):
                try_loss(self, config, datamodule)

    def _require_memory(self, config: TrainConfig, datamodule: "TrajectoryDataModule") -> None:
        """Raise UserError if training on the windows needs more memory than there is, before allocating it."""
        import torch

        from ..available_memory import available_memory, require_memory

        on_gpu = config.trainer.accelerator in ("gpu", "auto") and torch.cuda.is_available()
        free = torch.cuda.mem_get_info()[0] if on_gpu else available_memory()
        model = _model_of(config, datamodule)
        processes = config.trainer.devices * config.trainer.num_nodes
        batch_size = max(1, min(config.data.batch_size, datamodule.num_train) // processes)
        length, width = config.data.sequence_length, datamodule.layout.transition_dim
        require_memory(
            model.training_bytes(
                batch_size, config.trainer.precision, processes if config.trainer.strategy == "fsdp" else 1
            ),
            free,
            f"windows of data.sequence_length={length} transitions of {width} tokens have {model.block_size} tokens, "
            f"and training on {batch_size} of them at once takes",
            "select fewer dimensions by data.observation_keys or data.observation_indices (pixels are too many), or "
            "reduce data.sequence_length, data.batch_size or the model",
        )

    @override
    def uses_rewards(self, config: TrainConfig) -> bool:
        return not config.model.goal_conditioned

    @override
    def make_datamodule(self, config: TrainConfig) -> "TrajectoryDataModule":
        from .transformer_datamodule import TrajectoryDataModule

        return TrajectoryDataModule(config.data, config.seed, config.model.goal_conditioned)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "TrajectoryModule":
        import torch

        from ..checkpoint import TrainingRecord
        from ..data.on_disk import forget
        from .transformer_datamodule import TrajectoryDataModule
        from .transformer_module import TrajectoryModule

        assert isinstance(datamodule, TrajectoryDataModule)
        model = _model_of(config, datamodule)
        plan = replace(plan, tokens_per_step=plan.tokens_per_step * model.block_size)
        record = TrainingRecord.of(self.kind, config, datamodule.data, datamodule.discretizer)
        metrics = config.trainer.metrics
        data = (lambda: datamodule.train_windows), (lambda: datamodule.train_table)
        module = TrajectoryModule(model, config.optimizer, plan, record, metrics, *data, config.trainer.loss)
        if module.model.numbers is not None:
            values = datamodule.train_table.values
            for member in module.members:
                assert member.model.numbers is not None
                member.model.numbers.set_values(datamodule.discretizer.centers, torch.from_numpy(values))
            forget(values)
        return module

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "Agent":
        from ..planning.agent import Agent

        return Agent.of(checkpoint, device, allow, **planner)


def _model_of(config: TrainConfig, datamodule: "TrajectoryDataModule") -> "TransformerConfig":
    from ..model.config import TransformerConfig

    sizes = config.data.discretizer.num_bins, config.data.sequence_length
    options = config.model if config.planner.uses_members else replace(config.model, members=1)
    return TransformerConfig.for_data(options, datamodule.layout, *sizes)
