"""The quantile discretiser against figures that the original's own class gave on the same real values."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.seeded import real_values
from trajectory_transformer.data.discretizer import QuantileDiscretizer

FIGURES = Path(__file__).parents[1] / "golden" / "figures.npz"
REWARD_AND_VALUE = slice(3, 5)


@pytest.fixture(scope="module")
def figures() -> dict[str, np.ndarray]:
    with np.load(FIGURES) as stored:
        return dict(stored)


@pytest.fixture(scope="module")
def discretizer() -> QuantileDiscretizer:
    return QuantileDiscretizer(100).fit(real_values()[0])


def test_edges_are_the_original_ones(discretizer: QuantileDiscretizer, figures: dict[str, np.ndarray]) -> None:
    assert np.array_equal(discretizer.edges.numpy(), figures["discretizer/edges"])


def test_tokens_are_the_original_ones(discretizer: QuantileDiscretizer, figures: dict[str, np.ndarray]) -> None:
    tokens = discretizer.encode(torch.from_numpy(real_values()[1]))
    assert np.array_equal(tokens.numpy(), figures["discretizer/tokens"])
    centers = discretizer.decode(tokens).numpy()
    np.testing.assert_allclose(centers, figures["discretizer/centers"], rtol=1e-6, atol=1e-6)


def test_expectations_are_the_original_ones(discretizer: QuantileDiscretizer, figures: dict[str, np.ndarray]) -> None:
    expected = np.stack([figures["discretizer/rewards"], figures["discretizer/values"]], axis=-1)
    found = discretizer.expectation(torch.from_numpy(real_values()[2]), REWARD_AND_VALUE)
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-5, atol=1e-5)


def test_the_original_percentile_is_one_bin_low(
    discretizer: QuantileDiscretizer, figures: dict[str, np.ndarray]
) -> None:
    """Ours is the first bin where the cumulative probability reaches the fraction; the original gives the bin below."""
    probabilities = torch.from_numpy(real_values()[2])[:, :1, :-1]
    probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    ours = discretizer.percentile(probabilities, 0.5, slice(3, 4))[:, 0].numpy()
    edges = figures["discretizer/edges"][3]
    centers = (edges[1:] + edges[:-1]) / 2
    bins = np.abs(centers - ours[:, None]).argmin(axis=1)
    raw = real_values()[2][:, 0, :-1].cumsum(axis=-1)
    reached = np.argmax(raw > 0.5, axis=-1)  # the original does not divide by what the stop token leaves
    same = (reached == bins) & (raw[:, -1] > 0.5) & (reached > 0)
    assert same.sum() > 30
    np.testing.assert_allclose(figures["discretizer/percentile"][same], centers[bins[same] - 1], rtol=1e-5)
