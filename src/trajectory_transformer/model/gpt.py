"""The Trajectory Transformer: embeddings, pre-norm blocks, and one output head for each dimension of a transition."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, cast
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ..building import build
from ..configuration import ModelConfig
from ..errors import UserError, in_one_line
from . import block as block_in_c
from .attention_proof import may_attend_in_c, may_compute_blocks_in_c
from .config import TransformerConfig
from .elementwise import Dropout, gelu
from .loss import token_weights, weighted_cross_entropy
from .memory import AttentionMemory, CausalMemory, KeyValueCache
from .numerical_embedding import NumericalEmbedding
from .output import TrajectoryTransformerOutput

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu,
    "relu": F.relu,
    "selu": F.selu,
    "gelu_new": partial(F.gelu, approximate="tanh"),
}


class DimensionHeads(nn.Module):
    """Output heads: a linear map without bias (n_embd -> vocab_size + 1 outputs) for each dimension of a transition."""

    def __init__(self, transition_dim: int, n_embd: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(transition_dim, outputs, n_embd))

    def forward(self, hidden: Tensor, first: int | Tensor) -> Tensor:
        """Logits (batch, time, outputs) of the token that follows each position of ``hidden`` (batch, time, n_embd).

        ``first`` is the place p of the first position within its transition, in [0, transition_dim); head p predicts
        dimension p + 1. If time is 1, it may be a scalar tensor.
        """
        batch, time, n_embd = hidden.shape
        heads = len(self.weight)
        if time == 1:
            # A one-dimensional index stays on the device; a scalar one would be copied to the CPU, and not compile.
            weight = self.weight[first] if isinstance(first, int) else self.weight.index_select(0, first.view(1))[0]
            return hidden @ weight.T
        assert isinstance(first, int)
        before, after = first, -(first + time) % heads
        whole = F.pad(hidden, (0, 0, before, after)).view(-1, heads, n_embd)
        logits = torch.einsum("bde,dve->bdv", whole, self.weight)
        return logits.reshape(batch, -1, logits.shape[-1])[:, before : before + time]


class SelfAttention(nn.Module):
    """Multi-head self-attention; the memory stores keys and values and decides which are visible."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.key = nn.Linear(config.n_embd, config.n_embd)
        self.query = nn.Linear(config.n_embd, config.n_embd)
        self.value = nn.Linear(config.n_embd, config.n_embd)
        self.proj = nn.Linear(config.n_embd, config.n_embd)
        self.resid_drop = Dropout(config.resid_pdrop)
        self.n_head, self.attn_pdrop = config.n_head, config.attn_pdrop

    def forward(self, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        batch, time, _ = x.shape
        query, key, value = (
            projected.view(batch, time, self.n_head, -1).transpose(1, 2)
            for projected in self._project(x, merged=self.training and x.device.type == "cuda")
        )
        y = memory.attend(layer, query, key, value, self.attn_pdrop if self.training else 0.0)
        return self.resid_drop(self.proj(y.transpose(1, 2).reshape(batch, time, -1)))

    def _project(self, x: Tensor, merged: bool) -> Sequence[Tensor]:
        """Query, key and value; if ``merged``, by one product, which makes an update on an H200 6 % faster."""
        parts = self.query, self.key, self.value
        if merged and all(type(part) is nn.Linear and not block_in_c.has_hooks(part) for part in parts):
            weight, bias = torch.cat([part.weight for part in parts]), torch.cat([part.bias for part in parts])
            return F.linear(x, weight, bias).chunk(3, dim=2)
        return [part(x) for part in parts]


class Block(nn.Module):
    """A pre-norm transformer block: x + attention(norm(x)), then x + mlp(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.ln1 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.ln2 = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.attn = SelfAttention(config)
        self.l1 = nn.Linear(config.n_embd, 4 * config.n_embd)
        self.l2 = nn.Linear(4 * config.n_embd, config.n_embd)
        self.drop = Dropout(config.resid_pdrop)
        self.act = config.hidden_act if callable(config.hidden_act) else ACTIVATIONS[config.hidden_act]

    def forward(self, x: Tensor, layer: int, memory: AttentionMemory) -> Tensor:
        mask = memory.mask_in_c(x.shape[1]) if isinstance(memory, CausalMemory) else None
        if mask is not None and type(self.attn) is SelfAttention and block_in_c.suits(self, x, self.act):
            return block_in_c.transform(self, x, mask)
        x = x + self.attn(self.ln1(x), layer, memory)
        return x + self.drop(self.l2(self.act(self.l1(self.ln2(x)))))


def _make_block(config: TransformerConfig, allow: Sequence[str] | None) -> nn.Module:
    if config.block is None:
        return Block(config)

    def draw(layer: nn.Linear | nn.Embedding) -> None:
        _draw(layer, config.initializer_range)

    # Layers begin with GPT's weights instead of PyTorch's as they are made, so that what the block sets itself stays.
    begin = partial(mock.patch.object, attribute="reset_parameters", new=draw)
    try:
        with begin(nn.Linear), begin(nn.Embedding):
            return build({**config.block, "config": config}, nn.Module, "model.block", allow)
    except UserError:
        raise
    except Exception as error:  # whatever the user's own code raises
        message = f"model.block: {config.block['_target_']} cannot be made ({in_one_line(error)})"
        raise UserError.of_own_code(message, error) from error


def _draw(layer: nn.Linear | nn.Embedding, std: float) -> None:
    """Set weights to normal random numbers, and biases to 0."""
    nn.init.normal_(layer.weight, std=std)
    if isinstance(layer, nn.Linear) and layer.bias is not None:
        nn.init.zeros_(layer.bias)


class TrajectoryTransformer(nn.Module):
    """GPT over transition tokens (paper §3.1), with the reference API's ``forward``.

    Parameter names are the reference port's, so that its weights load unchanged.

    Args:
        config: sizes and options. With ``config.block``, each block is an instance of that class instead of
            :class:`Block`. It is made by ``cls(config=config, **options)``; its ``forward(x, layer, memory)`` takes and
            returns (batch, time, n_embd) and computes all attention by ``memory.attend``.
        allow: packages besides this one that ``config.block`` may name if it comes from a file;
            :data:`~..building.TYPED_BY_USER`: any.

    Raises:
        UserError: the block's class does not exist, is not allowed, or does not take the options.
    """

    mask: Tensor
    gradient_checkpointing: bool = False  # in training, recompute the blocks' activations in the backward pass
    attends_in_c: bool | None = None  # whether training on a CPU computes attention in C; None: not compared yet
    blocks_in_c: bool = False  # and also whole blocks
    hides_columns: bool | None = (
        None  # whether the mask is causal but for columns hidden from all; None: not checked yet
    )
    numbers: NumericalEmbedding | None  # added to the token embeddings, with ``config.numerical_embedding``

    def __init__(self, config: TransformerConfig, allow: Sequence[str] | None = ()) -> None:
        super().__init__()
        self.config, self.layout = config, config.layout
        self.stop_index = config.vocab_size * config.transition_dim
        self.tok_emb = nn.Embedding(self.stop_index + 1, config.n_embd)
        self.pos_emb = nn.Parameter(torch.zeros(1, config.block_size, config.n_embd))
        self.drop = Dropout(config.embd_pdrop)
        self.blocks = nn.ModuleList(_make_block(config, allow) for _ in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd, eps=config.layer_norm_eps)
        self.head = DimensionHeads(config.transition_dim, config.n_embd, config.vocab_size + 1)
        mask = torch.ones(config.block_size, config.block_size, dtype=torch.bool).tril()
        mask[:, self.layout.value :: config.transition_dim] = False
        self.register_buffer("mask", mask, persistent=False)
        self._initialize()
        self.numbers = None
        if (hidden := config.numerical_embedding) is not None:  # keeps torch's initialisation: ours is too small here
            sizes = config.vocab_size + 1, hidden, config.n_embd
            self.numbers = NumericalEmbedding(self.layout, *sizes, config.numerical_dynamics)

    @classmethod
    def outline(cls, config: TransformerConfig) -> dict[str, Tensor]:
        """The expected ``state_dict`` as tensors without storage; it leaves out blocks of a user's class."""
        with torch.device("meta"):
            expected = TrajectoryTransformer(replace(config, block=None)).state_dict()
        blocks = config.block is None
        return {name: tensor for name, tensor in expected.items() if blocks or not name.startswith("blocks.")}

    def _initialize(self) -> None:
        config = self.config
        done = set() if config.block is None else {*self.blocks.modules()}  # a user's blocks have theirs
        for module in self.modules():
            if isinstance(module, (nn.Linear, nn.Embedding)) and module not in done:
                _draw(module, config.initializer_range)
            if isinstance(module, DimensionHeads):
                for weight in module.weight:
                    nn.init.kaiming_uniform_(weight, a=math.sqrt(5) / config.kaiming_initializer_range)

    def decay_parameter_groups(self, weight_decay: float) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: weights of linear maps decay; biases, norms and embeddings do not."""
        decayed = {id(module.weight) for module in self.modules() if isinstance(module, (nn.Linear, DimensionHeads))}
        groups: tuple[list[nn.Parameter], list[nn.Parameter]] = ([], [])
        for parameter in self.parameters():
            groups[id(parameter) in decayed].append(parameter)
        return [{"params": groups[1], "weight_decay": weight_decay}, {"params": groups[0], "weight_decay": 0.0}]

    def embed(self, tokens: Tensor, positions: Tensor) -> Tensor:
        """Sum (batch, time, n_embd) of token and position embeddings.

        Tokens (batch, time) are integers in [0, vocab_size], where vocab_size is the stop token; positions (time,) are
        in [0, block_size).
        """
        indices = tokens + positions % self.config.transition_dim * self.config.vocab_size
        indices = indices.masked_fill(tokens == self.config.vocab_size, self.stop_index)
        return self.tok_emb(indices) + F.embedding(positions, self.pos_emb[0])

    def hidden(self, tokens: Tensor, memory: AttentionMemory, states: list[Tensor] | None = None) -> Tensor:
        """Final, normalised hidden states (batch, time, n_embd) of new tokens that follow those in ``memory``.

        If ``states`` is given, the embeddings and each block's output are appended to it.

        Raises:
            ValueError: the tokens go past ``block_size``.
        """
        x = self.embed(tokens, memory.positions(tokens.shape[1]))
        if self.numbers is not None:
            x = x + memory.embed_numbers(self.numbers, tokens)
        x = self.drop(x)
        for layer, block in enumerate(self.blocks):
            if states is not None:
                states.append(x)
            if self.gradient_checkpointing and self.training:
                x = cast(Tensor, checkpoint(block, x, layer, memory, use_reentrant=False))
            else:
                x = block(x, layer, memory)
        if states is not None:
            states.append(x)
        if self.numbers is not None and self.numbers.dynamics is not None:
            x = x + memory.predict_numbers(self.numbers, tokens)
        return self.ln_f(x)

    def compare_attention(self) -> None:
        """Decide, once, how training computes attention: in C, with blocks, on a CPU, without a mask on a GPU."""
        if self.attends_in_c is None and self.pos_emb.device.type == "cpu" and self.pos_emb.dtype == torch.float32:
            self.attends_in_c = may_attend_in_c(self)
            self.blocks_in_c = self.attends_in_c and may_compute_blocks_in_c(self)
        if self.hides_columns is None:
            causal = torch.ones_like(self.mask).tril()
            self.hides_columns = bool(self.mask[0, 0]) and bool((self.mask == causal & self.mask[-1]).all())

    def forward(
        self,
        trajectories: Tensor,
        past_key_values: KeyValueCache | Sequence[tuple[Tensor, Tensor]] | None = None,
        targets: Tensor | None = None,
        attention_mask: Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
    ) -> TrajectoryTransformerOutput | tuple[Any, ...]:
        """Logits of the token after each position, and the loss if targets are given.

        Args:
            trajectories: (batch, time) integer tokens in [0, vocab_size]. They begin at a transition's first dimension,
                or continue the tokens of ``past_key_values``.
            past_key_values: keys and values of the tokens before: an earlier call's, or a (key, value) pair for each
                layer.
            targets: (batch, time) tokens to predict at each position.
            attention_mask: (batch, time) weights in [0, 1] of the positions in the loss; None: all 1.
            use_cache: return keys and values; None: ``config.use_cache``, but False while training with gradient
                checkpointing, which is meant to free that memory.
            output_attentions, output_hidden_states: return them too; None: as in ``config``.
            return_dict: False for a plain tuple of the results that are not None; None: ``config.return_dict``.

        Raises:
            ValueError: past and new tokens together exceed ``block_size``.
            UserError: ``past_key_values`` is of another type, or consists of pairs and the model has a numerical
                embedding that needs the newest tokens: those of an incomplete transition, or, with
                ``numerical_dynamics``, of any.
        """

        def chosen(given: bool | None, default: bool) -> bool:
            return default if given is None else bool(given)

        config = self.config
        keep = chosen(use_cache, config.use_cache and not (self.gradient_checkpointing and self.training))
        attentions = chosen(output_attentions, config.output_attentions)
        states: list[Tensor] | None = [] if chosen(output_hidden_states, config.output_hidden_states) else None
        if self.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
            self.compare_attention()
        in_c = bool(self.attends_in_c), self.blocks_in_c
        memory = CausalMemory(
            self.mask, self._cache(past_key_values), keep, attentions, *in_c, bool(self.hides_columns)
        )
        start = memory.length
        logits = self.head(self.hidden(trajectories, memory, states), start % config.transition_dim)
        loss = None
        if targets is not None:
            weights = token_weights(config, start, targets.shape[1], logits.device).to(logits.dtype)
            loss = weighted_cross_entropy(logits, targets, weights, attention_mask)
        output = TrajectoryTransformerOutput(
            loss=loss,
            logits=logits,
            past_key_values=memory.cache if keep else None,
            hidden_states=None if states is None else tuple(states),
            attentions=tuple(memory.weights) if attentions else None,
        )
        return output if chosen(return_dict, config.return_dict) else output.to_tuple()

    def _cache(self, past: KeyValueCache | Sequence[tuple[Tensor, Tensor]] | None) -> KeyValueCache | None:
        if past is None or isinstance(past, KeyValueCache):
            return past
        if not isinstance(past, (tuple, list)) or len(past) != self.config.n_layer or any(len(p) != 2 for p in past):
            raise UserError(
                f"past_key_values must be the result of an earlier call, or {self.config.n_layer} pairs of keys and "
                f"values; got {type(past).__name__}"
            )
        cache = KeyValueCache(tuple((key, value) for key, value in past))
        numbers = self.numbers
        if numbers is not None and cache.length and numbers.dynamics is not None:
            raise UserError(
                "past_key_values are pairs of keys and values, and model.numerical_dynamics needs tokens, too: pass "
                "the past_key_values of an earlier call"
            )
        if numbers is not None and cache.length % self.config.transition_dim:
            raise UserError(
                "past_key_values end within a transition, and model.numerical_embedding needs its tokens: pass the "
                "past_key_values of an earlier call, or whole transitions"
            )
        return cache


@torch.no_grad()
def sample_logits(model: TrajectoryTransformer) -> Tensor:
    """Logits (8, vocab_size + 1) of fixed tokens, float32 on the CPU; they show whether its code was changed."""
    length = model.config.block_size  # as in training, for blocks that know no other
    tokens = torch.arange(length, device=model.pos_emb.device) * 7 % model.config.vocab_size
    training = model.training
    model.eval()
    try:
        with torch.autocast(tokens.device.type, enabled=False):
            # Not the compiled call, which would be compiled anew for this shape.
            output = model.forward(tokens.unsqueeze(0), use_cache=False, return_dict=True)
    finally:
        model.train(training)
    logits = cast(Tensor, cast(TrajectoryTransformerOutput, output).logits)[0]
    return logits[torch.linspace(0, length - 1, 8).long()].float().cpu()
