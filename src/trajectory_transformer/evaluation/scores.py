"""Statistics of returns: mean, interquartile mean, bootstrap and Wilson intervals, normalised scores."""

from typing import Any

import numpy as np
from scipy import stats

LEAST_EPISODES = 5  # from which on the bootstrap interval of a mean return is reported; of two it is their range


def bootstrap_interval(values: np.ndarray) -> np.ndarray:
    """Return the 95 % percentile bootstrap interval (2, …) of the mean of values (n ≥ 1, …) over the first axis.

    It uses 10 000 resamples with a fixed seed; for a single value, both ends are that value.
    """
    if len(values) == 1:  # SciPy refuses a single value
        return np.repeat(values, 2, axis=0)
    random = np.random.default_rng(0)
    # Batches keep many columns within the processor's cache.
    found = stats.bootstrap((values,), np.mean, axis=0, n_resamples=10_000, batch=1000, method="percentile", rng=random)
    return np.array(found.confidence_interval)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a success rate in [0, 1] (Wilson 1927), which has a width even at 0 and 100 %."""
    low, high = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return float(low), float(high)


def normalized_scores(returns: np.ndarray, reference: tuple[float, float] | None) -> np.ndarray | None:
    """Normalise returns (episodes,) to percent: 0 is the reference minimum (random policy), 100 its maximum (expert).

    The result is None without a reference, or if its minimum equals its maximum.
    """
    if reference is None or reference[1] == reference[0]:
        return None
    low, high = reference
    return 100.0 * (returns - low) / (high - low)


def return_summary(returns: np.ndarray) -> dict[str, Any]:
    """Return the fields ``return_…`` of the summary in ``results.json``; the standard error of a single return is 0."""
    return {
        "return_mean": float(returns.mean()),
        "return_std_error": float(stats.sem(returns)) if len(returns) > 1 else 0.0,
        "return_iqm": float(stats.trim_mean(returns, 0.25)),
        "return_ci95": bootstrap_interval(returns).tolist(),
    }
