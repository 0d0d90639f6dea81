import numpy as np
import pytest
import torch
from torch import Tensor

from trajectory_transformer.configuration import DiscretizerConfig
from trajectory_transformer.data.discretizer import (
    Discretizer,
    QuantileDiscretizer,
    UniformDiscretizer,
    make_discretizer,
)

BOTH = pytest.mark.parametrize("kind", [QuantileDiscretizer, UniformDiscretizer])


class OriginalRule:
    """The original's quantile bins, reimplemented in plain loops, one dimension at a time."""

    def __init__(self, column: np.ndarray, bins: int) -> None:
        ordered = sorted(column.tolist())
        stride = -(-len(ordered) // bins)
        self.bins = bins
        self.edges = [*ordered[::stride], ordered[-1]]

    def encode(self, value: float) -> int:
        below = [index for index, edge in enumerate(self.edges) if value >= edge]
        return min(below[-1], self.bins - 1) if below else 0

    def center(self, token: int) -> float:
        return (self.edges[token] + self.edges[token + 1]) / 2

    def expectation(self, probabilities: list[float]) -> float:
        left = sum(p * self.edges[token] for token, p in enumerate(probabilities))
        right = sum(p * self.edges[token + 1] for token, p in enumerate(probabilities))
        return (left + right) / 2


def normal(rows: int, columns: int = 3, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32))


def one_hot(tokens: Tensor, bins: int) -> Tensor:
    return torch.nn.functional.one_hot(tokens, bins).float()


@pytest.mark.parametrize(("rows", "bins"), [(1000, 10), (997, 10), (95, 10), (20_000, 100), (1000, 100), (60, 7)])
def test_quantile_equals_the_original_on_values_without_repeats(rows: int, bins: int):
    values = normal(rows, 2)
    discretizer = QuantileDiscretizer(bins).fit(values)
    probed = torch.cat([values[:50], discretizer.edges.T, normal(20, 2, seed=1), torch.tensor([[-1e6, 1e6]])])
    tokens, probabilities = discretizer.encode(probed), torch.rand(4, 2, bins).softmax(-1)
    means = discretizer.expectation(probabilities)
    for column in range(2):
        original = OriginalRule(values[:, column].numpy(), bins)
        assert discretizer.edges[column].tolist() == original.edges
        assert tokens[:, column].tolist() == [original.encode(value) for value in probed[:, column].tolist()]
        centers = [original.center(token) for token in tokens[:, column].tolist()]
        torch.testing.assert_close(discretizer.decode(tokens)[:, column], torch.tensor(centers))
        expected = [original.expectation(row) for row in probabilities[:, column].tolist()]
        torch.testing.assert_close(means[:, column], torch.tensor(expected))


def test_original_expectation_drops_the_stop_column_without_rescaling():
    discretizer = UniformDiscretizer(2).fit(torch.tensor([[0.0], [4.0]]))  # centres 1 and 3
    probabilities = torch.tensor([[0.25, 0.25, 0.5]])
    torch.testing.assert_close(discretizer.expectation(probabilities), torch.tensor([1.0]))
    torch.testing.assert_close(discretizer.expectation(probabilities[:, :2]), torch.tensor([1.0]))


def test_uniform_bins_worked_by_hand():
    discretizer = UniformDiscretizer(4).fit(torch.tensor([[0.0, 8.0], [2.0, -8.0], [1.0, 0.0]]))
    assert discretizer.edges.tolist() == [[0.0, 0.5, 1.0, 1.5, 2.0], [-8.0, -4.0, 0.0, 4.0, 8.0]]
    tokens = discretizer.encode(torch.tensor([[0.49, -4.0], [0.5, 7.9], [2.0, 8.0]]))
    assert tokens.tolist() == [[0, 1], [1, 3], [3, 3]]
    assert discretizer.decode(tokens).tolist() == [[0.25, -2.0], [0.75, 6.0], [1.75, 6.0]]


@BOTH
def test_every_training_value_is_within_its_bin(kind: type[Discretizer]):
    values = normal(2000)
    discretizer = kind(50).fit(values)
    tokens = discretizer.encode(values)
    left = discretizer.edges.T.gather(0, tokens)
    right = discretizer.edges.T.gather(0, tokens + 1)
    assert ((left <= values) & (values <= right)).all()
    assert ((values < right) | (tokens == 49)).all()


@BOTH
def test_decoded_centres_encode_to_the_same_tokens(kind: type[Discretizer]):
    values = normal(2000)
    discretizer = kind(50).fit(values)
    tokens = torch.arange(50).repeat(3, 1).T
    assert torch.equal(discretizer.encode(discretizer.decode(tokens)), tokens)


def test_training_values_equal_to_an_edge_open_their_bin():
    values = torch.arange(12.0)[:, None] / 10  # not exact in binary
    discretizer = QuantileDiscretizer(4).fit(values)
    assert torch.equal(discretizer.edges[0], values[[0, 3, 6, 9, 11], 0])
    assert discretizer.encode(values)[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert discretizer.encode(values.double())[:, 0].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]


@pytest.mark.parametrize("rows", [1, 2, 3, 50, 51, 99, 100, 101, 150, 1009, 5000, 9899])
def test_quantile_has_all_edges_however_few_the_samples(rows: int):
    values = normal(rows, 1)
    discretizer = QuantileDiscretizer(100).fit(values)
    edges = discretizer.edges[0]
    assert edges.shape == (101,)
    assert (edges.diff() >= 0).all()
    assert (edges[0], edges[-1]) == (values.min(), values.max())
    tokens = discretizer.encode(values)
    width = edges.diff()[tokens]
    assert ((discretizer.decode(tokens) - values).abs() <= width / 2 + 1e-6).all()
    assert discretizer.expectation(torch.full((1, 100), 0.01)).shape == (1,)
    if rows <= 50:
        assert torch.equal(discretizer.decode(tokens), values)  # a bin of its own for each
    elif rows > 100:
        counts = torch.bincount(tokens[:, 0], minlength=100)
        assert counts.max() <= 2 * rows / 100 + 1  # no bin takes much more than its share


@BOTH
def test_a_constant_dimension_decodes_exactly(kind: type[Discretizer]):
    values = torch.cat([torch.full((500, 1), 0.1), normal(500, 1)], dim=1)
    discretizer = kind(100).fit(values)
    tokens = discretizer.encode(values)
    assert tokens[:, 0].unique().tolist() == [0]
    assert torch.equal(discretizer.decode(tokens)[:, 0], values[:, 0])
    assert discretizer.encode(torch.tensor([[-5.0, 0.0], [5.0, 0.0]]))[:, 0].tolist() == [0, 0]
    assert torch.equal(discretizer.decode(torch.tensor([[99, 0]]))[0, 0], torch.tensor(0.1))
    torch.testing.assert_close(discretizer.expectation(one_hot(tokens[:1], 100))[:, 0], torch.tensor([0.1]))


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_a_sparse_reward_decodes_to_exactly_0_and_1(share: float):
    values = torch.zeros(10_000, 1)
    values[: int(10_000 * share)] = 1.0
    discretizer = QuantileDiscretizer(100).fit(values)
    zero, one = discretizer.encode(torch.tensor([[0.0], [1.0]]))
    assert zero.item() != one.item()
    assert discretizer.decode(torch.stack([zero, one])).tolist() == [[0.0], [1.0]]
    probabilities = 0.75 * one_hot(zero, 101) + 0.25 * one_hot(one, 101)
    assert discretizer.expectation(probabilities).item() == 0.25


def test_as_many_distinct_values_as_fit_have_a_bin_each():
    for bins in (2, 3, 10, 11):
        distinct = (bins + 1) // 2
        values = torch.arange(float(distinct)).repeat_interleave(torch.arange(1, distinct + 1) ** 3)[:, None]
        discretizer = QuantileDiscretizer(bins).fit(values)
        tokens = discretizer.encode(values)
        assert torch.equal(discretizer.decode(tokens), values)
        assert len(tokens.unique()) == distinct
        between = torch.arange(distinct - 1)[:, None] + 0.25
        assert torch.equal(discretizer.decode(discretizer.encode(between)), between + 0.25)


def test_a_frequent_value_among_real_ones_is_exact_and_costs_no_resolution():
    """Return-to-go of a sparse task: 0 in 60 % of the rows, -100 in 5 %, and real values."""
    generator = np.random.default_rng(0)
    real = generator.uniform(-50, 50, 3500)
    column = np.concatenate([np.zeros(6000), np.full(500, -100.0), real]).astype(np.float32)
    values = torch.from_numpy(column)[:, None]
    discretizer = QuantileDiscretizer(100).fit(values)
    tokens = discretizer.encode(values)
    decoded = discretizer.decode(tokens)
    assert torch.equal(decoded[:6500], values[:6500])
    zero, penalty = tokens[0].item(), tokens[6000].item()
    assert not torch.isin(tokens[6500:], torch.tensor([zero, penalty])).any()
    assert len(tokens.unique()) >= 96
    assert (decoded - values).abs().max() < 1.0  # 100 / 96, halved, and the spread of the sample


def test_an_edge_repeated_twice_keeps_the_original_edges():
    column = np.concatenate([np.arange(0, 6), np.full(3, 6.0), np.arange(7, 10)]).astype(np.float32)
    discretizer = QuantileDiscretizer(6).fit(torch.from_numpy(column)[:, None])
    assert discretizer.edges[0].tolist() == OriginalRule(column, 6).edges == [0, 2, 4, 6, 6, 8, 9]
    assert discretizer.encode(torch.tensor([[5.9], [6.0], [6.1]]))[:, 0].tolist() == [2, 3, 4]
    assert discretizer.decode(torch.tensor([[3], [4]]))[:, 0].tolist() == [6.0, 7.0]


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-39, -torch.finfo(torch.float32).tiny, 3.3, -2e30])
def test_values_next_to_a_repeated_edge_are_not_taken_for_it(value: float):
    column = np.concatenate([np.full(100, value), np.linspace(-1e31, 1e31, 30)]).astype(np.float32)
    discretizer = QuantileDiscretizer(10).fit(torch.from_numpy(column)[:, None])
    above = torch.tensor(value + max(abs(value) * 1e-6, 1e-30))
    below = torch.tensor(value - max(abs(value) * 1e-6, 1e-30))
    at, over, under = discretizer.encode(torch.stack([torch.tensor(value), above, below])[:, None])[:, 0].tolist()
    assert under < at < over
    decoded = discretizer.decode(torch.tensor([[at]])).item()
    assert decoded == (torch.tensor(value).item() if abs(value) > 1e-38 else 0.0)


def test_edges_one_float_apart_keep_values_apart():
    """A uniform grid finer than float32 repeats its edges."""
    values = 1.0 + torch.arange(4.0)[:, None] * torch.finfo(torch.float32).eps
    discretizer = UniformDiscretizer(100).fit(values)
    tokens = discretizer.encode(values)
    assert len(tokens.unique()) == 4
    assert torch.equal(discretizer.decode(tokens), values)


@BOTH
def test_values_outside_the_fitted_range_go_to_the_end_bins(kind: type[Discretizer]):
    discretizer = kind(10).fit(normal(1000, 2))
    outside = torch.tensor([[-1e9, 1e9], [-torch.inf, torch.inf], [1e6, -4e38]])
    assert discretizer.encode(outside).tolist() == [[0, 9], [0, 9], [9, 0]]


def test_values_above_a_frequent_maximum_go_to_its_bin():
    values = torch.cat([torch.zeros(50, 1), torch.ones(50, 1)])
    discretizer = QuantileDiscretizer(10).fit(values)
    assert discretizer.encode(torch.tensor([[-3.0], [0.0], [1.0], [9.0]]))[:, 0].tolist() == [0, 0, 2, 2]


@BOTH
def test_stop_token_is_one_past_the_bins_and_decodes_as_the_last(kind: type[Discretizer]):
    discretizer = kind(10).fit(normal(1000, 2))
    assert discretizer.stop_token == 10
    assert torch.equal(discretizer.decode(torch.tensor([[10, 3]])), discretizer.decode(torch.tensor([[9, 3]])))
    assert discretizer.encode(normal(1000, 2, seed=1)).max() < 10


@BOTH
def test_nan_is_refused_with_its_columns(kind: type[Discretizer]):
    discretizer = kind(10).fit(normal(100))
    with pytest.raises(ValueError, match=r"NaN, found in columns \[0, 2\]"):
        discretizer.encode(torch.tensor([[0.0, 0.0, torch.nan], [torch.nan, 0.0, 0.0]]))


def test_percentile_is_the_first_bin_that_reaches_the_fraction():
    discretizer = UniformDiscretizer(4).fit(torch.tensor([[0.0], [8.0]]))  # centres 1, 3, 5, 7
    probabilities = torch.tensor([[0.25, 0.25, 0.0, 0.5]])
    expected = {0.01: 1.0, 0.25: 1.0, 0.26: 3.0, 0.5: 3.0, 0.51: 7.0, 0.99: 7.0}
    for fraction, value in expected.items():
        assert discretizer.percentile(probabilities, fraction).tolist() == [value]


def test_percentile_of_a_certain_token_is_that_token():
    discretizer = QuantileDiscretizer(10).fit(normal(1000, 2))
    tokens = torch.stack([torch.arange(10), torch.arange(9, -1, -1)], dim=1)
    centers = discretizer.decode(tokens)
    for fraction in (0.1, 0.5, 0.9):
        assert torch.equal(discretizer.percentile(one_hot(tokens, 10), fraction), centers)


def test_percentile_is_of_what_a_likely_stop_token_leaves():
    discretizer = UniformDiscretizer(2).fit(torch.tensor([[0.0], [4.0]]))  # centres 1 and 3
    probabilities = torch.tensor([[0.06, 0.04, 0.9]])
    assert discretizer.percentile(probabilities, 0.5).tolist() == [1.0]
    assert discretizer.percentile(probabilities, 0.7).tolist() == [3.0]


def test_percentile_of_what_is_not_a_number_is_none():
    """NaN tells the search that a prediction is broken, as the mean does."""
    discretizer = QuantileDiscretizer(4).fit(torch.randn(50, 1, generator=torch.Generator().manual_seed(0)))
    probabilities = torch.tensor([[[0.1, 0.2, 0.3, 0.4]], [[torch.nan, 0.2, 0.3, 0.4]]])
    found = discretizer.percentile(probabilities, 0.5)
    assert found.isnan().tolist() == [[False], [True]]
    assert discretizer.expectation(probabilities).isnan().tolist() == [[False], [True]]


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1])
def test_percentile_refuses_other_fractions(fraction: float):
    discretizer = UniformDiscretizer(2).fit(torch.tensor([[0.0], [4.0]]))
    with pytest.raises(ValueError, match="fraction"):
        discretizer.percentile(torch.tensor([[0.5, 0.5]]), fraction)


@BOTH
def test_any_batch_shape_and_any_columns(kind: type[Discretizer]):
    values = normal(1000, 5)
    discretizer = kind(20).fit(values)
    batched, columns = values[:24].reshape(2, 3, 4, 5), slice(1, 3)
    tokens = discretizer.encode(batched)
    assert tokens.shape == batched.shape
    assert torch.equal(tokens.reshape(24, 5), discretizer.encode(values[:24]))
    assert torch.equal(discretizer.encode(batched[..., columns], columns), tokens[..., columns])
    assert torch.equal(discretizer.decode(tokens[..., columns], columns), discretizer.decode(tokens)[..., columns])
    assert torch.equal(discretizer.encode(values[0]), tokens[0, 0, 0])
    assert discretizer.encode(values[:0]).shape == (0, 5)
    probabilities = torch.rand(2, 3, 5, 21).softmax(-1)
    means, medians = discretizer.expectation(probabilities), discretizer.percentile(probabilities, 0.5)
    some = probabilities[..., columns, :]
    assert torch.equal(discretizer.expectation(some, columns), means[..., columns])
    assert torch.equal(discretizer.percentile(some, 0.5, columns), medians[..., columns])


def test_wrong_widths_are_refused():
    discretizer = QuantileDiscretizer(10).fit(normal(100, 3))
    with pytest.raises(ValueError, match="3 columns here, the values have 2"):
        discretizer.encode(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="0 columns here"):
        QuantileDiscretizer(10).encode(torch.zeros(4, 2))
    with pytest.raises(ValueError, match="expected 10 or 11 tokens, got 12"):
        discretizer.expectation(torch.zeros(3, 12))


@pytest.mark.parametrize("values", [torch.zeros(0, 3), torch.zeros(3), torch.tensor([[0.0], [torch.nan]])])
def test_fit_refuses_what_it_cannot_use(values: Tensor):
    with pytest.raises(ValueError, match="fit needs"):
        QuantileDiscretizer(10).fit(values)


@BOTH
def test_survives_a_dict_and_a_state_dict(kind: type[Discretizer]):
    values = normal(500)
    discretizer = kind(10).fit(values)
    from_dict = Discretizer.from_dict(discretizer.to_dict())
    from_state = kind(10)
    from_state.load_state_dict(discretizer.state_dict())
    for restored in (from_dict, from_state):
        assert type(restored) is kind
        assert restored.num_bins == 10
        assert torch.equal(restored.edges, discretizer.edges)
        assert torch.equal(restored.encode(values), discretizer.encode(values))
    assert list(discretizer.state_dict()) == ["edges"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strategy": "median"}, "unknown discretiser strategy 'median'"),
        ({"edges": torch.zeros(3)}, "must be a tensor"),
        ({"edges": [[0.0, 1.0, 2.0]]}, "must be a tensor"),
        ({"edges": torch.tensor([[0.0, 2.0, 1.0]])}, "finite and ascending"),
        ({"edges": torch.tensor([[0.0, torch.nan, 1.0]])}, "finite and ascending"),
    ],
)
def test_from_dict_refuses_damage(change: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        Discretizer.from_dict(QuantileDiscretizer(10).fit(normal(100)).to_dict() | change)


def test_edges_move_with_a_module_and_are_no_parameters():
    discretizer = QuantileDiscretizer(10).fit(normal(100))
    assert [name for name, _ in discretizer.named_buffers()] == ["edges"]
    assert list(discretizer.parameters()) == []
    assert discretizer.to("meta").edges.device.type == "meta"


def test_make_discretizer_follows_the_configuration():
    quantile = make_discretizer(DiscretizerConfig("quantile", 7))
    uniform = make_discretizer(DiscretizerConfig("uniform", 8))
    assert (type(quantile), quantile.num_bins) == (QuantileDiscretizer, 7)
    assert (type(uniform), uniform.num_bins) == (UniformDiscretizer, 8)
    with pytest.raises(ValueError, match="num_bins"):
        QuantileDiscretizer(1)


@BOTH
@pytest.mark.parametrize("change", ["fit", "assign", "in place", "load", "move"])
def test_follows_its_edges_however_they_change(kind: type[Discretizer], change: str):
    before, after, values = normal(500), 10.0 * normal(500, seed=1), 10.0 * normal(50, seed=2)
    fresh, changed = kind(10).fit(after), kind(10).fit(before)
    probabilities = torch.rand(4, 3, 10).softmax(-1)
    with torch.inference_mode():
        changed.decode(changed.encode(values))
        changed.expectation(probabilities)
    if change == "fit":
        changed.fit(after)
    elif change == "assign":
        changed.edges = fresh.edges.clone()
    elif change == "in place":
        changed.edges.copy_(fresh.edges)
    elif change == "load":
        changed.load_state_dict(fresh.state_dict())
    else:
        changed.fit(after).encode(values)
        fresh, changed = fresh.double(), changed.double()
    tokens = changed.encode(values)
    assert torch.equal(tokens, fresh.encode(values))
    assert torch.equal(changed.decode(tokens), fresh.decode(tokens))
    assert torch.equal(changed.expectation(probabilities), fresh.expectation(probabilities))


def test_gradients_pass_through_an_expectation_that_a_search_asked_for_first():
    discretizer = QuantileDiscretizer(10).fit(normal(100))
    probabilities = torch.full((1, 3, 10), 0.1)
    with torch.inference_mode():
        discretizer.expectation(probabilities)
    (gradient,) = torch.autograd.grad(discretizer.expectation(probabilities.requires_grad_()).sum(), probabilities)
    centers = (discretizer.edges[:, 1:] + discretizer.edges[:, :-1]) / 2
    torch.testing.assert_close(gradient[0], centers)


def test_widths_are_relative_to_the_mean_and_not_too_small() -> None:
    discretizer = QuantileDiscretizer(4)
    discretizer.edges = torch.tensor([[0.0, 1.0, 1.0, 2.0, 8.0], [3.0, 3.0, 3.0, 3.0, 3.0]])
    assert discretizer.log_widths().exp().tolist() == [
        pytest.approx([0.5, 0.05, 0.5, 3.0, 1.0]),
        pytest.approx([1.0, 1.0, 1.0, 1.0, 1.0]),
    ]


@BOTH
@pytest.mark.parametrize(("first", "last", "bins"), [(0, 63, 100), (0, 99, 100), (-3, 60, 64), (5, 7, 100), (0, 0, 2)])
def test_each_index_has_a_token_of_its_own_and_comes_back(kind: type[Discretizer], first: int, last: int, bins: int):
    indices = torch.arange(first, last + 1, dtype=torch.float32)[:, None]
    values = torch.cat([normal(50, 1), indices[: len(indices) // 2 + 1].repeat(50, 1)[:50]], dim=1)  # half are not seen
    discretizer = kind(bins).fit(values, {1: (first, last)})
    tokens = discretizer.encode(indices, slice(1, 2))
    assert len(tokens.unique()) == len(indices)
    assert torch.equal(discretizer.decode(tokens, slice(1, 2)), indices)
    assert torch.equal(discretizer.edges[0], kind(bins).fit(values[:, :1]).edges[0])  # other columns are as without
    assert torch.equal(Discretizer.from_dict(discretizer.to_dict()).encode(indices, slice(1, 2)), tokens)


def test_few_indices_that_are_all_seen_have_the_bins_that_values_have():
    """So that older runs, which do not know columns of indices, are resumed to the bit."""
    values = torch.tensor([[2.0], [0.0], [1.0], [0.0]])
    assert torch.equal(
        QuantileDiscretizer(20).fit(values, {0: (0, 2)}).edges, QuantileDiscretizer(20).fit(values).edges
    )


def test_tokens_beyond_the_indices_decode_next_to_the_last():
    discretizer = UniformDiscretizer(10).fit(torch.zeros(1, 1), {0: (0, 7)})
    assert discretizer.decode(torch.tensor([[7], [8], [9], [10]])).flatten().tolist() == [7.0, 7.5, 7.5, 7.5]


def test_more_indices_than_bins_do_not_fit():
    with pytest.raises(ValueError, match="65 indices do not fit into 64 bins"):
        UniformDiscretizer(64).fit(torch.zeros(1, 1), {0: (0, 64)})
