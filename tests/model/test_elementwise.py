"""Dropout and GELU in C against torch's."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.planning.decoders import needs_compiler
from trajectory_transformer import c_library
from trajectory_transformer.model import elementwise
from trajectory_transformer.model.elementwise import Dropout, gelu

pytestmark = needs_compiler


@pytest.mark.parametrize("count", [1, 7, 64, 100_003])
def test_gelu_and_its_derivative(count: int) -> None:
    x = torch.linspace(-9, 9, count).requires_grad_()
    double, gradient = x.detach().double().requires_grad_(), torch.linspace(1, 2, count)
    y, wanted = gelu(x), F.gelu(double)
    assert torch.all((y - wanted).abs() <= 3e-7 * double.abs() + 1e-12)
    [found] = torch.autograd.grad(y, x, gradient)
    [derivative] = torch.autograd.grad(wanted, double, gradient.double())
    torch.testing.assert_close(found.double(), derivative, rtol=0, atol=3e-6)


def test_gelu_of_what_is_not_finite() -> None:
    x = torch.tensor([torch.nan, torch.inf, -1.0]).requires_grad_()
    y = gelu(x)
    assert y[0].isnan()
    assert y[1].isinf()
    y.sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().tolist()[::2] == [False, True]


@pytest.mark.parametrize(("probability", "count"), [(0.1, 9), (0.1, 200_003), (0.5, 50_000), (0.9, 50_000)])
def test_dropout_drops_that_share_and_scales_the_rest(probability: float, count: int) -> None:
    torch.manual_seed(0)
    x = torch.linspace(1, 2, count).requires_grad_()
    y = Dropout(probability)(x)
    kept = y != 0
    torch.testing.assert_close(y[kept], x[kept] / (1 - probability))
    deviation = (probability * (1 - probability) / count) ** 0.5
    assert abs(float(kept.double().mean()) - (1 - probability)) <= 4 * deviation
    y.sum().backward()
    torch.testing.assert_close(x.grad, kept / (1 - probability))


def test_neighbours_and_calls_are_dropped_independently() -> None:
    torch.manual_seed(0)
    x = torch.ones(2, 100_000)
    calls = torch.stack([Dropout(0.5)(x), Dropout(0.5)(x)]) == 0
    for one, other in ((calls[..., 1:], calls[..., :-1]), (calls[0], calls[1]), (calls[:, 0], calls[:, 1])):
        assert abs(float((one & other).double().mean()) - 0.25) < 5 * (0.25 * 0.75 / one.numel()) ** 0.5


def test_dropout_follows_from_the_seed_and_from_no_number_of_threads(one_thread: None) -> None:
    x, found = torch.ones(50_000), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        torch.manual_seed(5)
        found.append(Dropout(0.3)(x))
    assert torch.equal(*found)


@pytest.mark.parametrize("module", [Dropout(0.0), Dropout(1.0), Dropout(0.5).eval()])
def test_where_nothing_is_drawn(module: nn.Module) -> None:
    before = torch.random.get_rng_state()
    found = module(torch.ones(5))
    assert found.unique().tolist() in ([0.0], [1.0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_operators_are_such_as_torch_can_trace() -> None:
    x = torch.randn(3, 5, requires_grad=True)
    torch.library.opcheck(torch.ops.trajectory_transformer.gelu, (x,))
    torch.library.opcheck(torch.ops.trajectory_transformer.dropout, (x, 0.3, torch.tensor(5)))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise c_library.UnavailableError("there is no C compiler")

    monkeypatch.setattr(elementwise, "load_library", missing)
    elementwise._is_available.cache_clear()  # pyright: ignore[reportPrivateUsage] # what it knows of this machine
    try:
        x = torch.randn(100, requires_grad=True)
        assert torch.equal(gelu(x), F.gelu(x))
        torch.manual_seed(0)
        ours = Dropout(0.5)(x)
        torch.manual_seed(0)
        assert torch.equal(ours, F.dropout(x, 0.5))
    finally:
        elementwise._is_available.cache_clear()  # pyright: ignore[reportPrivateUsage]
