"""Foreign weights: recognising their origin, renaming their tensors, inferring sizes, and filling a model."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import Tensor

from ..checkpoint import require_shapes
from ..configuration import validate_value
from ..errors import UserError
from ..model.gpt import TrajectoryTransformer
from .config import TrajectoryTransformerConfig
from .weights import checked, read_weights

# transition_dim -> observation_dim of the D4RL tasks for which weights were published.
PUBLISHED_OBSERVATIONS = {25: 17, 16: 11, 37: 27}

ORIGINAL, PORT, REWRITE = "original", "port", "rewrite"
_MARKS = {"blocks.0.attention.in_proj_weight": REWRITE, "blocks.0.attn.key.weight": PORT}
_MASK = re.compile(r"(^|\.)(attn_)?mask$")  # buffers, which the sizes determine
_OF_ORIGINAL = {r"\.mlp\.0\.": ".l1.", r"\.mlp\.2\.": ".l2."}
_OF_REWRITE = {r"^norm\.": "ln_f.", r"\.norm([12])\.": r".ln\1.", r"\.attention\.out_proj\.": ".attn.proj."}

STOP_LOGIT = -1000.0
SMALLEST_MEAN = 0.01  # of b / g: below it, heads of constant logits would be dominated by rounding errors


@dataclass(frozen=True)
class ForeignWeights:
    """Weights renamed to this project's names, in one dtype, all finite."""

    origin: str  # "original", "rewrite" or "port" (the reference port, and this project itself)
    weights: dict[str, Tensor]
    path: Path  # their file, or the index of their shards


def load_weights(path: Path, dtype: torch.dtype | None = torch.float32, own_blocks: bool = False) -> ForeignWeights:
    """Read a file of weights, recognise their origin and rename them.

    ``dtype`` None keeps the stored one. With ``own_blocks``, blocks are of a user's class, whose tensors may have any
    names.

    Raises:
        UserError: the file cannot be read without executing code, is damaged, or is of another architecture.
    """
    stored = {name.removeprefix("module."): tensor for name, tensor in read_weights(path).items()}
    origin = PORT if own_blocks else next((origin for mark, origin in _MARKS.items() if mark in stored), None)
    if origin is None or "goal_emb.weight" in stored:
        what = "a goal-conditioned model" if origin else f"another architecture (it has '{next(iter(stored))}')"
        raise UserError(f"'{path}' holds the weights of {what}, not of a Trajectory Transformer")
    if "head.weight" not in stored:
        raise UserError(f"'{path}' lacks the tensor 'head.weight'")
    kept = {name: tensor for name, tensor in stored.items() if own_blocks or not _MASK.search(name)}
    weights = checked(kept, path, dtype or stored["head.weight"].dtype)
    if own_blocks:
        return ForeignWeights(PORT, weights, path)
    if origin == REWRITE:
        return ForeignWeights(REWRITE, _with_stop_token(_renamed(weights, _OF_ORIGINAL | _OF_REWRITE), path), path)
    origin = ORIGINAL if "blocks.0.mlp.0.weight" in weights else PORT
    return ForeignWeights(origin, _renamed(weights, _OF_ORIGINAL), path)


def _renamed(weights: Mapping[str, Tensor], patterns: Mapping[str, str]) -> dict[str, Tensor]:
    """The tensors under this project's names; the rewrite's joint query, key and value are separated."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, ours in patterns.items():
            name = re.sub(pattern, ours, name)
        fused = re.fullmatch(r"(.*)\.attention\.in_proj_(weight|bias)", name)
        names = [f"{fused[1]}.attn.{part}.{fused[2]}" for part in ("query", "key", "value")] if fused else [name]
        parts = torch.atleast_1d(tensor).tensor_split(3) if fused else (tensor,)
        renamed.update(zip(names, parts, strict=True))
    return renamed


def _with_stop_token(weights: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Add a stop token that is never predicted to the rewrite's renamed weights, without changing other logits.

    The rewrite has V logits per position; here there are V + 1, computed by heads without bias from normalised states.
    Such a state is ``h = g * n + b`` with the norm's weight g and bias b, and the entries of n add up to 0. So the head
    ``k / g`` has the constant logit ``k * sum(b / g)`` for every n. This gives the stop token a logit of -1000, and
    represents the biases of the rewrite's variant with one shared head.
    """
    weights = dict(weights)
    try:
        # (transition_dim, V, n_embd), or (V, n_embd) with a bias
        head, tokens = weights["head.weight"], weights["tok_emb.weight"]
        gain, shift = weights["ln_f.weight"].double(), weights["ln_f.bias"].double()
        bias = weights.pop("head.bias", torch.zeros(head.shape[-2]))
        transition_dim = len(tokens) // len(bias)
        heads = head.double().expand(transition_dim, len(bias), len(gain))
    except (KeyError, IndexError, RuntimeError, ZeroDivisionError, TypeError):
        raise UserError(f"'{path}' looks like a file of the faster rewrite, but its tensors do not match") from None
    if gain.abs().min() < 1e-6:
        raise UserError(f"'{path}': the final norm has a weight of 0, so no stop token can be added")
    mean, constants = (shift / gain).mean(), bias.double().expand(heads.shape[:-1])
    if mean.abs() < SMALLEST_MEAN:  # shift the states along g by 1; the heads undo it
        weights["ln_f.bias"] = (shift + gain).to(head.dtype)
        mean, constants = mean + 1, constants - (heads * gain).sum(dim=-1)
    unit = 1 / (gain * mean * len(gain))  # the head of constant logit 1
    stop = (STOP_LOGIT * unit).expand(transition_dim, 1, -1)
    weights["head.weight"] = torch.cat([heads + constants.unsqueeze(-1) * unit, stop], dim=1).to(head.dtype)
    weights["tok_emb.weight"] = torch.cat([tokens, torch.zeros_like(tokens[:1])])  # the stop token is never an input
    return weights


def _inferred_sizes(weights: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """Configuration fields inferred from the tensors' shapes: all sizes but n_head, observation_dim and action_dim."""
    names = ("head.weight", "tok_emb.weight", "pos_emb")
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"'{path}' lacks the tensor '{missing[0]}'")
    head, tokens, positions = (tuple(weights[name].shape) for name in names)
    transition_dim, outputs, n_embd = head if len(head) == 3 else (0, 0, 0)
    fitting = ((outputs - 1) * transition_dim + 1, n_embd)
    if transition_dim < 4 or tokens != fitting or len(positions) != 3 or positions[::2] != (1, n_embd):
        shapes = ", ".join(f"{name} {tuple(weights[name].shape)}" for name in names)
        raise UserError(f"'{path}': the shapes of {shapes} do not match")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d{1,12})\.", name))}
    if layers != set(range(len(layers))):
        raise UserError(f"'{path}': its blocks are not numbered from 0, or some are missing")
    sizes = {"vocab_size": outputs - 1, "block_size": positions[1], "transition_dim": transition_dim}
    return {**sizes, "n_embd": n_embd, "n_layer": len(layers)}


def fit_config(
    stated: Mapping[str, Any], chosen: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path
) -> tuple[TrajectoryTransformerConfig, list[str]]:
    """The configuration that fits the weights, and one clause for each correction of ``stated``.

    Fields may be missing or wrong in ``stated``; fields in ``chosen`` must be right.

    Raises:
        UserError: ``chosen`` contradicts the weights, their shapes contradict each other, or the split of dimensions is
            unknown.
    """
    kinds = get_type_hints(TrajectoryTransformerConfig)
    for name, value in {**stated, **chosen}.items():
        if name in kinds:  # unknown fields are reported when the configuration is made
            validate_value(f"the configuration of '{path}': {name}", value, kinds[name])
    sizes = _inferred_sizes(weights, path)
    for name, value in sizes.items():
        if chosen.get(name, value) != value:
            raise UserError(f"'{path}': {name}={chosen[name]} was given, but its weights have {value}")
    split, assumed = _split(stated, chosen, sizes["transition_dim"], path)
    defaults = vars(TrajectoryTransformerConfig())
    values = {**stated, **chosen, **sizes, **split}
    was = {**defaults, **stated}
    wrong = [f"{name} is {value}, not {was[name]}" for name, value in sizes.items() if was[name] != value]
    longest = values.get("max_position_embeddings", defaults["max_position_embeddings"])
    if isinstance(longest, int) and longest < sizes["block_size"]:
        values["max_position_embeddings"] = sizes["block_size"]
    return TrajectoryTransformerConfig(**values), wrong + assumed


def _split(
    stated: Mapping[str, Any], chosen: Mapping[str, Any], transition_dim: int, path: Path
) -> tuple[dict[str, int], list[str]]:
    """Observation and action dimensions: as chosen, else as stated if that fits, else as in published weights."""
    both = transition_dim - 2
    observation_dim = chosen.get("observation_dim", both - chosen["action_dim"] if "action_dim" in chosen else None)
    assumed: list[str] = []
    if observation_dim is None and [stated.get("observation_dim"), stated.get("action_dim")] != [None, None]:
        observation_dim = stated.get("observation_dim", both - stated.get("action_dim", 0))
        if stated.get("action_dim", both - observation_dim) != both - observation_dim:
            observation_dim = None
    if observation_dim is None and transition_dim in PUBLISHED_OBSERVATIONS:
        observation_dim = PUBLISHED_OBSERVATIONS[transition_dim]
        assumed = [f"observation_dim={observation_dim} is assumed from transition_dim={transition_dim}"]
    if observation_dim is None:
        raise UserError(
            f"'{path}' does not say how many of its {both} dimensions are observations and actions; give "
            "observation_dim or action_dim"
        )
    split = {"observation_dim": observation_dim, "action_dim": both - observation_dim}
    if min(split.values()) < 1 or chosen.get("action_dim", split["action_dim"]) != split["action_dim"]:
        raise UserError(
            f"'{path}': its weights have transition_dim={transition_dim}, so observation_dim and action_dim must add "
            f"up to {both}"
        )
    return split, assumed


def require_sizes(config: TrajectoryTransformerConfig, found: ForeignWeights) -> None:
    """Check shapes as :func:`fill` does, before a model of these sizes is built."""
    _require_shapes(TrajectoryTransformer.outline(config), found)


def fill(model: torch.nn.Module, found: ForeignWeights) -> None:
    """Load weights into a model, in their dtype, in evaluation mode; UserError names the first that does not fit."""
    expected = model.state_dict()
    _require_shapes(expected, found)
    if unknown := found.weights.keys() - expected.keys():
        raise UserError(f"'{found.path}' has the tensor '{min(unknown)}', unlike a model of its configuration")
    model.to(found.weights["head.weight"].dtype).eval().load_state_dict(found.weights)


def _require_shapes(expected: Mapping[str, Tensor], found: ForeignWeights) -> None:
    try:
        require_shapes(expected, found.weights)
    except ValueError as error:
        raise UserError(f"'{found.path}', unlike a model of its configuration: {error}") from None
