"""Fast decoding on the CPU: a thin layer over ``decode.c``.

It does the same arithmetic as :class:`~..transformer_decoder.TransformerDecoder`, and avoids repeated work:

- Keys and values are stored in one pool of small pages. A sequence is a list of pages, so beams share their past,
  candidates share their beam, and neither expanding nor pruning copies anything; a page is copied only if sequences
  diverge in the middle of it. Value tokens, which are invisible to later tokens, are not stored.
- Equal sequences are computed once, whatever rows they belong to.
- A sliding window is encoded as a tree: leading transitions that several beams share are computed once.
- Tokens are sampled in C too; Python calls C a few times for each transition, not for each token, or once for a plan
  (:mod:`.search`).
"""

import ctypes
import functools
import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...c_library import UnavailableError
from ...model.config import TransformerConfig
from ...model.gpt import TrajectoryTransformer
from ..decoder import BeamDecoder, gather_rows
from ..sampling import Choice
from .library import load_library

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {  # in the order of vectors.h
    "gelu": F.gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": functools.partial(F.gelu, approximate="tanh"),
}
_ATTENTION = ("query", "key", "value", "proj")
_OTHER_LAYOUT = "the kernel's C sources and its Python code are of different versions; reinstall the package"
_FAILURES: dict[int, tuple[type[Exception], str]] = {  # by the status that decode.c returns
    1: (MemoryError, "not enough memory for the beams' keys and values"),
    2: (ValueError, "more tokens than the model's block_size, {block_size}"),
    3: (ValueError, "tokens must lie in [0, {vocab_size}]"),
    4: (IndexError, "rows must be rows of the last call"),
    5: (RuntimeError, _OTHER_LAYOUT),
}


def unavailable_reason(model: TrajectoryTransformer) -> str | None:
    """The reason why this model cannot be decoded natively, or None if none is known before :mod:`.proof`."""
    return unsupported_reason(model) or _mismatch(model)


def unsupported_reason(model: TrajectoryTransformer) -> str | None:
    """The reason why models of this kind cannot be decoded natively on this machine, or None.

    It may be the device, the precision, the activation, or that the library cannot be compiled.
    """
    device, dtype = model.pos_emb.device, model.pos_emb.dtype
    if device.type != "cpu" or dtype != torch.float32:
        return f"it computes in float32 on the CPU, the model in {dtype} on {device}"
    if not isinstance(model.config.hidden_act, str) or model.config.hidden_act not in ACTIVATIONS:
        return f"it supports the activations {', '.join(ACTIVATIONS)}, not {model.config.hidden_act}"
    try:
        load_library()
    except UnavailableError as error:
        return str(error)
    return None


class NativeDecoder(BeamDecoder):
    """A :class:`BeamDecoder` in C, for float32 models on a CPU; ``window`` is the number of visible transitions.

    The model must be in evaluation mode and :func:`unavailable_reason` must be None. The weights are copied here: build
    a new decoder after they change.

    Raises:
        UnavailableError: the library cannot be compiled on this machine.
    """

    def __init__(self, model: TrajectoryTransformer, window: int, sliding: bool) -> None:
        self._prepare(model.config, _weights_of(model), window, sliding)

    def _prepare(self, config: TransformerConfig, weights: Mapping[str, Tensor], window: int, sliding: bool) -> None:
        self._library, self._config, self._sliding = load_library(), config, sliding
        self._limit = window * config.transition_dim
        with torch.no_grad():
            self._weights = [weight.detach().float().contiguous() for weight in _folded_weights(config, weights)]
        self._threads, self._handle = 0, None
        self._use_threads(torch.get_num_threads())

    def _use_threads(self, threads: int) -> None:
        """Create the C decoder anew for this number of threads."""
        if threads == self._threads:
            return
        config = self._config
        assert isinstance(config.hidden_act, str)
        shape = (
            config.n_layer, config.n_head, config.n_embd, 4 * config.n_embd, config.vocab_size + 1,
            config.transition_dim, config.block_size, list(ACTIVATIONS).index(config.hidden_act), threads,
            config.numerical_embedding or 0, config.observation_dim, _predicts(config),
        )  # fmt: skip
        addresses = [weight.data_ptr() for weight in self._weights]
        if self._handle is not None:
            self._finalizer()
        self._threads = 0
        self._handle = self._library.tt_create(
            (ctypes.c_int * len(shape))(*shape),
            len(shape),
            config.layer_norm_eps,
            (ctypes.c_void_p * len(addresses))(*addresses),
            len(addresses),
        )
        if self._handle is None:
            raise RuntimeError(_OTHER_LAYOUT)
        self._finalizer = weakref.finalize(self, self._library.tt_destroy, self._handle)
        self._threads = threads

    def _call(self, function: Callable[..., int], *arguments: Any) -> None:
        status = function(self._handle, *(a.data_ptr() if isinstance(a, Tensor) else a for a in arguments))
        if status != 0:
            kind, message = _FAILURES[status]
            raise kind(message.format(**vars(self._config)))

    def search(self, search: ctypes.Structure) -> None:
        """Run a search described by :mod:`.search`; sequences decoded before are discarded."""
        self._use_threads(torch.get_num_threads())
        self._call(self._library.tt_search, ctypes.addressof(search), ctypes.sizeof(search))

    def prefill(self, tokens: Tensor) -> None:
        self._use_threads(torch.get_num_threads())
        excess, width = max(0, tokens.shape[1] - (self._limit - 1)), self._config.transition_dim
        self._encode(tokens[:, -(-excess // width) * width :].unsqueeze(1))

    def _encode(self, window: Tensor) -> None:
        """Start over with whole sequences (environment, rows, time)."""
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
        """:meth:`BeamDecoder.step`; ValueError for an invalid token or row, or past ``block_size``."""
        self._require_rows("tokens", tokens.shape)
        if self._slides_within(1):
            window = torch.cat([self._window, tokens.unsqueeze(2)], dim=2)
            self._encode(window[:, :, self._config.transition_dim :])
            return
        tokens = tokens.to(torch.int64).contiguous()
        self._call(self._library.tt_step, self._rows, tokens.numel(), tokens)
        self._appended(tokens.unsqueeze(2))

    def extend(
        self, uniforms: Tensor, choice: Choice, given: Tensor | None = None, log_likelihoods: Tensor | None = None
    ) -> Tensor:
        environments, count, rows = uniforms.shape
        self._require_rows("uniforms", (environments, rows))
        if self._slides_within((given is not None) + count):
            return super().extend(uniforms, choice, given, log_likelihoods)
        if given is not None:
            self._require_rows("given", given.shape)
            given = given.to(torch.int64).contiguous()
        uniforms = uniforms.float()
        tokens = torch.empty(environments, rows, count, dtype=torch.int64)
        added = None if log_likelihoods is None else torch.zeros(environments, rows)
        self._call(
            self._library.tt_extend, self._rows, environments * rows, given, environments, uniforms,
            (ctypes.c_int64 * 3)(*uniforms.stride()), count, choice.temperature, choice.k or 0,
            -1.0 if choice.cdf is None else choice.cdf, tokens, added,
        )  # fmt: skip
        if log_likelihoods is not None and added is not None:
            log_likelihoods += added
        self._appended(*([] if given is None else [given.unsqueeze(2)]), tokens)
        return tokens

    def _require_rows(self, name: str, shape: Sequence[int]) -> None:
        if (wanted := tuple(self._rows.shape)) != tuple(shape):
            raise ValueError(f"{name} must be for {wanted} environments and rows, not for {tuple(shape)}")

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
        self._call(self._library.tt_logits, self._rows, self._rows.numel(), out)
        return out


@functools.lru_cache(maxsize=16)
def _numbered(environments: int, rows: int) -> Tensor:
    """Indices (environment, rows) of all rows, read-only because they are cached."""
    return torch.arange(environments * rows).view(environments, rows)


def _weights_of(model: TrajectoryTransformer) -> dict[str, Tensor]:
    """All tensors that the kernel reads, by name."""
    weights: dict[str, Tensor] = dict(model.named_parameters(remove_duplicate=False))
    return weights if model.numbers is None else {**weights, "numbers.values": model.numbers.values}


def expected_shapes(config: TransformerConfig) -> dict[str, tuple[int, ...]]:
    """Shapes of all parameters that the kernel reads, by name."""
    n, outputs = config.n_embd, config.vocab_size + 1
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (config.transition_dim * config.vocab_size + 1, n),
        "pos_emb": (1, config.block_size, n),
        "head.weight": (config.transition_dim, outputs, n),
    }
    for layer in range(config.n_layer):
        linear = {f"attn.{name}": (n, n) for name in _ATTENTION} | {"l1": (4 * n, n), "l2": (n, 4 * n)}
        for name, shape in linear.items():
            shapes[f"blocks.{layer}.{name}.weight"], shapes[f"blocks.{layer}.{name}.bias"] = shape, shape[:1]
    for name in _norms(config):
        shapes[f"{name}.weight"] = shapes[f"{name}.bias"] = (n,)
    if (hidden := config.numerical_embedding) is not None:
        shapes["numbers.values"] = (config.transition_dim, outputs)
        observed, acted = config.observation_dim, config.layout.reward
        sizes = {"observation": (observed, n), "transition": (acted, n)}
        if _predicts(config):
            sizes["dynamics"] = (acted, observed * n)
        for name, (inputs, results) in sizes.items():
            for layer, shape in ((0, (hidden, inputs)), (2, (hidden, hidden)), (4, (results, hidden))):
                shapes[f"numbers.{name}.{layer}.weight"], shapes[f"numbers.{name}.{layer}.bias"] = shape, shape[:1]
    return shapes


def _predicts(config: TransformerConfig) -> bool:
    """Whether the model has an MLP of the dynamics."""
    return config.numerical_embedding is not None and config.numerical_dynamics


def _norms(config: TransformerConfig) -> list[str]:
    return [*(f"blocks.{layer}.{name}" for layer in range(config.n_layer) for name in ("ln1", "ln2")), "ln_f"]


def _mismatch(model: TrajectoryTransformer) -> str | None:
    """The first part of the model that the kernel would compute differently, or None; checked before C reads memory."""
    config, expected = model.config, expected_shapes(model.config)
    shapes = {name: tuple(weight.shape) for name, weight in _weights_of(model).items()}
    different = [name for name in sorted(shapes.keys() | expected.keys()) if shapes.get(name) != expected.get(name)]
    if config.block is not None and any(name.startswith("blocks.") for name in different):
        return f"model.block={config.block['_target_']} is not the GPT block, the only one that it computes"
    for name in different:
        if name not in expected:
            return f"it does not support the model's parameter {name}"
        if name not in shapes:
            return f"it needs the parameter {name}, which the model does not have"
        return f"{name} has the shape {shapes[name]}; it supports {expected[name]}"
    # Norms and activations are compared too, because small differences in them may not show in the logits.
    for name in _norms(config):
        eps = getattr(model.get_submodule(name), "eps", config.layer_norm_eps)
        if eps != config.layer_norm_eps:
            return f"{name} has eps={eps}, but it computes with layer_norm_eps={config.layer_norm_eps}"
    x = torch.linspace(-6, 6, 100)
    for layer, block in enumerate(model.blocks):
        activation: Any = getattr(block, "act", None)
        found: Any = activation(x) if callable(activation) else None
        wanted = ACTIVATIONS[str(config.hidden_act)](x)
        if found is not None and (found.shape != x.shape or not torch.allclose(found, wanted, atol=1e-6)):
            return f"blocks.{layer}.act is not {config.hidden_act}, the activation that it computes"
    return None


def _folded_weights(config: TransformerConfig, weights: Mapping[str, Tensor]) -> list[Tensor]:
    """The weights, of :func:`expected_shapes`, in the order and form that ``tt_create`` takes.

    The norms' weights and biases are folded into the linear maps that follow. Queries are divided by √head_dim and by
    ln 2, because the kernel's softmax takes powers of 2.
    """
    tokens, heads = weights["tok_emb.weight"], weights["head.weight"]
    embeddings = tokens[:-1].view(config.transition_dim, config.vocab_size, config.n_embd)
    stop = tokens[-1].expand(config.transition_dim, 1, -1)
    folded = [torch.cat([embeddings, stop], dim=1), weights["pos_emb"][0]]
    folded += [heads * weights["ln_f.weight"], _product(heads, weights["ln_f.bias"])]
    scale = math.log2(math.e) * (config.n_embd // config.n_head) ** -0.5
    for layer in range(config.n_layer):
        block = f"blocks.{layer}"
        for name, norm, factor in (
            ("attn.query", "ln1", scale), ("attn.key", "ln1", 1.0), ("attn.value", "ln1", 1.0),
            ("attn.proj", None, 1.0), ("l1", "ln2", 1.0), ("l2", None, 1.0),
        ):  # fmt: skip
            weight, bias = weights[f"{block}.{name}.weight"], weights[f"{block}.{name}.bias"]
            if norm is not None:
                bias = bias + _product(weight, weights[f"{block}.{norm}.bias"])
                weight = weight * weights[f"{block}.{norm}.weight"]
            folded += [weight * factor, bias * factor]
    return folded + [weights[name] for name in expected_shapes(config) if name.startswith("numbers.")]


def _product(matrix: Tensor, vector: Tensor) -> Tensor:
    """Matrix-vector product in float64, so that the rounded result does not depend on the number of threads."""
    return (matrix.double() @ vector.double()).float()
