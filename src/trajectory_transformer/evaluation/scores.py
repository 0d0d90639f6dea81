"""Statistics of returns: mean, interquartile mean, bootstrap intervals, normalised scores."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]


def mean(values: np.ndarray) -> np.ndarray:
    """Mean over the last axis."""
    return values.mean(axis=-1)


def interquartile_mean(values: np.ndarray) -> np.ndarray:
    """Mean of what is left of the last axis (n) once the lowest and highest ⌊n / 4⌋ values are dropped."""
    count = values.shape[-1]
    dropped = count // 4
    return np.sort(values, axis=-1)[..., dropped : count - dropped].mean(axis=-1)


def standard_error(values: np.ndarray) -> float:
    """Sample standard deviation over √n; 0 for a single value, of which nothing can be said."""
    return 0.0 if len(values) < 2 else float(values.std(ddof=1) / np.sqrt(len(values)))


def bootstrap_interval(
    strata: Sequence[np.ndarray], statistic: Statistic = mean, confidence: float = 0.95, resamples: int = 10_000
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic of all values, each stratum resampled within itself.

    Args:
        strata: arrays of values, such as the returns of each seed; a single one gives the ordinary bootstrap.
        statistic: reduces the last axis, like :func:`mean`.
        confidence: mass between the ends, in (0, 1).
        resamples: how many; the draws are always the same.

    Raises:
        ValueError: a stratum is empty, or there is none.
    """
    if not strata or any(len(values) == 0 for values in strata):
        raise ValueError("a bootstrap needs at least one value in every stratum")
    random = np.random.default_rng(0)
    drawn = [values[random.integers(len(values), size=(resamples, len(values)))] for values in map(np.asarray, strata)]
    tail = 50.0 * (1.0 - confidence)
    low, high = np.percentile(statistic(np.concatenate(drawn, axis=1)), [tail, 100.0 - tail])
    return float(low), float(high)


def wilson_interval(successes: int, count: int) -> tuple[float, float]:
    """95 % interval of a success rate (Wilson 1927), which has a width at 0 and 100 % too.

    Args:
        successes: in [0, count].
        count: trials, at least 1.
    """
    z, rate = 1.959964, successes / count
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def normalized_scores(returns: np.ndarray, reference: tuple[float, float] | None) -> np.ndarray | None:
    """Returns in percent: 0 at the reference minimum (a random policy), 100 at its maximum (an expert).

    Args:
        returns: (episodes,).
        reference: (minimum, maximum) return, or None where none is known, which gives None.
    """
    if reference is None or reference[1] == reference[0]:
        return None
    low, high = reference
    return 100.0 * (returns - low) / (high - low)


@dataclass(frozen=True)
class ReturnSummary:
    """What ``results.json`` says of the returns of all episodes."""

    mean: float
    standard_error: float
    interquartile_mean: float
    interval: tuple[float, float]


def summarize_returns(returns: np.ndarray) -> ReturnSummary:
    """Summary of (episodes,) returns; the interval is the 95 % bootstrap interval of the mean over episodes."""
    return ReturnSummary(
        float(returns.mean()),
        standard_error(returns),
        float(interquartile_mean(returns)),
        bootstrap_interval([returns]),
    )
