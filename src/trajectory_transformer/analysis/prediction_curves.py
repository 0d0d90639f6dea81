"""Log-likelihood and error of predictions, step by step, and the figures made of them."""

from collections.abc import Mapping, Sequence

import numpy as np

from ..evaluation.measurements import Measurement
from ..evaluation.scores import bootstrap_interval
from .marginals import Marginals, ObservationBins

Curves = dict[str, dict[str, np.ndarray]]
"""Curve → method → (horizon,) values of one episode, or (episodes, horizon) of several.

- ``log_likelihood``: nats per dimension, density in the data's units; of the discrete oracle ("oracle") too.
- ``mean_error``: root mean square over dimensions, in standard deviations of the data, of the samples' mean.
- ``sample_error``: likewise, and over samples, of each sample.

Both errors are also given for a prediction that nothing changes ("constant").
"""

REPORTED_STEPS = (1, 10, 50, 100)


def compare(
    marginals: Mapping[str, Marginals], observations: np.ndarray, bins: ObservationBins, scale: np.ndarray
) -> Curves:
    """Curves of one episode.

    Args:
        marginals: by method, all of one horizon.
        observations: (more than horizon, observation_dim) what happened, from the common start on.
        bins: of the oracle.
        scale: (observation_dim,) standard deviations, above 0.
    """
    horizon = len(next(iter(marginals.values())).mean())
    happened = observations[1 : horizon + 1].astype(np.float64)
    constant = ((observations[:1] - happened) / scale) ** 2
    curves: Curves = {"log_likelihood": {}, "mean_error": {}, "sample_error": {}}
    for method, predicted in marginals.items():
        curves["log_likelihood"][method] = predicted.log_density(happened).mean(axis=1)
        mean_square = ((predicted.mean() - happened) / scale) ** 2
        curves["mean_error"][method] = np.sqrt(mean_square.mean(axis=1))
        curves["sample_error"][method] = np.sqrt((predicted.square_error(happened) / scale**2).mean(axis=1))
    curves["log_likelihood"]["oracle"] = bins.best_log_density(happened).mean(axis=1)
    for curve in ("mean_error", "sample_error"):
        curves[curve]["constant"] = np.sqrt(constant.mean(axis=1))
    return curves


def stack_curves(episodes: Sequence[Curves]) -> Curves:
    """Curves of several episodes, of one horizon and with the same methods, as one."""
    return {
        curve: {method: np.stack([episode[curve][method] for episode in episodes]) for method in methods}
        for curve, methods in episodes[0].items()
    }


def prediction_measurements(curves: Curves) -> list[Measurement]:
    """Each curve at :data:`REPORTED_STEPS` and the last step; before them the log-likelihood's mean over all steps.

    Args:
        curves: of several episodes.
    """
    measurements = [
        _measurement(method, "log_likelihood_mean", values.mean(axis=1))
        for method, values in curves["log_likelihood"].items()
    ]
    for curve, methods in curves.items():
        for method, values in methods.items():
            horizon = values.shape[1]
            steps = [step for step in REPORTED_STEPS if step < horizon] + [horizon]
            measurements += [_measurement(method, f"{curve}_step_{step}", values[:, step - 1]) for step in steps]
    return measurements


def _measurement(method: str, name: str, values: np.ndarray) -> Measurement:
    """Mean of (episodes,) values with its interval; None for one episode, of which nothing can be said."""
    low, high = bootstrap_interval(values).tolist() if len(values) > 1 else (None, None)
    return Measurement(method, name, float(values.mean()), low, high, len(values))
