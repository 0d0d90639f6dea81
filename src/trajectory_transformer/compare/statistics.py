"""Statistics over runs and tasks as in rliable (Agarwal et al. 2021), of scores in percent."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from scipy import stats

Scores: TypeAlias = Sequence[np.ndarray]
"""Of each task, the scores of its runs, (…, runs); tasks may have different numbers of them."""

LARGEST_LEVEL = 2_000  # runs of a task in a table
AGGREGATES = ("interquartile mean", "median", "mean", "optimality gap")
OPTIMUM = 100.0  # from where on a score has no optimality gap
RESAMPLES, BATCH = 10_000, 500


@dataclass(frozen=True)
class Estimate:
    """A number and the ends of its 95 % interval, where there is one."""

    value: float
    low: float | None = None
    high: float | None = None


def level(scores: Scores) -> np.ndarray:
    """(…, runs, tasks), where the runs of tasks that have fewer are repeated, so that all tasks weigh the same.

    Exactly so for a least common multiple up to :data:`LARGEST_LEVEL`, beyond it as nearly as that many can.
    """
    count = min(math.lcm(*(task.shape[-1] for task in scores)), LARGEST_LEVEL)
    return np.stack([task[..., np.arange(count) * task.shape[-1] // count] for task in scores], axis=-1)


def aggregates(scores: Scores) -> np.ndarray:
    """(4, …) the :data:`AGGREGATES`; median and mean are over the tasks' means, the others over all runs."""
    table = level(scores)
    means, runs = table.mean(axis=-2), table.reshape(*table.shape[:-2], -1)
    gap = OPTIMUM - np.minimum(runs, OPTIMUM).mean(axis=-1)
    return np.stack([stats.trim_mean(runs, 0.25, axis=-1), np.median(means, axis=-1), means.mean(axis=-1), gap])


def profile(scores: Scores, thresholds: Sequence[float]) -> np.ndarray:
    """(thresholds, …) share of runs whose score is above each."""
    table = level(scores)
    return np.stack([(table > threshold).mean(axis=(-2, -1)) for threshold in thresholds])


def improvement(scores: Scores, others: Scores) -> np.ndarray:
    """(…) probability that a run has a higher score than one of the others on its task, ties being half."""
    pairs = ((own[..., :, None], other[..., None, :]) for own, other in zip(scores, others, strict=True))
    return np.mean([((own > other) + 0.5 * (own == other)).mean(axis=(-2, -1)) for own, other in pairs], axis=0)


def estimates(statistic: Callable[..., np.ndarray], *samples: Scores) -> list[Estimate]:
    """A statistic (…) of one or several methods' scores, flat, with percentile bootstrap intervals.

    Runs are resampled within each task and method, always in the same way. No intervals where a task has a single run.
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


def expected_best(scores: np.ndarray, tried: int) -> float:
    """Expected highest of ``tried`` different ones of scores (n,), n ≥ ``tried`` ≥ 1, each as likely to be tried.

    The unbiased estimator of Tang et al. 2020 ("Showing Your Work Doesn't Always Work"), for the purpose of Kurenkov
    and Kolesnikov 2022: the mean of the highest over all subsets of that size.
    """
    ways = [math.comb(below, tried - 1) for below in range(len(scores))]
    return float(np.sort(scores) @ np.array(ways, dtype=np.float64) / math.comb(len(scores), tried))


def budget(scores: Scores) -> list[float]:
    """:func:`expected_best` of 1, 2, … policies tried in each task, up to what all have; the mean over tasks."""
    counts = range(1, min(map(len, scores)) + 1)
    return [float(np.mean([expected_best(task, tried) for task in scores])) for tried in counts]


def smallest_p(scores: Scores, others: Scores) -> float:
    """The two-sided probability that methods which are alike come out wholly apart, in every task, by chance."""
    orders = (math.comb(len(own) + len(other), len(own)) for own, other in zip(scores, others, strict=True))
    return min(1.0, 2 / math.prod(orders))
