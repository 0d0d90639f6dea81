"""Statistics of returns: mean, interquartile mean, bootstrap and Wilson intervals, normalised scores."""

from typing import Any

import numpy as np
from scipy import stats


def bootstrap_interval(values: np.ndarray) -> np.ndarray:
    """95 % percentile bootstrap interval (2, …) of the mean of values (n ≥ 1, …) over the first axis.

    From 10 000 resamples, always the same; of a single value, both ends are that one.
    """
    if len(values) == 1:  # which SciPy refuses
        return np.repeat(values, 2, axis=0)
    random = np.random.default_rng(0)
    found = stats.bootstrap(
        (values,), np.mean, axis=0, n_resamples=10_000, batch=1000, method="percentile", rng=random
    )  # batches keep many columns within the processor's cache
    return np.array(found.confidence_interval)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a success rate in [0, 1] (Wilson 1927), which has a width at 0 and 100 % too."""
    low, high = stats.binomtest(successes, count).proportion_ci(method="wilson")
    return float(low), float(high)


def normalized_scores(returns: np.ndarray, reference: tuple[float, float] | None) -> np.ndarray | None:
    """Returns (episodes,) in percent: 0 at the reference minimum (a random policy), 100 at its maximum (an expert).

    None without a reference, or where its ends are one.
    """
    if reference is None or reference[1] == reference[0]:
        return None
    low, high = reference
    return 100.0 * (returns - low) / (high - low)


def return_summary(returns: np.ndarray) -> dict[str, Any]:
    """The fields ``return_…`` of the summary in ``results.json``; a single return has 0 for its standard error."""
    return {
        "return_mean": float(returns.mean()),
        "return_std_error": float(stats.sem(returns)) if len(returns) > 1 else 0.0,
        "return_iqm": float(stats.trim_mean(returns, 0.25)),
        "return_ci95": bootstrap_interval(returns).tolist(),
    }
