"""Training of a part of a network alone, before the first update of the whole."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from ..progress import WorkProgress

PEAK = 1e-3  # learning rate of the first update; it follows a cosine to 0


def minimize(
    losses: Iterator[Tensor],
    parameters: Sequence[nn.Parameter],
    updates: int,
    stopped: Callable[[], bool],
    progress: WorkProgress,
    title: str,
) -> bool:
    """Minimise losses with Adam; return True once completed.

    Args:
        losses: one for each update, each computed just before it.
        parameters: the weights to train.
        updates: number of updates, at least 1.
        stopped: asked before each update. If it returns True, the weights become what they were before.
        progress: shows the updates made; entered here.
        title: name of the work, shown with its progress.
    """
    before = [parameter.detach().clone() for parameter in parameters]
    optimizer = torch.optim.Adam(parameters, PEAK, fused=parameters[0].device.type in ("cpu", "cuda"))
    schedule = CosineAnnealingLR(optimizer, updates)
    with torch.enable_grad(), progress:
        task = progress.add_task(title, total=updates)
        for _ in range(updates):
            if stopped():
                with torch.no_grad():
                    for parameter, value in zip(parameters, before, strict=True):
                        parameter.copy_(value)
                return False
            optimizer.zero_grad()
            next(losses).backward()
            optimizer.step()
            schedule.step()
            progress.advance(task)
    optimizer.zero_grad()  # the first update of the whole begins without gradients
    return True
