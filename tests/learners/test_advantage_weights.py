"""Weights of steps by advantage, on data whose expected returns are known."""

import math

import pytest
import torch

from trajectory_transformer.learners.advantage_weights import AdvantageWeights, are_equal
from trajectory_transformer.progress import WorkProgress

# Returns 0 and 2 where the observation is -1, 10 and 16 where it is 1: advantages -1, 1, -3 and 3, of deviation √5.
OBSERVATIONS = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]).repeat(50, 1)
RETURNS = torch.tensor([0.0, 2.0, 10.0, 16.0]).repeat(50)


def fitted(inverse_temperature: float, updates: int = 1500) -> AdvantageWeights:
    torch.manual_seed(0)
    weights = AdvantageWeights(1, 1, 32, inverse_temperature)
    stream, progress = torch.Generator().manual_seed(0), WorkProgress("", shown=False)
    weights.fit(OBSERVATIONS, lambda seen: seen, RETURNS, updates, stream, lambda: False, progress)
    return weights


def test_weights_are_exponentials_of_advantages_in_deviations() -> None:
    weights = fitted(2.0)
    advantages = [-1.0, 1.0, -3.0, 3.0]
    expected = torch.tensor([math.exp(2.0 * advantage / math.sqrt(5.0)) for advantage in advantages])
    torch.testing.assert_close(weights(OBSERVATIONS[:4], RETURNS[:4]), expected / expected.mean(), rtol=0.05, atol=0.01)
    assert weights(OBSERVATIONS, RETURNS).mean().item() == pytest.approx(1.0, abs=1e-5)
    found = weights.advantages(OBSERVATIONS[:4], RETURNS[:4]) * RETURNS.std(correction=0)
    torch.testing.assert_close(found, torch.tensor(advantages), rtol=0.0, atol=0.1)


def test_the_largest_weight_is_20_times_that_of_no_advantage() -> None:
    """With so large a factor, steps above the expectation all weigh 20, and those below it nothing."""
    assert fitted(1000.0)(OBSERVATIONS[:4], RETURNS[:4]).tolist() == [0.0, 2.0, 0.0, 2.0]


def test_a_large_set_is_weighted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = fitted(2.0, updates=20)
    monkeypatch.setattr("trajectory_transformer.learners.advantage_weights.CHUNK", 7)
    pieces = fitted(2.0, updates=20)
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(pieces.state_dict()[name], value)


def test_stopped_it_is_as_before() -> None:
    weights = AdvantageWeights(1, 1, 4, 1.0)
    before = {name: value.clone() for name, value in weights.baseline.state_dict().items()}
    asked = iter([False, False, True])
    stream, progress = torch.Generator(), WorkProgress("", shown=False)
    weights.fit(OBSERVATIONS, lambda seen: seen, RETURNS, 5, stream, lambda: next(asked), progress)
    assert not weights.fitted
    assert all(torch.equal(value, before[name]) for name, value in weights.baseline.state_dict().items())
    assert not any(parameter.requires_grad for parameter in weights.parameters())


def test_equal_returns_are_found() -> None:
    """With them, weights would be exponentials of the baseline's errors."""
    assert are_equal(torch.full((8,), 3.0))
    assert are_equal(torch.tensor([1e6, 1e6 + 0.5]))
    assert not are_equal(torch.tensor([0.0, 0.01]))


def test_mixed_precision_computes_the_same_weights() -> None:
    weights = fitted(3.0, updates=50)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = weights(OBSERVATIONS[:4], RETURNS[:4])
    assert torch.equal(mixed, weights(OBSERVATIONS[:4], RETURNS[:4]))
