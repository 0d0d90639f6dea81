"""The loss that the transformer's training minimises, and the base class of your own (``trainer.loss``)."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from ..building import TYPED_BY_USER, build
from ..data.windows import WindowBatch
from ..errors import UserError, in_one_line
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer
from ..model.output import TrajectoryTransformerOutput

Result = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Mapping[str, Tensor]]


class TrainingLoss(nn.Module, ABC):
    """Base of training losses, made by ``cls(config=config, **options)``; an ensemble has one for each model.

    Parameters of a loss, such as an auxiliary head's, are trained with the model's and saved in checkpoints, but not
    used in planning. What it counts must be in registered buffers, which resumed runs and CUDA graphs keep.

    Args:
        config: options of the model, and sizes of the data.
    """

    logged: ClassVar[tuple[str, ...]] = ()  # names of further values to log, as train/NAME and val/NAME
    centers: Tensor  # (transition_dim, vocab_size + 1) buffer: real value of each token; 0 for the stop token

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        self.layout = config.layout
        self.register_buffer("centers", torch.zeros(config.transition_dim, config.vocab_size + 1), persistent=False)

    @abstractmethod
    def forward(self, model: TrajectoryTransformer, batch: WindowBatch) -> Result:
        """The loss () of a batch, in nats by convention, and the logits (batch, time, vocab_size + 1).

        Args:
            model: the model; it may be called several times, with any options.
            batch: windows that begin at a transition's first dimension, or at that of the goal.

        Returns:
            The loss; logits, for the metrics; if :attr:`logged` has names, also a mapping with a number () for each.
        """


class NextToken(TrainingLoss):
    """Cross-entropy of the next token, weighted by dimension (paper §3.1): what ``model`` returns for targets."""

    @override
    def forward(self, model: TrajectoryTransformer, batch: WindowBatch) -> Result:
        tokens, targets, mask = batch
        output = model(tokens, targets=targets, attention_mask=mask, use_cache=False, return_dict=True)
        output = cast(TrajectoryTransformerOutput, output)
        assert output.loss is not None
        assert output.logits is not None
        return output.loss, output.logits


def make_loss(spec: Any, config: TransformerConfig, centers: Tensor | None) -> TrainingLoss:
    """Make the loss of ``trainer.loss``; None is :class:`NextToken`.

    ``centers`` (transition_dim, vocab_size) are the values of the bins.

    Raises:
        UserError: the class does not exist, is not a loss, or cannot be made with these options.
    """
    if spec is None:
        return NextToken(config)
    try:
        loss = build({**spec, "config": config}, TrainingLoss, "trainer.loss", TYPED_BY_USER)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        message = f"trainer.loss: {spec['_target_']} cannot be made ({in_one_line(error)})"
        raise UserError.of_own_code(message, error) from error
    if centers is not None:
        loss.centers.copy_(F.pad(centers, (0, 1)))
    return loss
