"""Weights of a data set's steps by how much more return followed than was expected."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from ..progress import WorkProgress
from .mlp import make_mlp
from .pretraining import minimize

STEPS = 256  # per update of the baseline
LARGEST_WEIGHT = 20.0  # before division by the mean weight; as in AWR
CHUNK = 65536  # steps whose advantages are computed at once


def are_equal(returns: Tensor) -> bool:
    """True if returns (n,) are equal up to rounding, so that no step is better than another."""
    return bool(returns.std(correction=0) <= 1e-6 * (1.0 + returns.mean().abs()))


class AdvantageWeights(nn.Module):
    """Weights exp(β A / σ), at most 20, divided by their mean (advantage-weighted regression, AWR: Peng et al. 2019).

    The advantage A of a step is the return that followed minus the one expected from its observation. Its standard
    deviation σ and the mean weight are those of the training data. Call :meth:`fit` before using the weights.

    Differs from AWR, which collects new data with each improved policy: here the expected return is fitted once, to the
    returns of the data. Division by σ makes β independent of the scale of rewards, as in MARWIL (Wang et al. 2018).

    Args:
        inputs: size of an observation.
        hidden_layers, hidden_width: of the network that predicts the expected return.
        inverse_temperature: β, at least 0.
    """

    return_mean: Tensor  # () buffers, as the following ones: of the training data's returns-to-go
    return_deviation: Tensor
    advantage_deviation: Tensor  # in units of return_deviation
    mean_weight: Tensor
    fitted: Tensor  # 1 once :meth:`fit` has been completed

    def __init__(self, inputs: int, hidden_layers: int, hidden_width: int, inverse_temperature: float) -> None:
        super().__init__()
        self.inverse_temperature = inverse_temperature
        self.baseline = make_mlp(inputs, hidden_layers, hidden_width, 1).requires_grad_(False)
        for name in ("return_mean", "return_deviation", "advantage_deviation", "mean_weight"):
            self.register_buffer(name, torch.ones(()))
        self.register_buffer("fitted", torch.zeros(()))

    def fit(
        self,
        observations: Tensor,
        normalized: Callable[[Tensor], Tensor],
        returns: Tensor,
        updates: int,
        stream: torch.Generator,
        stopped: Callable[[], bool],
        progress: WorkProgress,
    ) -> None:
        """Fit the baseline by least squares, then σ and the mean weight, to all training steps.

        Args:
            observations: (n, inputs), as recorded.
            normalized: normalises some of them.
            returns: (n,) returns from each step on, not all equal.
            updates: number of updates, each on 256 random steps.
            stream: draws the steps, and determines the result.
            stopped, progress: as in :func:`~.pretraining.minimize`. Once stopped, nothing has been fitted.

        """
        self.return_mean.copy_(returns.mean())
        self.return_deviation.copy_(returns.std(correction=0))

        def losses() -> Iterator[Tensor]:
            while True:
                drawn = torch.randint(len(returns), (STEPS,), generator=stream).to(returns.device)
                yield self.advantages(normalized(observations[drawn]), returns[drawn]).square().mean()

        self.baseline.requires_grad_(True)
        done = minimize(losses(), list(self.baseline.parameters()), updates, stopped, progress, "expected return")
        self.baseline.requires_grad_(False)
        if not done:
            return
        chunks = zip(observations.split(CHUNK), returns.split(CHUNK), strict=True)
        advantages = torch.cat([self.advantages(normalized(seen), followed) for seen, followed in chunks])
        self.advantage_deviation.copy_(advantages.std(correction=0).clamp_min(1e-6))
        self.mean_weight.copy_(self._exponentials(advantages).mean())
        self.fitted.fill_(1.0)

    def advantages(self, observations: Tensor, returns: Tensor) -> Tensor:
        """Returns (…,) minus expected returns for observations (…, inputs), in standard deviations of the returns."""
        with torch.autocast(returns.device.type, enabled=False):  # weights are exponentials of these differences
            return (returns - self.return_mean) / self.return_deviation - self.baseline(observations).squeeze(-1)

    def forward(self, observations: Tensor, returns: Tensor) -> Tensor:
        """Weights (…,) of steps with normalised observations (…, inputs) and returns-to-go (…,); 1 in the mean."""
        return self._exponentials(self.advantages(observations, returns)) / self.mean_weight

    def _exponentials(self, advantages: Tensor) -> Tensor:
        return (self.inverse_temperature * advantages / self.advantage_deviation).exp().clamp(max=LARGEST_WEIGHT)
