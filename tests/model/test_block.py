"""A whole block in C against the block's own code in PyTorch; the cases in which it is not used."""

import copy
import ctypes
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from tests.model.test_attention import gradients, make_model, mask_of
from tests.planning.decoders import needs_compiler
from trajectory_transformer import c_library
from trajectory_transformer.configuration import ModelConfig
from trajectory_transformer.model import block as block_module
from trajectory_transformer.model.block import suits, transform
from trajectory_transformer.model.elementwise import Dropout
from trajectory_transformer.model.gpt import Block, TrajectoryTransformer
from trajectory_transformer.model.memory import CausalMemory

pytestmark = needs_compiler


def make_block(width: int, heads: int, dropout: float = 0.0, **options: object) -> Block:
    torch.manual_seed(0)
    dropouts = dict.fromkeys(("embd_pdrop", "resid_pdrop", "attn_pdrop"), dropout) | options
    block = Block(ModelConfig(n_embd=width, n_head=heads, **dropouts)).train()  # type: ignore[arg-type] # of one test
    for parameter in block.parameters():
        parameter.data.normal_(std=0.2)
    return block


def inputs(batch: int, time: int, width: int) -> tuple[Tensor, Tensor]:
    """The block's input, and a gradient of its output."""
    generator = torch.Generator().manual_seed(0)
    x, gradient = torch.randn(2, batch, time, width, generator=generator)
    return x.requires_grad_(), gradient


def close(ours: Tensor, theirs: Tensor, scale: Tensor) -> bool:
    return bool((ours - theirs).norm() <= 1e-5 * torch.maximum(theirs.norm(), scale.norm()))


@pytest.mark.parametrize(
    ("batch", "time", "width", "heads", "transition_dim"),
    [
        (3, 17, 32, 2, 5),
        (40, 9, 64, 2, 4),
        (2, 63, 64, 4, 16),
        (5, 130, 96, 3, 7),
        (1, 1, 32, 1, 2),
        (2, 64, 256, 8, 25),
    ],
)
def test_outputs_and_gradients_are_those_of_torch_in_float64(
    batch: int, time: int, width: int, heads: int, transition_dim: int
) -> None:
    block, mask, (x, gradient) = make_block(width, heads), mask_of(time, transition_dim), inputs(batch, time, width)
    double, x64 = copy.deepcopy(block).double(), x.detach().double().requires_grad_()
    assert suits(block, x, block.act)
    output, wanted = transform(block, x, mask), double(x64, 0, CausalMemory(mask, None, False, False))
    assert close(output.double(), wanted, wanted)
    found = torch.autograd.grad(output, [x, *block.parameters()], gradient)
    expected = torch.autograd.grad(wanted, [x64, *double.parameters()], gradient.double())
    for ours, theirs in zip(found, expected, strict=True):  # those of the keys' biases are 0 but for rounding
        assert close(ours.double(), theirs, gradient)


@pytest.mark.parametrize(("residual", "weights"), [(0.2, 0.0), (0.0, 0.3), (0.1, 0.1)])
def test_it_drops_what_the_submodules_would_drop(residual: float, weights: float) -> None:
    block = make_block(64, 2, resid_pdrop=residual, attn_pdrop=weights)
    mask, (x, gradient) = mask_of(70, 7), inputs(3, 70, 64)
    found = []
    for run in (
        lambda: transform(block, x, mask),
        lambda: block(x, 0, CausalMemory(mask, None, False, False, in_c=True)),
    ):
        torch.manual_seed(5)
        output = run()
        found.append((output, *torch.autograd.grad(output, [x, *block.parameters()], gradient), torch.rand(())))
    for ours, theirs in zip(*found, strict=True):
        assert close(ours, theirs, gradient if theirs.dim() else theirs)


def test_no_number_of_threads_changes_a_bit(one_thread: None) -> None:
    block, mask, (x, gradient) = make_block(64, 2, 0.1), mask_of(40, 7), inputs(37, 40, 64)
    found = []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        torch.manual_seed(0)
        output = transform(block, x, mask)
        found.append((output, *torch.autograd.grad(output, [x, *block.parameters()], gradient)))
    for others in found[1:]:
        assert all(torch.equal(one, other) for one, other in zip(found[0], others, strict=True))


def test_operator_is_one_that_torch_can_trace() -> None:
    block, (x, _) = make_block(32, 2), inputs(2, 12, 32)
    modules = (
        block.attn.query,
        block.attn.key,
        block.attn.value,
        block.attn.proj,
        block.l1,
        block.l2,
        block.ln1,
        block.ln2,
    )
    parts = [part.flatten() for module in modules for part in (module.weight, module.bias)]
    parameters = torch.cat(parts).detach().requires_grad_()
    arguments = x, parameters, mask_of(12, 4), 2, [1e-5, 1e-5], [0.3, 0.2], torch.tensor([5, 6, 7])
    torch.library.opcheck(torch.ops.trajectory_transformer.block, arguments)


def test_other_versions_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    class Longer(block_module._Block):  # pyright: ignore[reportPrivateUsage] # a field more than in C
        _fields_ = (("more", ctypes.c_int64),)

    monkeypatch.setattr(block_module, "_Block", Longer)
    with pytest.raises(RuntimeError, match="of different versions"):
        transform(make_block(32, 1), inputs(1, 6, 32)[0], mask_of(6, 3))


# ---- where it is not used ----


class Scaled(nn.Linear):
    """A linear map of a user's own."""

    def forward(self, input: Tensor) -> Tensor:
        return 2 * super().forward(input)


def other_linear(block: Block) -> None:
    block.l2 = Scaled(128, 32)


def narrow(block: Block) -> None:
    block.l1, block.l2 = nn.Linear(32, 64), nn.Linear(64, 32)


def without_bias(block: Block) -> None:
    block.attn.key = nn.Linear(32, 32, bias=False)


def one_in_half_precision(block: Block) -> None:
    block.ln1.bfloat16()


def frozen_dropout(block: Block) -> None:
    block.drop.eval()


def hook(block: Block) -> None:
    block.attn.value.register_forward_hook(lambda *_: None)


def other_dropout(block: Block) -> None:
    block.drop = Dropout(0.5)


CHANGES = (
    other_linear,
    narrow,
    without_bias,
    one_in_half_precision,
    frozen_dropout,
    hook,
    other_dropout,
    Block.bfloat16,
)


@pytest.mark.parametrize("change", CHANGES)
def test_changed_blocks_compute_themselves(change: Callable[[Block], object]) -> None:
    block = make_block(32, 2)
    change(block)
    x = inputs(1, 5, 32)[0].to(block.l1.weight.dtype)
    assert not suits(block, x, block.act)


@pytest.mark.parametrize(("width", "activation"), [(40, "gelu"), (288, "gelu"), (32, "relu")])
def test_other_sizes_and_activations(width: int, activation: str) -> None:
    block = make_block(width, 2, hidden_act=activation)
    assert not suits(block, inputs(1, 5, width)[0], block.act)


def wide_model(**options: object) -> TrajectoryTransformer:
    return make_model(n_embd=32, **options)


def test_training_computes_blocks_in_c(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = block_module._run  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(block_module, "_run", lambda *args, **options: (calls.append(1), run(*args, **options)))
    model = wide_model()
    in_torch = copy.deepcopy(model)
    in_torch.attends_in_c = False
    model.compare_attention()
    calls.clear()
    found = gradients(model, use_cache=False)
    assert len(calls) == 4  # two blocks, forward and backward
    for ours, theirs in zip(found, gradients(in_torch), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)
    assert not caplog.records


class WithoutResidual(Block):
    """A block that looks like ours, with another forward pass around it."""

    def forward(self, x: Tensor, layer: int, memory: CausalMemory) -> Tensor:  # type: ignore[override] # narrower
        if (mask := memory.mask_in_c(x.shape[1])) is not None:  # as an edited forward would still do
            return transform(self, x, mask)
        return self.l2(self.act(self.l1(self.ln2(x + self.attn(self.ln1(x), layer, memory)))))


class DropsElsewhere(Block):
    """A block that differs from ours in what it drops only."""

    def forward(self, x: Tensor, layer: int, memory: CausalMemory) -> Tensor:  # type: ignore[override] # narrower
        if (mask := memory.mask_in_c(x.shape[1])) is not None:
            return transform(self, x, mask)
        x = self.drop(x + self.attn(self.ln1(x), layer, memory))
        return x + self.l2(self.act(self.l1(self.ln2(x))))


@pytest.mark.parametrize("kind", [WithoutResidual, DropsElsewhere])
def test_edited_blocks_train_as_edited(kind: type[Block], caplog: pytest.LogCaptureFixture) -> None:
    model = wide_model(resid_pdrop=0.2)
    model.blocks = nn.ModuleList(kind(model.config) for _ in range(2))
    gradients(model)
    assert model.attends_in_c
    assert not model.blocks_in_c
    [record] = caplog.records
    assert "training with PyTorch's blocks" in record.getMessage()


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def missing() -> None:
        raise c_library.UnavailableError("there is no C compiler")

    monkeypatch.setattr(block_module, "load_library", missing)
    model = wide_model()
    gradients(model)
    assert not model.blocks_in_c
    [record] = caplog.records
    assert "there is no C compiler" in record.getMessage()


def test_whatever_needs_keys_or_weights_is_computed_as_before() -> None:
    model = wide_model().eval()
    model.attends_in_c = model.blocks_in_c = True
    tokens = torch.randint(0, 9, (2, 23))
    output = model(tokens, use_cache=True, output_attentions=True, return_dict=True)
    assert len(output.past_key_values) == len(output.attentions) == 2
    in_c = model(tokens, use_cache=False, return_dict=True).logits
    torch.testing.assert_close(output.logits, in_c, rtol=1e-4, atol=1e-4)
