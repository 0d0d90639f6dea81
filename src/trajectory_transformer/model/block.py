"""A whole transformer block for training on a CPU, in C (``block.c``), registered as a torch operator.

PyTorch computes each step of a block for the whole batch, so that every intermediate result leaves the cache. Here one
sequence at a time passes through all steps.
"""

import ctypes
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn

from .. import c_library
from .attention import Attention, seen_columns
from .elementwise import Dropout, gelu

MULTIPLE, WIDEST = 32, 256  # widths n_embd that block.c computes; PyTorch's products of wider matrices are as fast


class _Block(ctypes.Structure):
    """``Block`` of block.c, with the same fields."""

    _fields_ = (
        ("attention", Attention),
        ("epsilon", ctypes.c_double * 2),
        ("dropout", ctypes.c_double),
        ("seeds", ctypes.c_uint64 * 2),
        *(
            (name, ctypes.c_void_p)
            for name in ("parameters", "x", "out", "saved", "out_gradient", "x_gradient", "gradients")
        ),
        ("laid_out", ctypes.c_void_p * 16),
    )


@functools.cache
def load_library() -> ctypes.CDLL:
    """Compile and load the functions; :class:`~..c_library.UnavailableError` if they cannot be compiled."""
    functions: c_library.Functions = {
        "tt_block": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
    }
    return c_library.load(Path(__file__).with_name("block.c"), functions)


class Attending(Protocol):
    """The attention of a :class:`GPTBlock`."""

    query: nn.Linear
    key: nn.Linear
    value: nn.Linear
    proj: nn.Linear
    resid_drop: Dropout
    n_head: int
    attn_pdrop: float
    training: bool


class GPTBlock(Protocol):
    """A block with the submodules of :class:`~.gpt.Block`."""

    ln1: nn.LayerNorm
    ln2: nn.LayerNorm
    l1: nn.Linear
    l2: nn.Linear
    drop: Dropout

    @property
    def attn(self) -> Attending: ...


def suits(block: GPTBlock, x: Tensor, activation: object) -> bool:
    """True if :func:`transform` can compute a block of these sizes and submodules.

    It cannot if a submodule has another class or size, or a hook, because submodules are not called. Compiled models
    are left to PyTorch.
    """
    width, attention, drops = x.shape[-1], block.attn, (block.attn.resid_drop, block.drop)
    shapes = *[(width, width)] * 4, (4 * width, width), (width, 4 * width), (width,), (width,)
    return (
        activation is gelu
        and width % MULTIPLE == 0
        and width <= WIDEST
        and _is_read_by_c(x, x.shape)
        and not (torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling())
        and not has_hooks(attention)
        and all(type(drop) is Dropout and not has_hooks(drop) and drop.p < 1 for drop in drops)
        and drops[0].p == drops[1].p
        and drops[0].training == drops[1].training
        and all(
            type(module) is (nn.LayerNorm if len(shape) == 1 else nn.Linear)
            and not has_hooks(module)
            and _is_read_by_c(module.weight, shape)
            and _is_read_by_c(module.bias, shape[:1])
            for module, shape in zip(_modules(block), shapes, strict=True)
        )
    )


def _modules(block: GPTBlock) -> tuple[nn.Linear | nn.LayerNorm, ...]:
    """The block's modules with parameters, in the order of block.c."""
    attention = block.attn
    linear = attention.query, attention.key, attention.value, attention.proj, block.l1, block.l2
    return *linear, block.ln1, block.ln2


def _is_read_by_c(x: Tensor | None, shape: Sequence[int]) -> bool:
    return x is not None and x.shape == shape and x.dtype == torch.float32 and x.device.type == "cpu"


def has_hooks(module: object) -> bool:
    """True if calling the module does more than its ``forward``."""
    names = "_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks"
    return any(getattr(module, name, None) for name in names)


def transform(block: GPTBlock, x: Tensor, mask: Tensor) -> Tensor:
    """Output (batch, time, n_embd) of a block that :func:`suits`; its mask (time, time) is :class:`~.gpt`'s.

    Dropout is that of the block's own submodules: the same random numbers are drawn in the same order.
    """
    attention = block.attn
    in_attention = attention.attn_pdrop if attention.training else 0.0
    residual = block.drop.p if block.drop.training else 0.0
    drawn = in_attention, residual, residual
    seeds = torch.stack([torch.randint(2**62, ()) if p else torch.zeros((), dtype=torch.int64) for p in drawn])
    # One vector: torch takes a millisecond to pass a list of parameters to an operator and its gradients back.
    parameters = torch.cat([part.flatten() for module in _modules(block) for part in (module.weight, module.bias)])
    epsilons = [block.ln1.eps, block.ln2.eps]
    return _forward(x, parameters, mask, attention.n_head, epsilons, [in_attention, residual], seeds)[0]


@torch.library.custom_op(f"{c_library.OPERATORS}::block", mutates_args=(), device_types="cpu")
def _forward(
    x: Tensor, parameters: Tensor, mask: Tensor, heads: int, epsilons: Sequence[float],
    dropouts: Sequence[float], seeds: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Output, and numbers saved for the backward pass; parameters are weight and bias of each module in order."""
    x, out = x.contiguous(), torch.empty_like(x, memory_format=torch.contiguous_format)
    saved = x.new_empty(len(x), _saved_size(x, heads))
    _run(mask, heads, epsilons, dropouts, seeds, backward=False, parameters=parameters, x=x, out=out, saved=saved)
    return out, saved


@_forward.register_fake
def _(
    x: Tensor, parameters: Tensor, mask: Tensor, heads: int, epsilons: Sequence[float],
    dropouts: Sequence[float], seeds: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format), x.new_empty(len(x), _saved_size(x, heads))


@torch.library.custom_op(f"{c_library.OPERATORS}::block_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, saved: Tensor, x: Tensor, parameters: Tensor, mask: Tensor, heads: int,
    epsilons: Sequence[float], dropouts: Sequence[float], seeds: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Gradients of x and of the parameters."""
    x, gradient = x.contiguous(), gradient.contiguous()
    x_gradient, gradients = torch.empty_like(x), torch.empty_like(parameters)
    _run(
        mask, heads, epsilons, dropouts, seeds, backward=True, parameters=parameters, x=x, saved=saved,
        out_gradient=gradient, x_gradient=x_gradient, gradients=gradients,
    )  # fmt: skip
    return x_gradient, gradients


@_backward.register_fake
def _(
    gradient: Tensor, saved: Tensor, x: Tensor, parameters: Tensor, mask: Tensor, heads: int,
    epsilons: Sequence[float], dropouts: Sequence[float], seeds: Tensor,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(x, memory_format=torch.contiguous_format), torch.empty_like(parameters)


def _saved_size(x: Tensor, heads: int) -> int:
    """Numbers saved for each sequence, as in block.c: 9 n_embd for each padded position, and attention's sums."""
    _, time, width = x.shape
    return (time + 15) // 16 * 16 * 9 * width + heads * time


def _save(ctx, inputs, output) -> None:
    x, parameters, mask, ctx.heads, ctx.epsilons, ctx.dropouts, seeds = inputs
    ctx.set_materialize_grads(False)  # that of what is saved would be megabytes of zeros
    ctx.save_for_backward(output[1], x, parameters, mask, seeds)


def _differentiate(ctx, gradient: Tensor | None, _: Tensor | None) -> tuple[object, ...]:
    if gradient is None:
        return (None,) * 7
    saved, x, parameters, mask, seeds = ctx.saved_tensors
    options = mask, ctx.heads, ctx.epsilons, ctx.dropouts, seeds
    return *_backward(gradient, saved, x, parameters, *options), *(None,) * 5


_forward.register_autograd(_differentiate, setup_context=_save)


def _run(
    mask: Tensor, heads: int, epsilons: Sequence[float], dropouts: Sequence[float], seeds: Tensor, backward: bool,
    **tensors: Tensor,
) -> None:  # fmt: skip
    batch, time, width = tensors["x"].shape
    column, counts = seen_columns(mask)
    drawn = seeds.tolist()
    call = _Block(
        epsilon=(ctypes.c_double * 2)(*epsilons), dropout=dropouts[1], seeds=(ctypes.c_uint64 * 2)(*drawn[1:])
    )
    call.attention = Attention(batch, heads, time, width // heads, len(column), column.data_ptr(), counts.data_ptr())
    call.attention.dropout, call.attention.seed = dropouts[0], drawn[0]
    call.attention.threads = torch.get_num_threads()
    for name, tensor in tensors.items():
        setattr(call, name, tensor.data_ptr())
    status = load_library().tt_block(ctypes.addressof(call), ctypes.sizeof(call), backward)
    if status == 1:
        raise MemoryError("not enough memory for a block")
    if status != 0:
        raise RuntimeError("block.c and block.py are of different versions; reinstall the package")
