"""The Decision Transformer as a learner: it predicts actions from a target return and the steps before."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from ..configuration import LARGEST, TrainConfig, require, validate, within
from ..training.learner import OPTIONS_OF_WINDOWS, Learner

if TYPE_CHECKING:  # options are checked before torch is loaded
    from ..checkpoint import Checkpoint
    from ..training.datamodule import OfflineDataModule
    from ..training.optimization import TrainingPlan
    from .dt_agent import DecisionAgent
    from .dt_module import DecisionModule, ReturnDataModule


@dataclass
class ReturnConditioned(Learner):
    """The Decision Transformer (Chen et al. 2021), with its paper's sizes for locomotion."""

    kind = "dt"
    ignores = (*OPTIONS_OF_WINDOWS, "data.discount", "data.continue_truncated")

    context: int = within(20, 1, 1000)
    """Steps in the model's input."""
    n_layer: int = within(3, 1, 1000)
    """Transformer blocks."""
    n_head: int = within(1, 1, 65_536)
    """Attention heads per block."""
    n_embd: int = within(128, 1, 65_536)
    """Width of the model, over all heads together."""
    dropout: float = within(0.1, 0.0, below=1.0)
    """Dropout probability of embeddings, attention weights and the blocks' outputs."""
    target_return: float | None = within(None, -LARGEST, LARGEST)
    """Return that the policy aims at; null is the best return of the training episodes times target_factor."""
    target_factor: float = within(1.0, high=LARGEST, above=0.0)
    """Factor of the best training return when target_return is null."""
    return_scale: float | None = within(None, high=LARGEST, above=0.0)
    """Divisor of returns; null is the largest return-to-go of the training episodes, whatever its sign."""

    def __post_init__(self) -> None:
        validate("learner.", self)
        require(
            self.n_embd % self.n_head == 0,
            f"learner.n_embd={self.n_embd} must be divisible by learner.n_head={self.n_head}",
        )
        require(
            self.target_return is None or self.target_factor == 1.0,
            f"learner.target_factor={self.target_factor:g} has no effect beside learner.target_return; leave out one",
        )

    @override
    def make_datamodule(self, config: TrainConfig) -> "ReturnDataModule":
        from .dt_module import ReturnDataModule

        return ReturnDataModule(config.data, config.seed, self.context)

    @override
    def make_module(
        self, config: TrainConfig, datamodule: "OfflineDataModule[Any]", plan: "TrainingPlan"
    ) -> "DecisionModule":
        from ..checkpoint import TrainingRecord
        from .dt_module import DecisionModule, ReturnDataModule
        from .dt_network import DecisionTransformer

        assert isinstance(datamodule, ReturnDataModule)
        data, windows = datamodule.data, datamodule.windows["train"]
        network = DecisionTransformer(data.environment, self, data.longest_episode)
        network.normalize_like(windows.observations, windows.returns, self.return_scale)
        target = self.target_return
        if target is None:
            target = self.target_factor * datamodule.best_return
        record = TrainingRecord.of(self.kind, config, data)
        return DecisionModule(network, target, config.optimizer, plan, record)

    @override
    def make_agent(
        self, checkpoint: "Checkpoint", device: str, planner: Mapping[str, Any], allow: Sequence[str] = ()
    ) -> "DecisionAgent":
        from ..checkpoint import fitting_parts
        from .dt_agent import DecisionAgent
        from .dt_network import DecisionTransformer

        self.require_no_planner(checkpoint, planner)
        environment = checkpoint.training.environment
        with fitting_parts(checkpoint.name):
            longest, target = int(checkpoint.model["longest_episode"]), float(checkpoint.model["target_return"])
        network = checkpoint.build("network", partial(DecisionTransformer, environment, self, longest))
        return DecisionAgent(network.to(device).eval(), environment, device, target)
