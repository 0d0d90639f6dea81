"""Log-likelihood and error of predicted distributions per step, and measurements made of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import special, stats

from ..data.discretizer import Discretizer
from ..evaluation.measurements import Measurement
from ..evaluation.scores import bootstrap_interval

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)  # smallest probability that the model's softmax represents
REPORTED_STEPS = (1, 10, 30, 50, 100)


class ObservationBins:
    """The bins of the observation dimensions as uniform densities.

    A bin narrower than ``narrowest`` (such as the bins of zero width of repeated values) is widened to it around its
    centre. It may overlap its neighbours; densities are then added, so that the total mass is still 1. Values beyond
    the outermost edges are clamped, as for the model.

    The discretiser's first dimensions are the observation's; ``narrowest`` is (observation_dim,) above 0, in its units.
    """

    # Differs from the paper, which has uniform bins: the quantile bin of a repeated value would have infinite density.
    def __init__(self, discretizer: Discretizer, narrowest: np.ndarray) -> None:
        self._discretizer, self._columns = discretizer, slice(0, len(narrowest))
        edges = discretizer.edges[self._columns].cpu().double().numpy()
        self.low, self.high = edges[:, 0], edges[:, -1]
        self.centers = (edges[:, :-1] + edges[:, 1:]) / 2
        self._widened = np.diff(edges, axis=1) < narrowest[:, None]
        self._widths = np.maximum(np.diff(edges, axis=1), narrowest[:, None])

    def densities(self, values: np.ndarray) -> np.ndarray:
        """Return each bin's density at values (horizon, observation_dim), as (horizon, observation_dim, num_bins)."""
        values = np.clip(values.astype(np.float64), self.low, self.high)
        tokens = self._discretizer.encode(torch.from_numpy(values), self._columns).cpu().numpy()
        own = tokens[..., None] == np.arange(self.centers.shape[1])
        near = self._widened & (np.abs(values[..., None] - self.centers) <= self._widths / 2)
        return (own | near) / self._widths

    def best_log_density(self, values: np.ndarray) -> np.ndarray:
        """Return the highest log-density possible with these bins (the oracle): all mass on the narrowest bin."""
        return np.log(self.densities(values).max(axis=-1))


@dataclass(frozen=True)
class TokenMarginals:
    """Marginal distributions over tokens of ``bins``: (horizon, observation_dim, num_bins) float64 probabilities."""

    probabilities: np.ndarray
    bins: ObservationBins

    def log_density(self, values: np.ndarray) -> np.ndarray:
        """Return the natural logarithm of the density at values (horizon, observation_dim), of the same shape."""
        # A probability that underflowed to 0 would make the average over episodes -inf.
        probabilities = np.maximum(self.probabilities, SMALLEST_PROBABILITY)
        return np.log((probabilities * self.bins.densities(values)).sum(axis=-1))

    def mean(self) -> np.ndarray:
        """Return the mean of each distribution, (horizon, observation_dim)."""
        return (self.probabilities * self.bins.centers).sum(axis=-1)

    def square_error(self, values: np.ndarray) -> np.ndarray:
        """Return the expected squared distance of a sample from values (horizon, observation_dim)."""
        return (self.probabilities * (self.bins.centers - values[..., None]) ** 2).sum(axis=-1)


@dataclass(frozen=True)
class GaussianMarginals:
    """Mixtures of normal distributions, (horizon, samples, observation_dim); methods as in :class:`TokenMarginals`."""

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
Curves = dict[str, dict[str, np.ndarray]]
"""Curve → method → (horizon,) values of one episode, or (episodes, horizon) of several.

``log_likelihood`` is in nats per dimension, in the data's units; "oracle" is :meth:`ObservationBins.best_log_density`.
``mean_error`` (of the samples' mean) and ``sample_error`` (of each sample) are root mean squares over dimensions, in
standard deviations of the data; "constant" predicts the first observation throughout.
"""


def compare(
    marginals: Mapping[str, Marginals], observations: np.ndarray, bins: ObservationBins, scale: np.ndarray
) -> Curves:
    """Return the curves of one episode from its marginals by method.

    ``observations`` (at least horizon + 1, observation_dim) are the actual ones from the common start on; ``scale`` is
    (observation_dim,) standard deviations, above 0.
    """
    horizon = len(next(iter(marginals.values())).mean())
    happened = observations[1 : horizon + 1].astype(np.float64)

    def root_mean(squares: np.ndarray) -> np.ndarray:
        return np.sqrt(squares.mean(axis=1))

    curves: Curves = {
        "log_likelihood": {method: one.log_density(happened).mean(axis=1) for method, one in marginals.items()},
        "mean_error": {method: root_mean(((one.mean() - happened) / scale) ** 2) for method, one in marginals.items()},
        "sample_error": {method: root_mean(one.square_error(happened) / scale**2) for method, one in marginals.items()},
    }
    curves["log_likelihood"]["oracle"] = bins.best_log_density(happened).mean(axis=1)
    for curve in ("mean_error", "sample_error"):
        curves[curve]["constant"] = root_mean(((observations[:1] - happened) / scale) ** 2)
    return curves


def stack_curves(episodes: Sequence[Curves]) -> Curves:
    """Stack the curves of several episodes with the same horizon and methods."""
    return {
        curve: {method: np.stack([episode[curve][method] for episode in episodes]) for method in methods}
        for curve, methods in episodes[0].items()
    }


def prediction_measurements(curves: Curves) -> list[Measurement]:
    """Return the mean log-likelihood over all steps, then each curve at :data:`REPORTED_STEPS` and the last step."""
    samples = [(method, "log_likelihood_mean", one.mean(axis=1)) for method, one in curves["log_likelihood"].items()]
    for curve, methods in curves.items():
        for method, values in methods.items():
            horizon = values.shape[1]
            steps = [step for step in REPORTED_STEPS if step < horizon] + [horizon]
            samples += [(method, f"{curve}_step_{step}", values[:, step - 1]) for step in steps]
    measurements = []
    for method, name, values in samples:  # values of each episode; a single one has no interval
        low, high = bootstrap_interval(values).tolist() if len(values) > 1 else (None, None)
        measurements.append(Measurement(method, name, float(values.mean()), low, high, len(values)))
    return measurements
