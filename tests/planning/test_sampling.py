import pytest
import torch

from tests.planning.reference_planner import keep_likely
from trajectory_transformer.planning.sampling import Choice, choose, draw, filter_cdf, filter_top_k


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.6, 0.99])
def test_filter_cdf_drops_the_least_likely_tokens(threshold: float) -> None:
    logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(0)) * 2
    filtered = filter_cdf(logits, threshold)
    for row, result in zip(logits, filtered, strict=True):
        kept = torch.tensor(keep_likely(row.softmax(0).tolist(), threshold))
        torch.testing.assert_close(result, torch.where(kept, row, -1000.0))


def test_filter_cdf_by_hand() -> None:
    # Ascending mass 0.1, 0.2, 0.3, 0.4: the first two sum to 0.3 < 0.6, the third reaches 0.6 and stays.
    logits = torch.tensor([0.3, 0.1, 0.4, 0.2]).log()
    assert (filter_cdf(logits, 0.59) > -999).tolist() == [True, False, True, False]
    assert (filter_cdf(logits, 0.05) > -999).tolist() == [True, False, True, True]


def test_filter_cdf_keeps_equally_likely_tokens() -> None:
    filtered = filter_cdf(torch.zeros(1, 4), 0.6)
    torch.testing.assert_close(filtered.softmax(-1), torch.full((1, 4), 0.25))


def test_filter_top_k_by_hand() -> None:
    logits = torch.tensor([1.0, 3.0, 2.0, 3.0])
    assert torch.isfinite(filter_top_k(logits, 2)).tolist() == [False, True, False, True]
    assert torch.isfinite(filter_top_k(logits, 3)).tolist() == [False, True, True, True]
    assert torch.equal(filter_top_k(logits, 9), logits)


def test_draw_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.25, 0.0, 0.5, 0.25]).log()
    uniforms = torch.tensor([0.0, 0.2499, 0.25, 0.7499, 0.75, 0.9999])
    assert draw(logits.expand(6, 4), uniforms).tolist() == [0, 0, 2, 2, 3, 3]


def test_draw_never_picks_a_token_of_no_mass() -> None:
    logits = torch.tensor([-torch.inf, 0.0, 0.0, -torch.inf]).expand(1001, 4)
    assert set(draw(logits, torch.linspace(0, 1 - 1e-7, 1001)).tolist()) == {1, 2}


def test_choose_with_one_token_is_the_most_likely() -> None:
    logits = torch.randn(20, 7, generator=torch.Generator().manual_seed(0))
    assert torch.equal(choose(logits, torch.rand(20), Choice(k=1)), logits.argmax(-1))


def test_draw_follows_the_distribution() -> None:
    probabilities = torch.tensor([0.1, 0.2, 0.3, 0.4])
    uniforms = (torch.arange(10_000) + 0.5) / 10_000
    counts = draw(probabilities.log().expand(10_000, 4), uniforms).bincount(minlength=4)
    torch.testing.assert_close(counts / 10_000, probabilities, atol=2e-4, rtol=0)
