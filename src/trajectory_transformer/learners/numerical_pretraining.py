"""Training of the numerical embedding alone, before the first update of the transformer."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.windows import TokenWindows
from ..model.numerical_embedding import NumericalEmbedding, NumericalReadout
from ..progress import WorkProgress
from .pretraining import minimize

TRANSITIONS = 256  # per update
DRAWN = 64  # updates whose transitions are drawn at once


def pretrain(
    numbers: NumericalEmbedding,
    readout: NumericalReadout,
    windows: TokenWindows,
    updates: int,
    stream: torch.Generator,
    stopped: Callable[[], bool],
    progress: WorkProgress,
) -> bool:
    """Train the embedding by its readout's regression of random transitions; return True once completed.

    Such an update costs about a tenth of one of the model tiny, so the embedding sees the data many more times than the
    transformer does. Differs from the paper, which has no such phase.

    Args:
        numbers: the embedding.
        readout: predicts a transition's next values from the embedding.
        windows: the training data.
        updates: number of updates, at least 1.
        stream: draws the transitions, and determines the result.
        stopped: asked before each update. If it returns True, the weights become what they were before.
        progress: shows the updates made; entered here.
    """

    def losses() -> Iterator[Tensor]:
        while True:
            drawn = torch.randint(len(windows), (DRAWN * TRANSITIONS,), generator=stream)
            for tokens in windows.transitions(drawn).view(DRAWN, TRANSITIONS, -1):
                yield readout(numbers, tokens)

    weights = [*numbers.parameters(), *readout.parameters()]
    return minimize(losses(), weights, updates, stopped, progress, "numerical embedding")
