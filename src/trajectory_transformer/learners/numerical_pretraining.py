"""Training of the numerical embedding alone, before the first update of the transformer."""

from collections.abc import Callable
from typing import cast

import torch
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..data.windows import TokenWindows
from ..model.numerical_embedding import NumericalEmbedding, NumericalReadout
from ..progress import WorkProgress

TRANSITIONS = 256  # per update
DRAWN = 64  # updates whose transitions are drawn at once
PEAK = 1e-3  # learning rate of the first update; it follows a cosine to 0


def pretrain(
    numbers: NumericalEmbedding,
    readout: NumericalReadout,
    windows: TokenWindows,
    updates: int,
    stream: torch.Generator,
    stopped: Callable[[], bool],
    progress: WorkProgress,
) -> bool:
    """Train the embedding by its readout's regression, with Adam on random transitions; return True once completed.

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
    weights = [*numbers.parameters(), *readout.parameters()]
    before = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.Adam(weights, PEAK, fused=weights[0].device.type in ("cpu", "cuda"))
    schedule = CosineAnnealingLR(optimizer, updates)
    tokens = torch.empty(0)
    with torch.enable_grad(), progress:
        task = progress.add_task("numerical embedding", total=updates)
        for update in range(updates):
            if stopped():
                with torch.no_grad():
                    for weight, value in zip(weights, before, strict=True):
                        weight.copy_(value)
                return False
            if update % DRAWN == 0:
                drawn = torch.randint(len(windows), (DRAWN * TRANSITIONS,), generator=stream)
                tokens = windows.transitions(drawn).view(DRAWN, TRANSITIONS, -1)
            optimizer.zero_grad()
            cast(torch.Tensor, readout(numbers, tokens[update % DRAWN])).backward()
            optimizer.step()
            schedule.step()
            progress.advance(task)
    optimizer.zero_grad()  # the transformer's first update begins without gradients
    return True
