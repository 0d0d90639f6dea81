"""How well foreign weights, the bins fitted for them and a data set go together."""

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from ..data.discretizer import Discretizer
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows
from ..model.gpt import TrajectoryTransformerModel

CHECKED_WINDOWS = 256


@dataclass(frozen=True)
class Adoption:
    """What became of foreign weights, as recorded in the checkpoint.

    Attributes:
        source: name of the file or directory.
        origin: "original", "rewrite" or "port".
        bins: "refitted", or the name of the file that they were read from.
        transitions: that the bins were fitted on.
        reconstruction: (transition_dim,) mean distance of a value to its bin's centre, in standard deviations.
        nats: the model's mean negative log-likelihood of a token in windows of the data, by kind of token, stop
            tokens apart.
        uniform_nats: that of a model that knows nothing.
    """

    source: str
    origin: str
    bins: str
    transitions: int
    reconstruction: tuple[float, ...]
    nats: dict[str, float]
    uniform_nats: float


def summary(adoption: Adoption) -> str:
    """What was done, in one sentence without its end."""
    nats = ", ".join(f"{kind} {value:.2f}" for kind, value in adoption.nats.items())
    return (
        f"bins {adoption.bins} on {adoption.transitions:,} transitions, values {max(adoption.reconstruction):.3f} "
        f"standard deviations from their bins' centres in the coarsest dimension, {nats} nats per token (chance "
        f"{adoption.uniform_nats:.2f})"
    )


def reconstruction(table: TransitionTable, discretizer: Discretizer) -> tuple[float, ...]:
    """Mean distance of a value to its bin's centre, in standard deviations of its dimension."""
    values = torch.from_numpy(table.values)
    error = (discretizer.decode(discretizer.encode(values)) - values).abs().mean(dim=0)
    return tuple((error / values.std(dim=0).clamp_min(1e-12)).tolist())


@torch.no_grad()
def token_nats(model: TrajectoryTransformerModel, windows: TokenWindows) -> dict[str, float]:
    """Mean negative log-likelihood by kind of token, over windows at equal distances."""
    chosen = torch.linspace(0, len(windows) - 1, min(CHECKED_WINDOWS, len(windows))).long()
    sums = torch.zeros(2, model.config.transition_dim, dtype=torch.float64)
    for indices in chosen.split(32):
        tokens, targets, mask = windows.gather(indices)
        mask = mask * (targets < model.config.vocab_size)  # the rewrite has no stop token
        logits = model(tokens, use_cache=False, return_dict=True).logits
        nats = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none").view_as(mask) * mask
        columns = torch.arange(1, mask.shape[1] + 1) % model.config.transition_dim
        sums.index_add_(1, columns, torch.stack([nats.sum(dim=0), mask.sum(dim=0)]).double())
    kinds = model.layout.kind_slices()
    return {kind: (sums[0, columns].sum() / sums[1, columns].sum()).item() for kind, columns in kinds.items()}
