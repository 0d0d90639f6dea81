"""Statistics of scores in percent over runs and tasks, as in rliable (Agarwal et al. 2021)."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

Scores: TypeAlias = Sequence[np.ndarray]
"""For each task, the scores of its runs, (…, runs); the number of runs may differ between tasks."""

LARGEST_LEVEL = 2_000  # maximum number of runs of a task in a levelled table
AGGREGATES = ("interquartile mean", "median", "mean", "optimality gap")
OPTIMUM = 100.0  # score from which on there is no optimality gap
RESAMPLES, BATCH = 10_000, 500


@dataclass(frozen=True)
class Estimate:
    """A number with the ends of its 95 % interval, if it has one."""

    value: float
    low: float | None = None
    high: float | None = None


def level(scores: Scores) -> np.ndarray:
    """Return scores as a table (…, runs, tasks), repeating runs so that all tasks have the same weight.

    Weights are exact if the least common multiple of the numbers of runs is at most :data:`LARGEST_LEVEL`, otherwise
    approximate.
    """
    count = min(math.lcm(*(task.shape[-1] for task in scores)), LARGEST_LEVEL)
    return np.stack([task[..., np.arange(count) * task.shape[-1] // count] for task in scores], axis=-1)


def aggregates(scores: Scores) -> np.ndarray:
    """Return the :data:`AGGREGATES`, (4, …); median and mean are over the tasks' means, the others over all runs."""
    table = level(scores)
    means, runs = table.mean(axis=-2), table.reshape(*table.shape[:-2], -1)
    gap = OPTIMUM - np.minimum(runs, OPTIMUM).mean(axis=-1)
    return np.stack([stats.trim_mean(runs, 0.25, axis=-1), np.median(means, axis=-1), means.mean(axis=-1), gap])


def profile(scores: Scores, thresholds: Sequence[float]) -> np.ndarray:
    """Return the fraction of runs whose score is above each threshold, (thresholds, …)."""
    table = level(scores)
    return np.stack([(table > threshold).mean(axis=(-2, -1)) for threshold in thresholds])


def improvement(scores: Scores, others: Scores) -> np.ndarray:
    """Return the probability (…) that a run scores higher than one of ``others`` on its task; ties count half."""
    pairs = ((own[..., :, None], other[..., None, :]) for own, other in zip(scores, others, strict=True))
    return np.mean([((own > other) + 0.5 * (own == other)).mean(axis=(-2, -1)) for own, other in pairs], axis=0)


def estimates(statistic: Callable[..., np.ndarray], *samples: Scores) -> list[Estimate]:
    """Return a statistic (…) of one or several methods' scores, flattened, with percentile bootstrap intervals.

    Runs are resampled within each task and method, with a fixed seed. If a task has a single run, there are no
    intervals.
    """
    values = np.ravel(statistic(*samples)).tolist()
    if min(len(task) for sample in samples for task in sample) < 2:
        return [Estimate(value) for value in values]
    random = np.random.default_rng(0)

    def resampled(sample: Scores) -> list[np.ndarray]:
        return [task[random.integers(len(task), size=(BATCH, len(task)))] for task in sample]

    found = [statistic(*map(resampled, samples)) for _ in range(RESAMPLES // BATCH)]
    ends = np.percentile(np.concatenate(found, axis=-1), [2.5, 97.5], axis=-1)
    return [Estimate(*one) for one in zip(values, *(np.ravel(end).tolist() for end in ends), strict=True)]


def paired(differences: Scores) -> Estimate:
    """Return the mean over tasks of the tasks' mean differences, with its 95 % interval by Student's t.

    Of a single task this is the paired t-test's interval. Over several tasks the variances of the means are added, with
    the degrees of freedom of Welch and Satterthwaite. If a task has a single difference, there is no interval.
    """
    means, counts = [task.mean() for task in differences], np.array([len(task) for task in differences])
    value = float(np.mean(means))
    if counts.min() < 2:
        return Estimate(value)
    variances = np.array([task.var(ddof=1) for task in differences]) / counts
    if not variances.any():
        return Estimate(value, value, value)
    freedom = variances.sum() ** 2 / (variances**2 / (counts - 1)).sum()
    half = float(stats.t.ppf(0.975, freedom) * np.sqrt(variances.sum()) / len(means))
    return Estimate(value, value - half, value + half)


def expected_best(scores: np.ndarray, tried: int) -> float:
    """Return the expected maximum of ``tried`` scores drawn without replacement from (n,), n ≥ ``tried`` ≥ 1.

    This is the unbiased estimator of Tang et al. 2020 ("Showing Your Work Doesn't Always Work"), the mean of the
    maximum over all subsets of that size, used as in Kurenkov and Kolesnikov 2022.
    """
    ways = [math.comb(below, tried - 1) for below in range(len(scores))]
    return float(np.sort(scores) @ np.array(ways, dtype=np.float64) / math.comb(len(scores), tried))


def budget(scores: Scores) -> list[float]:
    """Return the mean over tasks of :func:`expected_best` of 1, 2, … policies, up to the fewest runs of a task."""
    counts = range(1, min(map(len, scores)) + 1)
    return [float(np.mean([expected_best(task, tried) for task in scores])) for tried in counts]


def smallest_p(scores: Scores, others: Scores) -> float:
    """Return the two-sided probability that equal methods are completely separated in every task by chance."""
    orders = (math.comb(len(own) + len(other), len(own)) for own, other in zip(scores, others, strict=True))
    return min(1.0, 2 / math.prod(orders))
