"""Marginal distributions of predicted observations, and the likelihood that they give to what happened."""

from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats

from ..data.discretizer import Discretizer

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)  # where the model's softmax ends


class ObservationBins:
    """The bins of the observation dimensions, as uniform densities.

    A bin narrower than ``narrowest`` (of no width, where a value repeats in the data) counts as one of that width about
    the same centre: it may overlap its neighbours, whose densities add up with its own, so that the whole still has
    mass 1. Values beyond the outermost edges count as on them, as for the model.

    Args:
        discretizer: fitted; its first dimensions are the observation's.
        narrowest: (observation_dim,) above 0, in the units of each dimension.
    """

    # Differs from the paper: it has uniform bins; the quantile bins of a repeated value would have infinite density.
    def __init__(self, discretizer: Discretizer, narrowest: np.ndarray) -> None:
        self._discretizer, self._columns = discretizer, slice(0, len(narrowest))
        edges = discretizer.edges[self._columns].cpu().double().numpy()
        self._low, self._high = edges[:, 0], edges[:, -1]
        self.centers = (edges[:, :-1] + edges[:, 1:]) / 2
        self._widened = np.diff(edges, axis=1) < narrowest[:, None]
        self._widths = np.maximum(np.diff(edges, axis=1), narrowest[:, None])

    @property
    def range(self) -> tuple[np.ndarray, np.ndarray]:
        """(observation_dim,) lowest and highest edges."""
        return self._low, self._high

    def densities(self, values: np.ndarray) -> np.ndarray:
        """(horizon, observation_dim) values -> (horizon, observation_dim, num_bins) density of each bin there."""
        values = np.clip(values.astype(np.float64), self._low, self._high)
        tokens = self._discretizer.encode(torch.from_numpy(values), self._columns).cpu().numpy()
        own = tokens[..., None] == np.arange(self.centers.shape[1])
        near = self._widened & (np.abs(values[..., None] - self.centers) <= self._widths / 2)
        return (own | near) / self._widths

    def best_log_density(self, values: np.ndarray) -> np.ndarray:
        """The highest that any model with these bins can reach: all mass on the narrowest bin there (the oracle)."""
        return np.log(self.densities(values).max(axis=-1))


@dataclass(frozen=True)
class TokenMarginals:
    """Marginal distributions of a model that predicts tokens.

    Attributes:
        probabilities: (horizon, observation_dim, num_bins) float64.
        bins: what the tokens stand for.
    """

    probabilities: np.ndarray
    bins: ObservationBins

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """Natural logarithm of the density at (horizon, observation_dim) values, one for each step and dimension."""
        # A probability that underflowed to 0 would make the average over episodes -inf.
        probabilities = np.maximum(self.probabilities, SMALLEST_PROBABILITY)
        return np.log((probabilities * self.bins.densities(values)).sum(axis=-1))

    def mean(self) -> np.ndarray:
        """(horizon, observation_dim) mean of each distribution."""
        return (self.probabilities * self.bins.centers).sum(axis=-1)

    def square_error(self, values: np.ndarray) -> np.ndarray:
        """Expected squared distance of a sample from (horizon, observation_dim) values."""
        return (self.probabilities * (self.bins.centers - values[..., None]) ** 2).sum(axis=-1)


@dataclass(frozen=True)
class GaussianMarginals:
    """Marginal distributions of samples that each have a normal distribution: their mixture.

    Methods as of :class:`TokenMarginals`.

    Attributes:
        means, deviations: (horizon, samples, observation_dim) float64.
    """

    means: np.ndarray
    deviations: np.ndarray

    def log_density(self, values: np.ndarray) -> np.ndarray:
        logs = stats.norm.logpdf(values[:, None], self.means, self.deviations)
        return special.logsumexp(logs, axis=1) - np.log(self.means.shape[1])

    def mean(self) -> np.ndarray:
        return self.means.mean(axis=1)

    def square_error(self, values: np.ndarray) -> np.ndarray:
        return (self.deviations**2 + (self.means - values[:, None]) ** 2).mean(axis=1)


Marginals = TokenMarginals | GaussianMarginals
