"""Densities, means and errors of predicted distributions, worked out by hand."""

import math

import numpy as np
import pytest
import torch

from trajectory_transformer.analysis.prediction_curves import (
    SMALLEST_PROBABILITY,
    GaussianMarginals,
    ObservationBins,
    TokenMarginals,
)
from trajectory_transformer.data.discretizer import Discretizer


def bins_of(*edges: list[float], narrowest: float = 0.001) -> ObservationBins:
    """Bins with the given edges, and two more columns that are not observations."""
    rows = torch.tensor([*edges, edges[0], edges[0]])
    discretizer = Discretizer.from_dict({"strategy": "quantile", "edges": rows})
    return ObservationBins(discretizer, np.full(len(edges), narrowest))


def test_a_token_is_a_uniform_density_over_its_bin() -> None:
    bins = bins_of([0.0, 1.0, 3.0, 7.0], [-1.0, 0.0, 0.5, 1.0])
    probabilities = np.array([[[0.5, 0.2, 0.3], [0.1, 0.8, 0.1]], [[0.0, 1.0, 0.0], [0.25, 0.25, 0.5]]])
    marginals = TokenMarginals(probabilities, bins)
    values = np.array([[2.0, 0.25], [1.0, -0.5]])
    expected = np.log([[0.2 / 2, 0.8 / 0.5], [1.0 / 2, 0.25 / 1]])
    np.testing.assert_allclose(marginals.log_density(values), expected)
    np.testing.assert_allclose(bins.best_log_density(values), np.log([[1 / 2, 1 / 0.5], [1 / 2, 1.0]]))
    np.testing.assert_allclose(
        marginals.mean(), [[0.25 + 0.4 + 1.5, -0.05 + 0.2 + 0.075], [2.0, -0.125 + 0.0625 + 0.375]]
    )
    first = 0.5 * (0.5 - 2.0) ** 2 + 0.2 * 0.0 + 0.3 * (5.0 - 2.0) ** 2
    np.testing.assert_allclose(marginals.square_error(values)[0, 0], first)


def test_a_bin_of_no_width_is_widened_and_the_whole_keeps_its_mass() -> None:
    bins = bins_of([0.0, 1.0, 1.0, 2.0], narrowest=0.1)
    marginals = TokenMarginals(np.array([[[0.2, 0.5, 0.3]]]), bins)

    def density(value: float) -> float:
        return math.exp(marginals.log_density(np.array([[value]]))[0, 0])

    assert density(1.0) == pytest.approx(0.5 / 0.1)  # a bin of its own
    assert density(1.04) == pytest.approx(0.5 / 0.1 + 0.3)  # overlaps the next one
    assert density(0.96) == pytest.approx(0.5 / 0.1 + 0.2)
    assert density(0.9) == pytest.approx(0.2)
    grid = (np.arange(20_000) + 0.5) / 10_000
    total = np.mean([bins.densities(grid[:, None])[:, 0] @ [0.2, 0.5, 0.3]]) * 2.0
    assert total == pytest.approx(1.0, abs=1e-3)
    np.testing.assert_allclose(bins.best_log_density(np.array([[1.04]])), math.log(10.0))


def test_values_beyond_the_edges_count_as_on_them() -> None:
    bins = bins_of([0.0, 1.0, 3.0, 7.0])
    marginals = TokenMarginals(np.array([[[0.5, 0.2, 0.3]], [[0.5, 0.2, 0.3]]]), bins)
    expected = np.log([[0.5], [0.3 / 4]])
    np.testing.assert_allclose(marginals.log_density(np.array([[-9.0], [9.0]])), expected)


def test_a_probability_that_underflowed_stays_finite() -> None:
    bins = bins_of([0.0, 1.0, 3.0, 7.0])
    marginals = TokenMarginals(np.array([[[0.0, 0.0, 1.0]]]), bins)
    expected = math.log(SMALLEST_PROBABILITY / 2)
    assert marginals.log_density(np.array([[2.0]]))[0, 0] == pytest.approx(expected)


def test_no_model_of_these_bins_beats_the_oracle() -> None:
    random = np.random.default_rng(0)
    edges = np.sort(random.normal(size=(3, 9)).round(1), axis=1)  # some of them equal
    bins = bins_of(*edges.tolist(), narrowest=0.01)
    values = random.normal(size=(50, 3))
    probabilities = random.dirichlet(np.full(8, 0.3), size=(50, 3))
    assert (TokenMarginals(probabilities, bins).log_density(values) <= bins.best_log_density(values) + 1e-9).all()


def test_a_mixture_of_gaussians() -> None:
    means, deviations = np.array([[[0.0], [2.0]]]), np.array([[[1.0], [0.5]]])
    marginals = GaussianMarginals(means, deviations)
    value = np.array([[1.0]])
    normal = [math.exp(-0.5) / math.sqrt(2 * math.pi), math.exp(-2.0) / (0.5 * math.sqrt(2 * math.pi))]
    assert marginals.log_density(value)[0, 0] == pytest.approx(math.log(sum(normal) / 2))
    assert marginals.mean()[0, 0] == 1.0
    assert marginals.square_error(value)[0, 0] == pytest.approx((1.0 + 1.0 + 0.25 + 1.0) / 2)


def test_a_gaussian_far_away_stays_finite() -> None:
    marginals = GaussianMarginals(np.zeros((1, 3, 1)), np.full((1, 3, 1), 1e-3))
    expected = -0.5 * 1e12 - math.log(1e-3) - 0.5 * math.log(2 * math.pi)
    assert marginals.log_density(np.array([[1e3]]))[0, 0] == pytest.approx(expected)
