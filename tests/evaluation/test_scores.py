"""Statistics against cases worked out by hand and against what is known of the normal distribution."""

import numpy as np
import pytest

from trajectory_transformer.evaluation.scores import (
    bootstrap_interval,
    interquartile_mean,
    normalized_scores,
    standard_error,
    summarize_returns,
    wilson_interval,
)


def test_interquartile_mean_drops_a_quarter_at_each_end() -> None:
    assert interquartile_mean(np.array([100.0, 1.0, 2.0, -50.0])) == 1.5
    assert interquartile_mean(np.array([9.0, 1.0, 2.0])) == 4.0  # too few to drop any
    rows = np.array([[0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 700.0], [1.0] * 8])
    np.testing.assert_array_equal(interquartile_mean(rows), [3.5, 1.0])


def test_standard_error_by_hand() -> None:
    assert standard_error(np.array([1.0, 3.0])) == pytest.approx(1.0)  # deviation √2 over √2
    assert standard_error(np.array([4.0])) == 0.0


def test_interval_of_many_values_is_the_normal_one() -> None:
    values = np.random.default_rng(1).normal(10.0, 2.0, 400)
    low, high = bootstrap_interval([values])
    half = 1.96 * values.std() / np.sqrt(400)
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)


def test_interval_is_repeatable_and_holds_the_mean() -> None:
    values = np.array([1.0, 2.0, 30.0, 4.0])
    assert bootstrap_interval([values]) == bootstrap_interval([values])
    low, high = bootstrap_interval([values])
    assert 1.0 <= low < values.mean() < high <= 30.0


def test_strata_are_resampled_within_themselves() -> None:
    constant = [np.full(5, 0.0), np.full(5, 10.0)]
    assert bootstrap_interval(constant) == (5.0, 5.0)  # no variation inside a stratum, so none is left
    low, high = bootstrap_interval([np.concatenate(constant)])
    assert low < 4.0
    assert high > 6.0


def test_interval_of_another_statistic() -> None:
    values = np.concatenate([np.arange(20.0), [1e6]])
    _, high = bootstrap_interval([values], interquartile_mean)
    assert high < 20.0


@pytest.mark.parametrize("strata", [[], [np.array([])], [np.array([1.0]), np.array([])]])
def test_nothing_to_resample_is_refused(strata: list[np.ndarray]) -> None:
    with pytest.raises(ValueError, match="at least one value"):
        bootstrap_interval(strata)


def test_normalized_scores_are_percent_of_the_reference_range() -> None:
    scores = normalized_scores(np.array([-20.0, 0.0, 80.0, 180.0]), (-20.0, 80.0))
    assert scores is not None
    np.testing.assert_allclose(scores, [0.0, 20.0, 100.0, 200.0])
    assert normalized_scores(np.array([1.0]), None) is None
    assert normalized_scores(np.array([1.0]), (3.0, 3.0)) is None


def test_summary() -> None:
    summary = summarize_returns(np.array([0.0, 2.0, 4.0, 100.0]))
    assert (summary.mean, summary.interquartile_mean) == (26.5, 3.0)
    assert summary.standard_error == pytest.approx(np.std([0, 2, 4, 100], ddof=1) / 2)
    assert summary.interval[0] < 26.5 < summary.interval[1]
    alone = summarize_returns(np.array([7.0]))
    assert (alone.mean, alone.standard_error, alone.interval) == (7.0, 0.0, (7.0, 7.0))


def test_wilson_interval_against_published_values() -> None:
    """Newcombe (1998), table I, method 3."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)
    assert wilson_interval(29, 29) == pytest.approx((0.8830, 1.0), abs=5e-5)
