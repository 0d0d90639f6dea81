"""Statistics against rliable's own on a published score table, and against enumeration."""

import itertools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from trajectory_transformer.compare.statistics import (
    AGGREGATES,
    Estimate,
    aggregates,
    estimates,
    expected_best,
    improvement,
    level,
    paired,
    profile,
    smallest_p,
)

PAIR = "probability of improvement"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    found = json.loads((Path(__file__).parents[1] / "golden" / "comparison.json").read_text())
    found["scores"] = {name: [np.array(task) for task in tasks] for name, tasks in found["scores"].items()}
    return found


@pytest.mark.parametrize("method", ["IRIS", "SimPLe"])
def test_aggregates_are_rliables(golden: dict[str, Any], method: str) -> None:
    found = dict(zip(AGGREGATES, aggregates(golden["scores"][method]), strict=True))
    assert found == pytest.approx(golden["points"][method], rel=1e-12)


def test_the_published_interquartile_mean(golden: dict[str, Any]) -> None:
    """Table 1 of the paper of IRIS (Micheli et al. 2023): 0.501, and a median, mean and gap of 0.289, 1.046, 0.512."""
    assert aggregates(golden["scores"]["IRIS"]) == pytest.approx([50.1, 28.9, 104.6, 51.2], abs=0.05)


def test_profile_and_improvement_are_rliables(golden: dict[str, Any]) -> None:
    thresholds = [float(tau) for tau in golden["profile"]]
    assert profile(golden["scores"]["IRIS"], thresholds) == pytest.approx(list(golden["profile"].values()), rel=1e-12)
    assert improvement(*golden["scores"].values()) == pytest.approx(golden["points"][PAIR], rel=1e-12)


def of_indices(scores: list[np.ndarray], indices: list[list[list[int]]]) -> list[np.ndarray]:
    """Resamples (task)(resample, run) of scores by indices (resample)(run)(task)."""
    return [task[np.array(indices)[:, :, number]] for number, task in enumerate(scores)]


def test_intervals_of_the_resamples_that_rliable_drew(golden: dict[str, Any]) -> None:
    """With the same resampled runs the interval is the same, to the last digits: runs are resampled within tasks."""
    few, (own, others) = golden["few"], golden["scores"].values()
    ends = np.percentile(aggregates(of_indices(own, few["indices"])), [2.5, 97.5], axis=-1).T
    for name, interval in zip(AGGREGATES, ends, strict=True):
        assert interval == pytest.approx(few[name], rel=1e-9), name
    pair = of_indices(own, few["pair_indices"][::2]), of_indices(others, few["pair_indices"][1::2])
    assert np.percentile(improvement(*pair), [2.5, 97.5]) == pytest.approx(few[PAIR], rel=1e-9)


def test_intervals_are_rliables_but_for_chance(golden: dict[str, Any]) -> None:
    many, (own, others) = golden["many"], golden["scores"].values()
    names, found = [*AGGREGATES, PAIR], estimates(aggregates, own) + estimates(improvement, own, others)
    for name, estimate in zip(names, found, strict=True):
        low, high = many[name]
        assert [estimate.low, estimate.high] == pytest.approx([low, high], abs=0.04 * (high - low)), name


def test_methods_are_resampled_independently(golden: dict[str, Any]) -> None:
    """A method against itself: if both were resampled alike, the probability would always be a half."""
    (same,) = estimates(improvement, golden["scores"]["IRIS"], golden["scores"]["IRIS"])
    assert same.value == 0.5
    assert same.low is not None
    assert same.low < 0.5


def test_tasks_weigh_the_same_whatever_their_runs() -> None:
    scores = [np.array([0.0, 3.0]), np.array([6.0, 6.0, 9.0])]
    assert level(scores).T.tolist() == [[0, 0, 0, 3, 3, 3], [6, 6, 6, 6, 9, 9]]
    assert aggregates(scores).tolist() == [pytest.approx(value) for value in ((3 * 3 + 3 * 6) / 6, 4.25, 4.25, 95.75)]


def test_tasks_weigh_nearly_the_same_where_their_runs_have_no_small_multiple() -> None:
    scores = [np.arange(float(count)) == 0 for count in (7, 11, 13, 17)]
    table = level(scores)
    assert table.shape == (2000, 4)
    assert table.mean(axis=0) == pytest.approx([1 / 7, 1 / 11, 1 / 13, 1 / 17], abs=1 / 2000)


def test_no_interval_of_a_single_run() -> None:
    assert all(one.low is one.high is None for one in estimates(aggregates, [np.array([1.0, 2.0]), np.array([3.0])]))


@pytest.mark.parametrize("tried", [1, 2, 3, 5])
def test_expected_best_is_the_mean_over_all_subsets(tried: int) -> None:
    scores = np.array([5.0, 1.0, 2.0, 2.0, -4.0])
    subsets = [max(subset) for subset in itertools.combinations(scores, tried)]
    assert expected_best(scores, tried) == pytest.approx(np.mean(subsets))


def test_chance_of_coming_out_apart() -> None:
    """Two of four runs are above the other two in one of six orders; with two such tasks, in one of 36."""
    pair = np.zeros(2)
    assert smallest_p([pair], [pair]) == pytest.approx(2 / 6)
    assert smallest_p([pair, pair], [pair, pair]) == pytest.approx(2 / 36)
    assert smallest_p([np.zeros(1)], [np.zeros(1)]) == 1.0


def test_paired_differences_of_one_task_are_those_of_the_paired_t_test() -> None:
    own, other = np.array([1.0, 5.0, 2.0, 8.0]), np.array([0.5, 3.0, 2.5, 6.0])
    expected = stats.ttest_rel(own, other).confidence_interval()
    found = paired([own - other])
    assert (found.value, found.low, found.high) == pytest.approx((1.0, expected.low, expected.high))


def test_paired_differences_of_two_tasks_have_the_interval_of_welch() -> None:
    """Half of the sum of two means is half of the difference between one and the other with its sign changed."""
    one, two = np.array([1.0, 5.0, 2.0, 8.0]), np.array([20.0, -3.0])
    expected = stats.ttest_ind(one, -two, equal_var=False).confidence_interval()
    found = paired([one, two])
    assert (found.value, found.low, found.high) == pytest.approx((6.25, expected.low / 2, expected.high / 2))


def test_paired_differences_have_no_interval_where_a_task_has_one() -> None:
    assert paired([np.array([1.0, 2.0]), np.array([4.0])]) == Estimate(2.75)
    assert paired([np.array([1.0, 1.0])]) == Estimate(1.0, 1.0, 1.0)
