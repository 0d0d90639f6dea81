"""Weights under other names, with other fields: whose they are, what they are called here, what sizes they imply."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import UserError
from .config import TrajectoryTransformerConfig
from .stop_token import with_stop_token
from .weights import checked, read_weights

# Observation and action dimensions of the D4RL tasks that weights were published for, by transition_dim.
PUBLISHED_SPLITS = {25: (17, 6), 16: (11, 3), 37: (27, 8)}

ORIGINAL, PORT, REWRITE = "original", "port", "rewrite"
_MARKS = {"attention.in_proj_weight": REWRITE, "attn.key.weight": PORT}  # one of block 0's tensors in each
_MASK = re.compile(r"(^|\.)(attn_)?mask$")  # buffers, which follow from the sizes


@dataclass(frozen=True)
class ForeignWeights:
    """Weights under this project's names, in one dtype, without NaN.

    Attributes:
        origin: "original", "rewrite" or "port" (the reference port and this project itself).
        weights: by name.
        path: the file they come from, or the index of its shards.
    """

    origin: str
    weights: dict[str, Tensor]
    path: Path

    @property
    def dtype(self) -> torch.dtype:
        return self.weights["head.weight"].dtype


def load_weights(path: Path, dtype: torch.dtype | None = torch.float32, own_blocks: bool = False) -> ForeignWeights:
    """Read a file of weights, recognise whose they are and rename them.

    Args:
        path: as for :func:`read_weights`.
        dtype: of the result; None: as stored.
        own_blocks: this project saved it, with blocks of the user's, whose tensors may have any names.

    Raises:
        UserError: it cannot be read without executing something, is damaged, or is another architecture's.
    """
    stored = {name.removeprefix("module."): tensor for name, tensor in read_weights(path).items()}
    origin = next((origin for mark, origin in _MARKS.items() if f"blocks.0.{mark}" in stored), None)
    origin = PORT if own_blocks else origin
    if origin is None or "goal_emb.weight" in stored:
        what = "a goal-conditioned model" if origin else f"another architecture (it has '{next(iter(stored))}')"
        raise UserError(f"'{path}' holds the weights of {what}, not of a Trajectory Transformer")
    if "head.weight" not in stored:
        raise UserError(f"'{path}' lacks the tensor 'head.weight'")
    dtype = dtype or stored["head.weight"].dtype
    kept = {name: tensor for name, tensor in stored.items() if own_blocks or not _MASK.search(name)}
    weights = checked(kept, path, dtype)
    if own_blocks:
        return ForeignWeights(PORT, weights, path)
    if origin == REWRITE:
        return ForeignWeights(REWRITE, with_stop_token(_rename(weights, _of_rewrite), path), path)
    if "blocks.0.mlp.0.weight" in weights:
        origin = ORIGINAL
    return ForeignWeights(origin, _rename(weights, _of_original), path)


def _rename(weights: Mapping[str, Tensor], names: Callable[[str], list[str]]) -> dict[str, Tensor]:
    """Each tensor under its new name, or in equal parts along the first axis under several."""
    renamed = {}
    for name, tensor in weights.items():
        new = names(name)
        parts = (tensor,) if len(new) == 1 else torch.atleast_1d(tensor).tensor_split(len(new))
        renamed.update(zip(new, parts, strict=True))
    return renamed


def _of_original(name: str) -> list[str]:
    return [re.sub(r"\.mlp\.([02])\.", lambda m: {"0": ".l1.", "2": ".l2."}[m[1]], name)]


def _of_rewrite(name: str) -> list[str]:
    name = re.sub(r"\.norm([12])\.", r".ln\1.", re.sub(r"^norm\.", "ln_f.", _of_original(name)[0]))
    if fused := re.fullmatch(r"(.*)\.attention\.in_proj_(weight|bias)", name):
        return [f"{fused[1]}.attn.{part}.{fused[2]}" for part in ("query", "key", "value")]
    return [name.replace(".attention.out_proj.", ".attn.proj.")]


def infer_sizes(weights: Mapping[str, Tensor], path: Path) -> dict[str, int]:
    """The configuration fields that the tensors' shapes decide: all sizes but heads and the observation/action split.

    Raises:
        UserError: a tensor is missing, or their shapes contradict each other.
    """
    names = ("head.weight", "tok_emb.weight", "pos_emb")
    if missing := [name for name in names if name not in weights]:
        raise UserError(f"'{path}' lacks the tensor '{missing[0]}'")
    head, tokens, positions = (tuple(weights[name].shape) for name in names)
    transition_dim, outputs, n_embd = head if len(head) == 3 else (0, 0, 0)
    fitting = ((outputs - 1) * transition_dim + 1, n_embd)
    if transition_dim < 4 or tokens != fitting or len(positions) != 3 or positions[::2] != (1, n_embd):
        shapes = ", ".join(f"{name} {tuple(weights[name].shape)}" for name in names)
        raise UserError(f"'{path}': the shapes of {shapes} do not fit together")
    layers = {int(found[1]) for name in weights if (found := re.match(r"blocks\.(\d+)\.", name))}
    return {
        "vocab_size": outputs - 1, "block_size": positions[1], "transition_dim": transition_dim, "n_embd": n_embd,
        "n_layer": max(layers) + 1,
    }  # fmt: skip


def fit_config(
    stated: Mapping[str, Any], chosen: Mapping[str, Any], weights: Mapping[str, Tensor], path: Path
) -> tuple[TrajectoryTransformerConfig, list[str]]:
    """A configuration that the weights fit, and what of the stated one was wrong.

    Args:
        stated: fields of a configuration file; they may be missing or wrong.
        chosen: fields that the caller insists on.
        weights: under this project's names.
        path: where they come from, for messages.

    Returns:
        The configuration, and one clause for each correction.

    Raises:
        UserError: what the caller insists on contradicts the weights, or the observation/action split is unknown.
    """
    sizes = infer_sizes(weights, path)
    for name, value in sizes.items():
        if chosen.get(name, value) != value:
            raise UserError(f"'{path}': {name}={chosen[name]} was asked for, but its weights have {value}")
    split, corrections = _split(stated, chosen, sizes["transition_dim"], path)
    values = {**stated, **chosen, **sizes, **split}
    defaults = TrajectoryTransformerConfig()
    wrong = {name: stated.get(name, getattr(defaults, name)) for name in sizes}
    corrections = [
        f"{name} is {sizes[name]}, not {was}" for name, was in wrong.items() if was != sizes[name]
    ] + corrections
    longest = values.get("max_position_embeddings", defaults.max_position_embeddings)
    if isinstance(longest, int) and longest < sizes["block_size"]:
        values["max_position_embeddings"] = sizes["block_size"]
    return TrajectoryTransformerConfig(**values), corrections


def _split(
    stated: Mapping[str, Any], chosen: Mapping[str, Any], transition_dim: int, path: Path
) -> tuple[dict[str, int], list[str]]:
    """Observation and action dimensions: as chosen, as stated where that fits, as published for such weights."""
    both = transition_dim - 2
    observation_dim = chosen.get("observation_dim", both - chosen["action_dim"] if "action_dim" in chosen else None)
    assumed: list[str] = []
    if observation_dim is None and [stated.get("observation_dim"), stated.get("action_dim")] != [None, None]:
        observation_dim = stated.get("observation_dim", both - stated.get("action_dim", 0))
        if stated.get("action_dim", both - observation_dim) != both - observation_dim:
            observation_dim = None
    if observation_dim is None and transition_dim in PUBLISHED_SPLITS:
        observation_dim = PUBLISHED_SPLITS[transition_dim][0]
        assumed = [f"observation_dim={observation_dim} is assumed from transition_dim={transition_dim}"]
    if observation_dim is None:
        raise UserError(
            f"'{path}' does not say how the {both} observation and action dimensions divide; give observation_dim or "
            "action_dim"
        )
    split = {"observation_dim": observation_dim, "action_dim": both - observation_dim}
    if min(split.values()) < 1 or chosen.get("action_dim", split["action_dim"]) != split["action_dim"]:
        raise UserError(
            f"'{path}': its weights have transition_dim={transition_dim}, so observation_dim and action_dim must add "
            f"up to {both}"
        )
    return split, assumed


def fill(model: torch.nn.Module, found: ForeignWeights) -> None:
    """Give a model these weights and their dtype, and put it in evaluation mode.

    Raises:
        UserError: naming the first tensor that is missing, superfluous or of another shape.
    """
    expected, weights, path = model.state_dict(), found.weights, found.path
    for problem, names in (("lacks", expected.keys() - weights.keys()), ("has", weights.keys() - expected.keys())):
        if names:
            raise UserError(f"'{path}' {problem} the tensor '{min(names)}', unlike a model of its configuration")
    for name, tensor in expected.items():
        if weights[name].shape != tensor.shape:
            raise UserError(
                f"'{path}': the tensor '{name}' has shape {tuple(weights[name].shape)}, expected {tuple(tensor.shape)}"
            )
    model.to(found.dtype).eval().load_state_dict(weights)
