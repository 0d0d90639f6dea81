"""Bins for weights trained on the original's tokens, against figures of the original's class."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.seeded import real_values, repeating_values
from trajectory_transformer.data.discretizer import Discretizer, QuantileDiscretizer
from trajectory_transformer.data.original_bins import original_quantiles, with_original_rule

FIGURES = Path(__file__).parents[1] / "golden" / "figures.npz"


@pytest.fixture(scope="module")
def figures() -> dict[str, np.ndarray]:
    with np.load(FIGURES) as stored:
        return dict(stored)


def test_repeated_values_get_the_original_tokens(figures: dict[str, np.ndarray]) -> None:
    fitted, new = repeating_values()
    discretizer = original_quantiles(fitted, 20)
    assert (np.diff(figures["repeating/edges"], axis=1) == 0).any(axis=1).all()  # every column has repeats
    np.testing.assert_allclose(discretizer.edges.numpy(), figures["repeating/edges"], rtol=1e-6, atol=1e-37)
    tokens = discretizer.encode(torch.from_numpy(new))
    assert np.array_equal(tokens.numpy(), figures["repeating/tokens"])
    np.testing.assert_allclose(discretizer.decode(tokens).numpy(), figures["repeating/centers"], rtol=1e-5, atol=1e-6)
    assert not np.array_equal(QuantileDiscretizer(20).fit(fitted).encode(torch.from_numpy(new)).numpy(), tokens.numpy())


def test_without_repeats_nothing_is_moved(figures: dict[str, np.ndarray]) -> None:
    values = real_values()[0]
    assert np.array_equal(original_quantiles(values, 100).edges.numpy(), figures["discretizer/edges"])
    assert torch.equal(original_quantiles(values, 100).edges, QuantileDiscretizer(100).fit(values).edges)


def test_too_few_values_are_left_to_our_rule() -> None:
    values = real_values()[0][:150]
    assert torch.equal(original_quantiles(values, 100).edges, QuantileDiscretizer(100).fit(values).edges)


def test_it_is_kept_by_a_checkpoint() -> None:
    discretizer = with_original_rule(np.array([[0.0, 0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 2.0, 2.0, 2.0]]))
    restored = Discretizer.from_dict(discretizer.to_dict())
    tokens = restored.encode(torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.5, 5.0], [-1.0, 0.5]]))
    assert tokens.tolist() == [[2, 3], [3, 1], [2, 3], [0, 0]]
