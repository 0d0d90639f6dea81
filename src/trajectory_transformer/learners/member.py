"""One model of an ensemble, with what is trained beside it."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..building import TYPED_BY_USER
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows, WindowBatch
from ..model.action_improvement import ActionImprovement
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer
from ..model.numerical_embedding import NumericalReadout
from ..progress import WorkProgress
from .improvement import fit_improvement
from .numerical_pretraining import pretrain
from .training_loss import NextToken, TrainingLoss


class Member(nn.Module):
    """A transformer, the readout that its numerical embedding is trained with, and its correction of planned actions.

    Args:
        config: the model's options and sizes.
        improves: True if it has a correction.

    Raises:
        UserError: the model's block cannot be built.
    """

    def __init__(self, config: TransformerConfig, improves: bool) -> None:
        super().__init__()
        self.model = TrajectoryTransformer(config, TYPED_BY_USER)
        self.readout, self.improvement = None, None
        if self.model.numbers is not None and config.regresses:
            self.readout = NumericalReadout(self.model.numbers, config.n_embd)
        if improves:
            self.improvement = ActionImprovement(config.observation_dim, config.action_dim)
        self.loss: TrainingLoss = NextToken(config)

    def losses(self, batch: WindowBatch, transitions: Tensor | None, weight: float) -> tuple[Tensor, ...]:
        """The loss to differentiate, the loss of the windows, logits, and the loss's further values, one after another.

        With ``transitions``, also the loss of their regression. The arguments are those of
        :meth:`.TrajectoryModule.losses`.
        """
        loss, logits, *further = self.loss(self.model, batch)
        values = [further[0][name] for name in self.loss.logged]
        if transitions is None:
            return loss, loss, logits, *values
        assert self.readout is not None
        assert self.model.numbers is not None
        regression = weight * self.readout(self.model.numbers, transitions)
        total = loss + self.model.config.numerical_regression * regression
        return total, loss, logits, *values, regression

    def decay_parameter_groups(self, weight_decay: float) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
        """The trained parameters that decay, and those that do not."""
        decayed, others = (group["params"] for group in self.model.decay_parameter_groups(weight_decay))
        return decayed, [*others, *(() if self.readout is None else self.readout.parameters())]

    def block_matrices(self) -> list[nn.Parameter]:
        """Weights of the linear maps in the transformer's blocks, each once; none that a layer computes."""
        weights = {id(layer.weight) for layer in self.model.blocks.modules() if isinstance(layer, nn.Linear)}
        return [parameter for parameter in self.model.blocks.parameters() if id(parameter) in weights]

    def pretrain(
        self, windows: TokenWindows, updates: int, stream: torch.Generator, stopped: Callable[[], bool],
        progress: WorkProgress,
    ) -> tuple[nn.Module, ...]:  # fmt: skip
        """Pretrain the numerical embedding, unless that was completed; return the networks that were trained."""
        if self.readout is None or self.readout.pretrained:
            return ()
        assert self.model.numbers is not None
        parts = self.model.numbers, self.readout
        if pretrain(*parts, windows, updates, stream, stopped, progress):
            self.readout.pretrained.fill_(1.0)
        return parts

    def fit_improvement(
        self, table: TransitionTable, updates: int, stream: torch.Generator, stopped: Callable[[], bool],
        progress: WorkProgress,
    ) -> tuple[nn.Module, ...]:  # fmt: skip
        """Fit the correction of planned actions, unless that was completed; return the networks that were trained."""
        if self.improvement is None or self.improvement.fitted:
            return ()
        fit_improvement(self.improvement, table, self.model.config.layout, updates, stream, stopped, progress)
        return (self.improvement,)
