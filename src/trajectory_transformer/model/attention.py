"""Causal attention with dropout for training on a CPU, in C (``attention.c``), registered as a torch operator.

PyTorch's fused attention for CPUs does not support dropout and computes masked weights too; with dropout, PyTorch falls
back to an implementation that stores (batch, head, time, time) weights and masks. Here dropped weights are determined
by counters and recomputed in the backward pass.
"""

import ctypes
import functools
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import c_library

_POINTERS = (
    "query", "key", "value", "output", "log_sums",
    "output_gradient", "query_gradient", "key_gradient", "value_gradient",
)  # fmt: skip


class Attention(ctypes.Structure):
    """``Attention`` of attention.c, with the same fields."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("batch", "heads", "time", "width", "columns")),
        *((name, ctypes.c_void_p) for name in ("column", "counts")),
        ("strides", ctypes.c_int64 * 9),
        *((name, ctypes.c_void_p) for name in _POINTERS),
        ("dropout", ctypes.c_double),
        ("seed", ctypes.c_uint64),
        ("threads", ctypes.c_int64),
    )


@functools.cache
def load_library() -> ctypes.CDLL:
    """Compile and load the functions; :class:`~..c_library.UnavailableError` if they cannot be compiled."""
    functions: c_library.Functions = {
        "tt_attention": (ctypes.c_int, [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]),
        "tt_kept_weights": (None, [ctypes.c_void_p, ctypes.c_void_p]),
    }
    return c_library.load(Path(__file__).with_name("attention.c"), functions)


def causal_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float) -> Tensor:
    """Attention outputs (batch, head, time, head_dim) of all positions, each over the positions that its mask allows.

    Attention weights are dropped with probability ``dropout``; the others are divided by 1 - dropout (the original's
    ``attn_drop``). One number drawn from torch's global generator decides which are dropped.

    Args:
        query, key, value: (batch, head, time, head_dim) float32, on the CPU.
        mask: (time, time) bool, as in the original: of the columns that are True in any row, each row has the first few
            True, at least one and no fewer than the row before.
        dropout: probability in [0, 1).

    Raises:
        ValueError: the mask has another form.
    """
    assert query.dtype == key.dtype == value.dtype == torch.float32
    seed = torch.randint(2**62, ()) if dropout else torch.zeros((), dtype=torch.int64)
    return _forward(query, key, value, mask, dropout, seed)[0].transpose(1, 2)


def causal_attention_without_mask(query: Tensor, key: Tensor, value: Tensor, visible: Tensor, dropout: float) -> Tensor:
    """Causal attention that hides some columns from all rows, for PyTorch's flash attention, which takes no mask.

    A further feature, 1 in each query, lowers the scores of hidden keys so far that their weights are exactly 0. On an
    H200 it takes half as long as attention with a mask.

    Args:
        query, key, value: (batch, head, time, head_dim) of one dtype.
        visible: (time,) bool, True for columns that are not hidden; the first must be visible.
        dropout: probability of dropping a weight.
    """
    width = query.shape[3]
    zeros = 7 - width % 8  # flash attention takes multiples of 8 features
    lowered = torch.where(visible, 0.0, -30_000.0).to(key.dtype)[:, None].expand(*key.shape[:3], 1)
    query = F.pad(F.pad(query, (0, 1), value=1.0), (0, zeros))
    key = F.pad(torch.cat([key, lowered], dim=3), (0, zeros))
    value = F.pad(value, (0, 1 + zeros))
    scale = width**-0.5
    attended = F.scaled_dot_product_attention(query, key, value, dropout_p=dropout, is_causal=True, scale=scale)
    return attended[..., :width]


def kept_weights(query: Tensor, mask: Tensor, dropout: float, seed: int) -> Tensor:
    """Dropout mask (batch, head, time, time) bool, True where a weight is kept; True in columns that no row sees.

    It is made by a counter-based generator: SplitMix64 of (seed, sequence, head, row) gives a key, and a 32-bit hash of
    key and column is compared with the probability.
    """
    (batch, heads, time, _), (column, counts) = query.shape, seen_columns(mask)
    kept = torch.empty(batch, heads, time, len(column), dtype=torch.uint8)
    call = _call(query, query, query, column, counts, dropout, seed)
    load_library().tt_kept_weights(ctypes.addressof(call), kept.data_ptr())
    whole = torch.ones(batch, heads, time, time, dtype=torch.bool)
    whole[:, :, :, column.long()] = kept.bool()
    return whole


# Outputs and gradients are (batch, time, head, head_dim) in memory, as the surrounding layers need them.


@torch.library.custom_op(f"{c_library.OPERATORS}::causal_attention", mutates_args=(), device_types="cpu")
def _forward(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, seed: Tensor
) -> tuple[Tensor, Tensor]:
    batch, heads, time, width = query.shape
    output, log_sums = query.new_empty(batch, time, heads, width), query.new_empty(batch, heads, time)
    _run((query, key, value), mask, dropout, seed, backward=False, output=output, log_sums=log_sums)
    return output, log_sums


@_forward.register_fake
def _(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, seed: Tensor) -> tuple[Tensor, Tensor]:
    batch, heads, time, width = query.shape
    return query.new_empty(batch, time, heads, width), query.new_empty(batch, heads, time)


@torch.library.custom_op(f"{c_library.OPERATORS}::causal_attention_backward", mutates_args=(), device_types="cpu")
def _backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, seed: Tensor,
    output: Tensor, log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    made = [torch.empty_like(output) for _ in range(3)]
    _run(
        (query, key, value), mask, dropout, seed, backward=True, output=output, log_sums=log_sums,
        output_gradient=gradient.contiguous(), query_gradient=made[0], key_gradient=made[1], value_gradient=made[2],
    )  # fmt: skip
    return made[0], made[1], made[2]


@_backward.register_fake
def _(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, mask: Tensor, dropout: float, seed: Tensor,
    output: Tensor, log_sums: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return torch.empty_like(output), torch.empty_like(output), torch.empty_like(output)


def _save(ctx, inputs, output) -> None:
    query, key, value, mask, ctx.dropout, seed = inputs
    ctx.save_for_backward(query, key, value, mask, seed, *output)


def _differentiate(ctx, gradient: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    query, key, value, mask, seed, output, log_sums = ctx.saved_tensors
    found = _backward(gradient, query, key, value, mask, ctx.dropout, seed, output, log_sums)
    return *(part.transpose(1, 2) for part in found), None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)


def seen_columns(mask: Tensor) -> tuple[Tensor, Tensor]:
    """Indices of the columns that any row sees, and the number of them that each row sees; both int32."""
    seen = mask.numpy()  # whose operations take a tenth of the time of torch's on arrays as small
    column, counts = np.flatnonzero(seen.any(axis=0)), seen.sum(axis=1, dtype=np.int32)
    first = np.arange(len(column)) < counts[:, None]
    if not (np.array_equal(seen[:, column], first) and counts[0] > 0 and (counts[1:] >= counts[:-1]).all()):
        raise ValueError(
            "causal_attention needs a mask like the model's: of the columns that are True in any row, each row has the "
            "first few True, at least one, and no fewer than the row before"
        )
    return torch.from_numpy(column.astype(np.int32)), torch.from_numpy(counts)


def _call(
    query: Tensor, key: Tensor, value: Tensor, column: Tensor, counts: Tensor, dropout: float, seed: int
) -> Attention:
    sizes = (*query.shape, len(column))
    strides = (ctypes.c_int64 * 9)(*(stride for part in (query, key, value) for stride in part.stride()[:3]))
    call = Attention(*sizes, column.data_ptr(), counts.data_ptr(), strides)
    call.dropout, call.seed, call.threads = dropout, seed, torch.get_num_threads()
    return call


def _run(
    parts: tuple[Tensor, Tensor, Tensor], mask: Tensor, dropout: float, seed: Tensor, backward: bool, **others: Tensor
) -> None:
    query, key, value = (part if part.stride(3) == 1 else part.contiguous() for part in parts)
    column, counts = seen_columns(mask)
    call = _call(query, key, value, column, counts, dropout, int(seed))
    for name, tensor in {"query": query, "key": key, "value": value, **others}.items():
        setattr(call, name, tensor.data_ptr())
    status = load_library().tt_attention(ctypes.addressof(call), ctypes.sizeof(call), backward)
    if status == 1:
        raise MemoryError("not enough memory for attention")
    if status != 0:
        raise RuntimeError("attention.c and attention.py are of different versions; reinstall the package")
