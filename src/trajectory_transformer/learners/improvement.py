"""Training of the correction that is added to planned actions, before the first update of the transformer."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..data.transitions import TransitionTable, following_returns
from ..layout import TransitionLayout
from ..model.action_improvement import ActionImprovement
from ..progress import WorkProgress
from .advantage_weights import AdvantageWeights, are_equal
from .pretraining import minimize

DISCOUNT = 0.999  # of the returns that are compared: with 0.99, failures that follow late go unnoticed
INVERSE_TEMPERATURE = 3.0  # of the weights exp(β A / σ)
NOISE = 1.0  # standard deviation of what is added to actions, in their own standard deviations
STEPS = 256  # per update
LARGEST_SET = 1_000_000  # steps; of a larger set, as many are drawn


def fit_improvement(
    improvement: ActionImprovement,
    table: TransitionTable,
    layout: TransitionLayout,
    updates: int,
    stream: torch.Generator,
    stopped: Callable[[], bool],
    progress: WorkProgress,
) -> None:
    """Fit the expected return, then both mean actions, by least squares, and set ``improvement.fitted``.

    Does nothing if all returns are equal. Once stopped, the network is as it was.

    Args:
        improvement: the network to train.
        table: the training data.
        layout: columns of the table.
        updates: number of updates, at least 3, on 256 random steps each: a third of them fits the expected return.
        stream: draws the steps, noise and initial weights, and determines the result.
        stopped, progress: as in :func:`~.pretraining.minimize`.
    """
    values, followed = torch.from_numpy(table.values), torch.from_numpy(following_returns(table, DISCOUNT))
    if len(values) > LARGEST_SET:
        chosen = torch.randperm(len(values), generator=stream)[:LARGEST_SET].sort().values
        values, followed = values[chosen], followed[chosen]
    kind = improvement.fitted.device, improvement.fitted.dtype
    observations, actions, returns = (
        part.to(*kind) for part in (values[:, layout.observation], values[:, layout.action], followed)
    )
    if are_equal(returns):
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (), generator=stream)))
        advantage = AdvantageWeights(layout.observation_dim, 2, 256, INVERSE_TEMPERATURE).to(*kind)
    improvement.standardize_like(observations, actions)
    of_return = max(1, updates // 3)
    advantage.fit(observations, improvement.normalized, returns, of_return, stream, stopped, progress)
    if not advantage.fitted:
        return
    wanted = improvement.standardized(actions)

    def losses() -> Iterator[Tensor]:
        while True:
            drawn = torch.randint(len(returns), (STEPS,), generator=stream).to(kind[0])
            seen = improvement.normalized(observations[drawn])
            weights = advantage(seen, returns[drawn])
            both = torch.stack([torch.ones_like(weights), weights], dim=1).unsqueeze(2)
            taken = wanted[drawn]
            noise = torch.randn(taken.shape, generator=stream).to(*kind)
            yield (both * (improvement.means(seen, taken + NOISE * noise) - taken.unsqueeze(1)).square()).mean()

    layers = improvement.layers.requires_grad_(True)
    done = minimize(
        losses(), list(layers.parameters()), updates - of_return, stopped, progress, "improvement of actions"
    )
    layers.requires_grad_(False)
    improvement.fitted.fill_(float(done))
