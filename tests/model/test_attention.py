"""Attention in C against a written-out computation with the same weights dropped; its check of edited models."""

import copy
import ctypes
import logging
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from tests.planning.decoders import needs_compiler
from trajectory_transformer import c_library
from trajectory_transformer.model import attention as attention_module
from trajectory_transformer.model.attention import causal_attention, causal_attention_without_mask, kept_weights
from trajectory_transformer.model.attention_proof import may_attend_in_c
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import Block, TrajectoryTransformer
from trajectory_transformer.model.memory import CausalMemory

pytestmark = needs_compiler


@pytest.mark.parametrize(
    ("time", "width", "transition_dim"), [(17, 32, 5), (50, 40, 7), (33, 5, 4), (9, 7, 3), (249, 32, 25)]
)
def test_hidden_columns_without_a_mask(time: int, width: int, transition_dim: int) -> None:
    """Outputs and gradients; the gradients of hidden keys and values are exactly 0, as their weights are."""
    query, key, value, gradient = parts(2, 2, time, width)
    mask = mask_of(time, transition_dim)
    expected = written_out(query, key, value, mask, torch.ones(()), 0.0)
    wanted = torch.autograd.grad(expected, (query, key, value), gradient)
    output = causal_attention_without_mask(query, key, value, mask[-1], 0.0)
    torch.testing.assert_close(output, expected)
    found = torch.autograd.grad(output, (query, key, value), gradient)
    torch.testing.assert_close(found, wanted)
    for of_hidden in found[1:]:
        assert not of_hidden[:, :, ~mask[-1]].any()


def test_an_edited_mask_is_computed_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """In PyTorch, with a warning; a mask of the model's form needs none."""
    config = TransformerConfig(
        vocab_size=5, block_size=11, action_dim=1, observation_dim=1, transition_dim=4, n_layer=1, n_head=1, n_embd=8
    )
    for edited, expected in ((False, True), (True, False)):
        model = TrajectoryTransformer(config)
        if edited:
            model.mask[9, 2] = False
        model.compare_attention()
        assert model.hides_columns is expected
        assert model.attends_in_c is expected
    [message] = [record.message for record in caplog.records]
    assert "attention in C cannot be used, because causal_attention needs a mask" in message


def mask_of(time: int, transition_dim: int) -> Tensor:
    """The original's mask: causal, and a transition's last position is hidden from all."""
    mask = torch.ones(time, time, dtype=torch.bool).tril()
    mask[:, transition_dim - 1 :: transition_dim] = False
    return mask


def parts(batch: int, heads: int, time: int, width: int) -> list[Tensor]:
    """Query, key and value in the memory layout of the projections, and a gradient of the output."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.randn(batch, time, heads, width, generator=generator).transpose(1, 2) for _ in range(4)]
    return [part.requires_grad_() for part in made[:3]] + made[3:]


def written_out(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, kept: Tensor, dropout: float) -> Tensor:
    scores = (query @ key.transpose(2, 3) / math.sqrt(query.shape[3])).masked_fill(~mask, -torch.inf)
    return (scores.softmax(dim=-1) * kept / (1 - dropout)) @ value


def seeded(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> tuple[Tensor, Tensor]:
    """The output, and which weights it kept."""
    torch.manual_seed(3)
    seed = int(torch.randint(2**62, ()))
    torch.manual_seed(3)
    return causal_attention(query, key, value, mask, dropout), kept_weights(query, mask, dropout, seed)


@pytest.mark.parametrize("dropout", [0.0, 0.1, 0.6])
@pytest.mark.parametrize(
    ("batch", "heads", "time", "width", "transition_dim"),
    [(2, 2, 17, 32, 5), (1, 3, 50, 40, 7), (2, 1, 33, 5, 4), (1, 2, 9, 64, 3), (1, 1, 1, 3, 2), (1, 4, 249, 32, 25)],
)
def test_outputs_and_gradients_are_those_of_the_sum_written_out(
    batch: int, heads: int, time: int, width: int, transition_dim: int, dropout: float
) -> None:
    query, key, value, gradient = parts(batch, heads, time, width)
    mask = mask_of(time, transition_dim)
    output, kept = seeded(query, key, value, mask, dropout)
    wanted = written_out(query.double(), key.double(), value.double(), mask, kept, dropout)
    torch.testing.assert_close(output, wanted.float(), rtol=1e-5, atol=2e-6)
    found = torch.autograd.grad(output, (query, key, value), gradient)
    wanted_gradients = torch.autograd.grad(wanted, (query, key, value), gradient.double())
    for ours, theirs in zip(found, wanted_gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert torch.equal(found[2][:, :, ~mask.any(dim=0)], torch.zeros_like(found[2][:, :, ~mask.any(dim=0)]))


def test_without_dropout_it_is_torchs_attention() -> None:
    query, key, value, gradient = parts(3, 2, 31, 24)
    mask = mask_of(31, 6)
    wanted = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
    output = causal_attention(query, key, value, mask, 0.0)
    torch.testing.assert_close(output, wanted, rtol=1e-5, atol=1e-6)
    pairs = (torch.autograd.grad(y, (query, key, value), gradient) for y in (output, wanted))
    for ours, theirs in zip(*pairs, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_no_number_of_threads_changes_a_bit(one_thread: None) -> None:
    query, key, value, gradient = parts(3, 2, 45, 16)
    mask, found = mask_of(45, 5), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        output, _ = seeded(query, key, value, mask, 0.2)
        found.append((output, *torch.autograd.grad(output, (query, key, value), gradient)))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_operator_is_one_that_torch_can_trace() -> None:
    query, key, value, _ = parts(1, 2, 12, 8)
    arguments = query, key, value, mask_of(12, 4), 0.3, torch.tensor(5)
    torch.library.opcheck(torch.ops.trajectory_transformer.causal_attention, arguments)


def test_weights_are_dropped_independently() -> None:
    """Over rows, columns, heads, sequences and seeds: weights with the frequency, pairs with its square."""
    query, mask, dropped = torch.zeros(8, 4, 100, 1), torch.ones(100, 100, dtype=torch.bool).tril(), []
    for seed in (0, 1, 2**61 + 1):
        dropped.append(~kept_weights(query, mask, 0.25, seed))
    first = torch.stack(dropped)[..., mask]  # (seed, sequence, head, weights)
    deviation = (0.25 * 0.75 / first.numel()) ** 0.5
    assert abs(float(first.double().mean()) - 0.25) < 4 * deviation
    whole = torch.stack(dropped)[..., 50:, :50]  # of which all are below the diagonal
    for dimension in range(whole.dim()):
        one, other = (
            whole.narrow(dimension, 1, whole.shape[dimension] - 1),
            whole.narrow(dimension, 0, whole.shape[dimension] - 1),
        )
        both = (one & other).double()
        deviation = (0.0625 * 0.9375 / both.numel()) ** 0.5
        assert abs(float(both.mean()) - 0.0625) < 5 * deviation, dimension


@pytest.mark.parametrize("mask", ["a row of nothing", "what comes later", "a window that slides"])
def test_other_masks_are_refused(mask: str) -> None:
    shown = torch.ones(6, 6, dtype=torch.bool).tril()
    if mask == "a row of nothing":
        shown[0] = False
    elif mask == "what comes later":
        shown[2, 5] = True
    else:
        shown[4:, 0] = False
    query, key, value, _ = parts(1, 1, 6, 4)
    with pytest.raises(ValueError, match="needs a mask like the model's"):
        causal_attention(query, key, value, shown, 0.0)


# ---- the proof ----


def make_model(**options: object) -> TrajectoryTransformer:
    torch.manual_seed(0)
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 16, "vocab_size": 9, "block_size": 23, "transition_dim": 6}
    options = sizes | {"embd_pdrop": 0.0, "resid_pdrop": 0.0, "attn_pdrop": 0.0} | options
    model = TrajectoryTransformer(TransformerConfig(observation_dim=3, action_dim=1, **options))  # type: ignore[arg-type] # of one test
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    return model.train()


def gradients(model: TrajectoryTransformer, use_cache: bool | None = None) -> list[Tensor]:
    torch.manual_seed(1)
    model.zero_grad()
    tokens = torch.randint(0, 9, (2, 3, 23))
    loss = model(tokens[0], targets=tokens[1], use_cache=use_cache).loss
    assert loss is not None
    loss.backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("numbers", [None, 8])
def test_training_attends_in_c_as_in_torch(numbers: int | None, caplog: pytest.LogCaptureFixture) -> None:
    model = make_model(numerical_embedding=numbers)
    in_torch = copy.deepcopy(model)
    in_torch.attends_in_c = False
    for ours, theirs in zip(gradients(model), gradients(in_torch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert model.attends_in_c
    assert not caplog.records


def test_the_proof_changes_nothing() -> None:
    model = make_model(attn_pdrop=0.1)
    before, weights = torch.random.get_rng_state(), copy.deepcopy(model.state_dict())
    assert may_attend_in_c(model)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training


def linear_bias(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
    """Attention with a bias against distant positions."""
    distance = torch.arange(query.shape[2]) - torch.arange(query.shape[2]).unsqueeze(1)
    bias = (0.1 * distance).masked_fill(~attn_mask, -torch.inf)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=bias, dropout_p=dropout_p)


def drop_before_softmax(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor, dropout_p: float) -> Tensor:
    kept = attn_mask & (torch.rand(attn_mask.shape) >= dropout_p) | (torch.arange(len(attn_mask)) == 0)
    return torch.nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=kept)


@pytest.mark.parametrize(
    ("edited", "reason"),
    [(linear_bias, "its logits or gradients differ"), (drop_before_softmax, "it drops attention weights with another")],
)
def test_edited_attention_trains_as_edited(
    edited: object, reason: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("trajectory_transformer.model.memory.F", Functions(edited))
    model = make_model()
    in_torch = copy.deepcopy(model)
    in_torch.attends_in_c = False
    assert all(torch.equal(*pair) for pair in zip(gradients(model), gradients(in_torch), strict=True))
    [record] = caplog.records
    assert reason in record.getMessage()
    assert "PyTorch's attention" in record.getMessage()


class Functions:
    """torch.nn.functional with another attention, as in an edited memory.py."""

    def __init__(self, attention: object) -> None:
        self.scaled_dot_product_attention = attention

    def __getattr__(self, name: str) -> object:
        return getattr(F, name)


class WithRotation(Block):
    """A user's own block with the model's attention."""

    def forward(self, x: Tensor, layer: int, memory: CausalMemory) -> Tensor:  # type: ignore[override] # narrower
        return super().forward(torch.roll(x, 1, dims=-1), layer, memory)


def test_blocks_of_ones_own_attend_in_c(caplog: pytest.LogCaptureFixture) -> None:
    model = make_model()
    model.blocks[0] = WithRotation(model.config)
    gradients(model)
    assert model.attends_in_c
    assert not caplog.records


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> None:
        raise c_library.UnavailableError("there is no C compiler")

    monkeypatch.setattr("trajectory_transformer.model.attention_proof.load_library", missing)
    with caplog.at_level(logging.WARNING):
        gradients(make_model(attn_pdrop=0.1))
    [record] = caplog.records
    assert "there is no C compiler" in record.getMessage()


def test_other_versions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(attention_module.Attention):  # a field more than in C
        _fields_ = (("more", ctypes.c_int64),)

    monkeypatch.setattr(attention_module, "Attention", Longer)
    query, key, value, _ = parts(1, 1, 6, 4)
    with pytest.raises(RuntimeError, match="of different versions"):
        causal_attention(query, key, value, mask_of(6, 3), 0.0)
