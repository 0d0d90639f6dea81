"""Statistics against cases worked out by hand and against the normal distribution."""

import numpy as np
import pytest

from trajectory_transformer.evaluation.scores import (
    bootstrap_interval,
    normalized_scores,
    return_summary,
    wilson_interval,
)


@pytest.mark.parametrize(
    ("returns", "expected"),
    [
        ([100.0, 1.0, 2.0, -50.0], 1.5),
        ([9.0, 1.0, 2.0], 4.0),  # too few to drop any
        ([0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0], 3.5),
        ([700.0, 0.0, 2.0, 1.0, 5.0, 4.0, 3.0], 3.0),  # one at each end: a quarter of seven, rounded down
    ],
)
def test_interquartile_mean_drops_a_quarter_at_each_end(returns: list[float], expected: float) -> None:
    assert return_summary(np.array(returns))["return_iqm"] == expected


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = bootstrap_interval(values)
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_interval_is_repeatable_and_holds_the_mean() -> None:
    values = np.array([1.0, 2.0, 30.0, 4.0])
    np.testing.assert_array_equal(bootstrap_interval(values), bootstrap_interval(values))
    low, high = bootstrap_interval(values)
    assert 1.0 <= low < values.mean() < high <= 30.0


def test_interval_is_the_percentiles_of_ten_thousand_resampled_means() -> None:
    values = np.random.default_rng(2).normal(size=(12, 3))
    drawn = np.random.default_rng(0).integers(12, size=(10_000, 12))
    for column, found in zip(values.T, bootstrap_interval(values).T, strict=True):
        np.testing.assert_allclose(found, np.percentile(column[drawn].mean(axis=1), [2.5, 97.5]))


def test_interval_of_equal_values_and_of_one() -> None:
    np.testing.assert_array_equal(bootstrap_interval(np.full(5, 3.0)), [3.0, 3.0])
    np.testing.assert_array_equal(bootstrap_interval(np.array([[1.0, 2.0]])), [[1.0, 2.0], [1.0, 2.0]])


def test_nothing_to_resample_is_refused() -> None:
    with pytest.raises(ValueError, match="observations"):
        bootstrap_interval(np.array([]))


def test_normalized_scores_are_percent_of_the_reference_range() -> None:
    scores = normalized_scores(np.array([-20.0, 0.0, 80.0, 180.0]), (-20.0, 80.0))
    assert scores is not None
    np.testing.assert_allclose(scores, [0.0, 20.0, 100.0, 200.0])
    assert normalized_scores(np.array([1.0]), None) is None
    assert normalized_scores(np.array([1.0]), (3.0, 3.0)) is None


def test_summary() -> None:
    summary = return_summary(np.array([0.0, 2.0, 4.0, 100.0]))
    assert (summary["return_mean"], summary["return_iqm"]) == (26.5, 3.0)
    assert summary["return_std_error"] == pytest.approx(np.std([0, 2, 4, 100], ddof=1) / 2)
    assert summary["return_ci95"][0] < 26.5 < summary["return_ci95"][1]
    assert return_summary(np.array([1.0, 3.0]))["return_std_error"] == pytest.approx(1.0)  # deviation √2 over √2
    assert return_summary(np.array([7.0])) == {
        "return_mean": 7.0,
        "return_std_error": 0.0,
        "return_iqm": 7.0,
        "return_ci95": [7.0, 7.0],
    }


def test_wilson_interval_against_published_values() -> None:
    """Newcombe (1998), table I, method 3."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
