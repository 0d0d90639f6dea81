"""The Decision Transformer for Lightning: its module and data module."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..configuration import DataConfig, OptimizerConfig
from ..data.episodes import Episode
from ..data.return_windows import ReturnBatch, ReturnWindows
from ..data.transition_set import return_range
from ..training.datamodule import OfflineDataModule
from ..training.optimization import TrainingPlan
from .dt_network import DecisionTransformer
from .transition_module import TransitionModule


class ReturnDataModule(OfflineDataModule[ReturnBatch]):
    """Windows of ``context`` steps of both parts; rewards are those recorded, with ``data.termination_penalty``."""

    windows: dict[str, ReturnWindows]  # "train" and "validation", on the CPU
    best_return: float  # of the training episodes

    def __init__(self, config: DataConfig, seed: int, context: int) -> None:
        super().__init__(config, seed)
        self.context = context

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        penalty, parts = self.config.termination_penalty, {"train": train, "validation": validation}
        self.windows = {part: ReturnWindows(episodes, penalty, self.context) for part, episodes in parts.items()}
        self.best_return = return_range(train, penalty)[1]

    @override
    def make_examples(self, part: str) -> ReturnWindows:
        return self.windows[part].to(self.device)


class DecisionModule(TransitionModule):
    """Minimises the squared error of actions, in units of half their range; records ``target_return`` for the agent."""

    unit = "windows"
    logged = ("loss",)
    network: DecisionTransformer

    def __init__(
        self,
        network: DecisionTransformer,
        target_return: float,
        optimizer: OptimizerConfig,
        plan: TrainingPlan,
        record: TrainingRecord,
    ) -> None:
        super().__init__(network, optimizer, plan, record)
        self.target_return = target_return

    @override
    def model_options(self) -> dict[str, Any]:
        longest, heads = self.network.step_embedding.num_embeddings, self.network.options.n_head
        return {"n_head": heads, "longest_episode": longest, "target_return": self.target_return}

    @override
    def losses(self, batch: ReturnBatch) -> tuple[Tensor, dict[str, Tensor]]:
        predicted = self.network(batch.returns, batch.observations, batch.actions, batch.steps)
        error = (predicted - batch.actions) / self.network.action_half_range
        # Differs from the original: steps past an episode's end count in the divisor, as in the transformer's loss, so
        # that the update does not depend on how a batch is divided into parts and among processes.
        loss = (error.square().mean(dim=-1) * batch.mask).mean()
        return loss, {"loss": loss}

    @override
    def examples_in(self, batch: ReturnBatch) -> int:
        return len(batch.mask)
