"""Decoding on the CPU at the speed of the hardware: a thin layer over ``native/decode.c``.

The same arithmetic as :class:`~.transformer_decoder.TransformerDecoder`, organised around what beams share:

- Keys and values lie in one pool of small pages. A sequence is a list of pages, so beams share their past, candidates
  their beam, and neither expanding nor pruning copies anything; a page is copied where sequences that were equal part
  in its middle. Value tokens, which nobody sees, are not stored.
- Sequences that are equal are computed once, whatever rows they stand in.
- A window that slides is encoded as a tree: transitions that several beams begin with are computed once.
- Tokens are sampled where their logits are; Python is called a few times for each transition, not for each token, or
  once for a plan (:mod:`.native_search`).
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..model.gpt import Block, DimensionHeads, SelfAttention, TrajectoryTransformer
from .decoder import BeamDecoder, gather_rows
from .native.library import UnavailableError, load_library
from .sampling import Choice

ACTIVATIONS = ("gelu", "relu", "selu", "gelu_new")  # in the order of decode.c
_PARTS = (
    TrajectoryTransformer, Block, SelfAttention, DimensionHeads, nn.Linear, nn.LayerNorm, nn.Embedding, nn.Dropout,
    nn.ModuleList,
)  # fmt: skip
_FAILURES: dict[int, tuple[type[Exception], str]] = {  # by what decode.c returns
    1: (MemoryError, "not enough memory for the beams' keys and values"),
    2: (ValueError, "more tokens than the model's block_size, {block_size}"),
    3: (ValueError, "tokens must lie in [0, {vocab_size}]"),
}


def unavailable_reason(model: TrajectoryTransformer) -> str | None:
    """Why this model cannot be decoded natively, or None if it can."""
    device, dtype = model.pos_emb.device, model.pos_emb.dtype
    if device.type != "cpu" or dtype != torch.float32:
        return f"it computes in float32 on the CPU, the model in {dtype} on {device}"
    if model.config.hidden_act not in ACTIVATIONS:
        return f"it knows the activations {', '.join(ACTIVATIONS)}, not {model.config.hidden_act}"
    kept = all(
        getattr(type(model), name) is getattr(TrajectoryTransformer, name) for name in ("embed", "hidden", "forward")
    )
    own = [part for part in model.modules() if type(part) not in _PARTS and not (part is model and kept)]
    foreign = sorted({type(part).__name__ for part in own})
    if foreign:
        return f"the model has parts that are not the package's own: {', '.join(foreign)}"
    try:
        load_library()
    except UnavailableError as error:
        return str(error)
    return None


class NativeDecoder(BeamDecoder):
    """:class:`BeamDecoder` in C, for float32 models on a CPU.

    Args:
        model: in evaluation mode, of a kind that :func:`unavailable_reason` has no objection to; its weights are copied
            here, so build a new decoder after they change.
        window: transitions that the model may see at once.
        sliding: as for :class:`~.transformer_decoder.TransformerDecoder`.

    Raises:
        UnavailableError: the library cannot be compiled here.
    """

    def __init__(self, model: TrajectoryTransformer, window: int, sliding: bool) -> None:
        self._library, self._config, self._sliding = load_library(), model.config, sliding
        self._limit = window * model.config.transition_dim
        with torch.no_grad():
            self._weights = [weight.detach().float().contiguous() for weight in _folded_weights(model)]
        self._threads, self._handle = 0, None
        self._use_threads(torch.get_num_threads())

    def _use_threads(self, threads: int) -> None:
        """Begin anew with room for that many threads."""
        if threads == self._threads:
            return
        config = self._config
        assert isinstance(config.hidden_act, str)
        shape = (
            config.n_layer, config.n_head, config.n_embd, 4 * config.n_embd, config.vocab_size + 1,
            config.transition_dim, config.block_size, ACTIVATIONS.index(config.hidden_act), threads,
        )  # fmt: skip
        addresses = [weight.data_ptr() for weight in self._weights]
        if self._handle is not None:
            self._finalizer()
        self._handle = self._library.tt_create(
            (ctypes.c_int * len(shape))(*shape),
            config.layer_norm_eps,
            (ctypes.c_void_p * len(addresses))(*addresses),
        )
        self._finalizer = weakref.finalize(self, self._library.tt_destroy, self._handle)
        self._threads = threads

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        status = function(self._handle, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
        if status != 0:
            kind, message = _FAILURES[status]
            raise kind(message.format(**vars(self._config)))

    def search(self, search: ctypes.Structure) -> None:
        """Run what :mod:`.native_search` has laid out. Of what was decoded before nothing stays."""
        self._use_threads(torch.get_num_threads())
        self._call(self._library.tt_search, ctypes.addressof(search))

    def prefill(self, tokens: Tensor) -> None:
        self._use_threads(torch.get_num_threads())
        excess, width = max(0, tokens.shape[1] - (self._limit - 1)), self._config.transition_dim
        self._encode(tokens[:, -(-excess // width) * width :].unsqueeze(1))

    def _encode(self, window: Tensor) -> None:
        """Begin anew with (environment, rows, time) whole sequences."""
        window = window.to(torch.int64).contiguous()
        environments, rows, time = window.shape
        self._call(self._library.tt_encode, window, environments * rows, time)
        self._window = window  # grows in the sliding mode only
        self._length, self._rows = time, _numbered(environments, rows)

    def expand(self, candidates: int) -> None:
        self._rows = self._rows.repeat_interleave(candidates, dim=1)
        self._window = self._window.repeat_interleave(candidates, dim=1) if self._sliding else self._window

    def keep(self, rows: Tensor) -> None:
        self._rows = self._rows.gather(1, rows)
        if self._sliding:
            self._window = gather_rows(self._window, rows)

    def step(self, tokens: Tensor) -> None:
        if self._slides_within(1):
            window = torch.cat([self._window, tokens.unsqueeze(2)], dim=2)
            self._encode(window[:, :, self._config.transition_dim :])
            return
        tokens = tokens.to(torch.int64).contiguous()
        self._call(self._library.tt_step, self._rows, tokens.numel(), tokens)
        self._appended(tokens.unsqueeze(2))

    def extend(self, uniforms: Tensor, choice: Choice, given: Tensor | None = None) -> Tensor:
        environments, count, rows = uniforms.shape
        if self._slides_within((given is not None) + count):
            return super().extend(uniforms, choice, given)
        given = None if given is None else given.to(torch.int64).contiguous()
        tokens = torch.empty(environments, rows, count, dtype=torch.int64)
        self._call(
            self._library.tt_extend, self._rows, environments * rows, given, environments, uniforms,
            (ctypes.c_int64 * 3)(*uniforms.stride()), count, choice.temperature, choice.k or 0,
            -1.0 if choice.cdf is None else choice.cdf, tokens,
        )  # fmt: skip
        self._appended(*([] if given is None else [given.unsqueeze(2)]), tokens)
        return tokens

    def _slides_within(self, tokens: int) -> bool:
        return self._sliding and self._length + tokens >= self._limit

    def _appended(self, *tokens: Tensor) -> None:
        self._length += sum(some.shape[2] for some in tokens)
        self._rows = _numbered(*self._rows.shape)
        self._window = torch.cat([self._window, *tokens], dim=2) if self._sliding else self._window

    @property
    def seconds(self) -> tuple[float, float]:
        spent = torch.empty(2, dtype=torch.float64)
        self._library.tt_seconds(self._handle, spent.data_ptr())
        return float(spent[0]), float(spent[1])

    @property
    def logits(self) -> Tensor:
        out = torch.empty(*self._rows.shape, self._config.vocab_size + 1)
        self._library.tt_logits(self._handle, self._rows.data_ptr(), self._rows.numel(), out.data_ptr())
        return out


@functools.lru_cache(maxsize=16)
def _numbered(environments: int, rows: int) -> Tensor:
    """(environment, rows) numbers of all rows, not to be written to."""
    return torch.arange(environments * rows).view(environments, rows)


def _folded_weights(model: TrajectoryTransformer) -> list[Tensor]:
    """What ``tt_create`` asks for.

    Norms are folded into the products behind them. Queries are divided by √head_dim, and by ln 2: the kernel takes
    scores as powers of 2.
    """
    config = model.config
    embeddings = model.tok_emb.weight[:-1].view(config.transition_dim, config.vocab_size, config.n_embd)
    stop = model.tok_emb.weight[-1].expand(config.transition_dim, 1, -1)
    heads, norm = model.head.weight, model.ln_f
    weights = [torch.cat([embeddings, stop], dim=1), model.pos_emb[0], heads * norm.weight, _product(heads, norm.bias)]
    for block in model.blocks:
        assert isinstance(block, Block)
        attention = block.attn
        scale = math.log2(math.e) * (config.n_embd // config.n_head) ** -0.5
        for linear, factor in ((attention.query, scale), (attention.key, 1.0), (attention.value, 1.0)):
            weights += [
                linear.weight * block.ln1.weight * factor,
                (linear.bias + _product(linear.weight, block.ln1.bias)) * factor,
            ]
        weights += [attention.proj.weight, attention.proj.bias]
        weights += [block.l1.weight * block.ln2.weight, block.l1.bias + _product(block.l1.weight, block.ln2.bias)]
        weights += [block.l2.weight, block.l2.bias]
    return weights


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """In float64, so that the number of threads shows in no bit."""
    return (matrix.double() @ vector.double()).float()
