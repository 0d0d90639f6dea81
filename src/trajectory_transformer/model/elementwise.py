"""Dropout and GELU for training on a CPU, in C (``elementwise.c``), registered as torch operators.

PyTorch draws dropout masks sequentially in one thread, which takes longer than applying them.
"""

import ctypes
import functools
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import c_library


@functools.cache
def load_library() -> ctypes.CDLL:
    """Compile and load the functions; :class:`~..c_library.UnavailableError` if they cannot be compiled."""
    address, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
    functions: c_library.Functions = {
        "tt_dropout": (None, [address, address, size, ctypes.c_double, ctypes.c_uint64, number]),
        "tt_gelu": (None, [address, address, size, number]),
        "tt_gelu_backward": (None, [address, address, address, size, number]),
    }
    return c_library.load(Path(__file__).with_name("elementwise.c"), functions)


@functools.cache
def _is_available() -> bool:
    try:
        load_library()
    except c_library.UnavailableError:  # attention_proof logs the warning
        return False
    return True


def _suits(x: Tensor) -> bool:
    return x.device.type == "cpu" and x.dtype == torch.float32 and not torch.compiler.is_compiling() and _is_available()


class Dropout(nn.Dropout):
    """Dropout; on a CPU, the mask is computed from counters and one number drawn from torch's global generator."""

    def forward(self, input: Tensor) -> Tensor:
        if self.training and 0 < self.p < 1 and _suits(input):
            return _dropout(input, self.p, torch.randint(2**62, ()))
        return super().forward(input)


def gelu(x: Tensor) -> Tensor:
    """Exact GELU, x Φ(x); in training on a CPU with an error of at most 3e-7 |x|."""
    return _gelu(x) if x.requires_grad and torch.is_grad_enabled() and _suits(x) else F.gelu(x)


@torch.library.custom_op(f"{c_library.OPERATORS}::dropout", mutates_args=(), device_types="cpu")
def _dropout(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    x, threads = x.contiguous(), torch.get_num_threads()
    out = torch.empty_like(x)
    load_library().tt_dropout(x.data_ptr(), out.data_ptr(), x.numel(), probability, int(seed), threads)
    return out


@_dropout.register_fake
def _(x: Tensor, probability: float, seed: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_dropout(ctx, inputs, output) -> None:
    _, ctx.probability, seed = inputs
    ctx.save_for_backward(seed)


def _differentiate_dropout(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
    return _dropout(gradient, ctx.probability, *ctx.saved_tensors), None, None


_dropout.register_autograd(_differentiate_dropout, setup_context=_save_dropout)


@torch.library.custom_op(f"{c_library.OPERATORS}::gelu", mutates_args=(), device_types="cpu")
def _gelu(x: Tensor) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    load_library().tt_gelu(x.data_ptr(), out.data_ptr(), x.numel(), torch.get_num_threads())
    return out


@torch.library.custom_op(f"{c_library.OPERATORS}::gelu_backward", mutates_args=(), device_types="cpu")
def _gelu_backward(gradient: Tensor, x: Tensor) -> Tensor:
    gradient, x = gradient.contiguous(), x.contiguous()
    out, threads = torch.empty_like(x), torch.get_num_threads()
    load_library().tt_gelu_backward(gradient.data_ptr(), x.data_ptr(), out.data_ptr(), x.numel(), threads)
    return out


@_gelu.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@_gelu_backward.register_fake
def _(gradient: Tensor, x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


def _save_gelu(ctx, inputs, output) -> None:
    ctx.save_for_backward(*inputs)


def _differentiate_gelu(ctx, gradient: Tensor) -> Tensor:
    return _gelu_backward(gradient, *ctx.saved_tensors)


_gelu.register_autograd(_differentiate_gelu, setup_context=_save_gelu)
