"""Make a checkpoint for planning from another project's weights.

``python -m trajectory_transformer.interop.adopt SOURCE CHECKPOINT --dataset-id ID`` combines a model, from any source
that ``trajectory_transformer.interop.convert`` reads, with a data set into a checkpoint for ``evaluate.py``. The bins
that the weights were trained with were not published, so they are fitted again, with the settings of the code that
trained the weights; the model's likelihood of the data's tokens shows whether the bins are right.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..checkpoint import TrainingRecord
from ..checkpoint_file import SECTION, write_checkpoint
from ..configuration import DataConfig, DiscretizerConfig, PlannerConfig, TrainConfig
from ..data.discretizer import Discretizer, make_discretizer
from ..data.episodes import Episode
from ..data.original_bins import original_quantiles, with_original_rule
from ..data.sources import load_offline_data
from ..data.transitions import join_episodes
from ..data.windows import TokenWindows
from ..errors import UserError
from ..layout import TOKEN_KINDS
from ..model.gpt import TrajectoryTransformer
from ..training.metrics import TokenMetrics
from .config import read_json
from .convert import RECORD_FILE, load, run_command
from .foreign import REWRITE

CHECKED_WINDOWS = 256


@dataclass(frozen=True)
class Adoption:
    """Record in the checkpoint of how foreign weights were adopted."""

    source: str  # name of the file or directory
    origin: str  # "original", "rewrite" or "port"
    bins: str  # "refitted", or the name of the file that they were read from
    transitions: int  # number of transitions that the bins were fitted on
    reconstruction: tuple[float, ...]  # for each dimension, mean distance to a bin's centre, in standard deviations
    nats: dict[str, float]  # the model's mean negative log-likelihood of the data by kind of token, without stop tokens
    uniform_nats: float  # that of a uniform prediction

    def __str__(self) -> str:
        nats = ", ".join(f"{kind} {value:.2f}" for kind, value in self.nats.items())
        return (
            f"bins {self.bins} on {self.transitions:,} transitions, values {max(self.reconstruction):.3f} standard "
            f"deviations from their bins' centres in the coarsest dimension, {nats} nats per token (chance "
            f"{self.uniform_nats:.2f})"
        )


def adopt(
    source: str | Path,
    checkpoint: str | Path,
    data: Mapping[str, Any],
    chosen: Mapping[str, int] | None = None,
    edges: str | Path | None = None,
) -> Adoption:
    """Write a checkpoint that :meth:`Agent.from_checkpoint` and ``evaluate.py`` read.

    Args:
        source: as in :func:`trajectory_transformer.interop.convert.convert`.
        checkpoint: the ``.ckpt`` file to write.
        data: fields of :class:`DataConfig`, at least ``dataset_id``; ``discretizer`` may be the name of a strategy. The
            default of the others is that of the code that trained the weights.
        chosen: ``n_head``, if it is not 4 and not noted beside the weights.
        edges: ``.npy`` file of the bins' edges, (transition_dim, V + 1) or transposed; None: fit them again.

    Raises:
        UserError: the weights, the data set or the edges are not available, or do not fit each other.
    """
    source, edges = Path(source), None if edges is None else Path(edges)
    offline = load_offline_data(DataConfig(**{**data, "discretizer": DiscretizerConfig()}))
    dimensions = {"observation_dim": offline.environment.observation_dim, "action_dim": offline.environment.action_dim}
    try:
        model, found = load(source, {**(chosen or {}), **dimensions})
    except UserError as error:
        ids, sizes = ", ".join(offline.dataset_ids), ", ".join(f"{name}={size}" for name, size in dimensions.items())
        raise UserError(f"{error} (data set {ids} has {sizes})") from None
    record = source / RECORD_FILE  # in a converted directory it names the weights' origin
    origin = str(read_json(record).get("origin", found.origin)) if record.is_file() else found.origin
    config = _configuration(data, model, origin)
    table = join_episodes(_as_loaded(offline.episodes), config.data)
    discretizer = _bins(table.values, config.data.discretizer, model, edges)
    adoption = Adoption(
        source=source.name,
        origin=origin,
        bins="refitted" if edges is None else edges.name,
        transitions=len(table.values),
        reconstruction=_reconstruction(torch.from_numpy(table.values), discretizer),
        nats=_token_nats(model, TokenWindows(table, discretizer, config.data.sequence_length)),
        uniform_nats=math.log(model.config.vocab_size + 1),
    )
    _warn_of_other_data(adoption)
    section = TrainingRecord.of("transformer", config, offline, discretizer).to_dict()
    section |= {"model": model.config.to_dict(), "adoption": asdict(adoption)}
    weights = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    write_checkpoint(checkpoint, {"state_dict": weights, SECTION: section})
    return adoption


def _configuration(data: Mapping[str, Any], model: TrajectoryTransformer, origin: str) -> TrainConfig:
    """The options of a training run that would have produced the model."""
    strategy, penalty = ("uniform", None) if origin == REWRITE else ("quantile", -100.0)  # the origin's settings
    length = (model.config.block_size + 1) // model.config.transition_dim
    bins = DiscretizerConfig(data.get("discretizer", strategy), model.config.vocab_size)
    fields = {"termination_penalty": penalty, **data, "discretizer": bins, "sequence_length": length}
    planner = PlannerConfig(horizon=5, context=5)
    horizon = min(planner.horizon, length)
    planner = replace(planner, horizon=horizon, context=min(planner.context, length - horizon + 1))
    return TrainConfig(data=DataConfig(**fields), planner=planner)


def _as_loaded(episodes: Sequence[Episode]) -> list[Episode]:
    """The episodes as the original's and the rewrite's loaders read them: both drop the last row of the file."""
    last = episodes[-1]
    shorter = Episode(last.observations[:-1], last.actions[:-1], last.rewards[:-1], terminated=False)
    return [*episodes[:-1], *([shorter] if len(shorter) else [])]


def _bins(
    values: np.ndarray, options: DiscretizerConfig, model: TrajectoryTransformer, path: Path | None
) -> Discretizer:
    """The bins that the weights were trained with: fitted to the data, or from a file of plain numbers."""
    if path is None and options.strategy == "quantile":
        return original_quantiles(values, options.num_bins)
    if path is None:
        return make_discretizer(options).fit(values)
    try:
        edges = np.load(path, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"'{path}' does not exist") from None
    except (OSError, ValueError, EOFError):
        raise UserError(f"'{path}' is not a .npy file of plain numbers; nothing in it was executed") from None
    wanted = (model.config.transition_dim, model.config.vocab_size + 1)
    if not isinstance(edges, np.ndarray) or edges.dtype.kind != "f" or edges.shape not in (wanted, wanted[::-1]):
        raise UserError(f"'{path}' must hold real numbers of shape {wanted} or {wanted[::-1]}")
    edges = np.ascontiguousarray(edges if edges.shape == wanted else edges.T, dtype=np.float32)
    if not np.isfinite(edges).all() or (np.diff(edges, axis=1) < 0).any():
        raise UserError(f"'{path}' must hold finite edges in ascending order for each dimension")
    if options.strategy == "quantile":
        return with_original_rule(edges)
    return Discretizer.from_dict({"strategy": options.strategy, "edges": torch.from_numpy(edges)})


def _reconstruction(values: torch.Tensor, discretizer: Discretizer) -> tuple[float, ...]:
    """For each dimension, mean distance of values from their bins' centres, in standard deviations."""
    error = (discretizer.decode(discretizer.encode(values)) - values).abs().mean(dim=0)
    return tuple((error / values.std(dim=0).clamp_min(1e-12)).tolist())


@torch.no_grad()
def _token_nats(model: TrajectoryTransformer, windows: TokenWindows) -> dict[str, float]:
    """Mean negative log-likelihood in nats by kind of token, over equally spaced windows."""
    chosen = torch.linspace(0, len(windows) - 1, min(CHECKED_WINDOWS, len(windows))).long()
    metrics = TokenMetrics(model.layout)
    for indices in chosen.split(32):
        tokens, targets, mask = windows.gather(indices)
        logits = model(tokens, use_cache=False, return_dict=True).logits
        mask = mask * (targets < model.config.vocab_size)  # the rewrite has no stop token
        metrics.update(torch.zeros(()), logits, targets, mask)
    values = metrics.compute()
    return {kind: float(values[f"{kind}_loss"]) for kind in TOKEN_KINDS}


def _warn_of_other_data(adoption: Adoption) -> None:
    worse = [kind for kind, nats in adoption.nats.items() if nats > adoption.uniform_nats + 0.01]
    if worse:
        warnings.warn(
            f"the model predicts {' and '.join(worse)} tokens of these data worse than chance: it was trained with "
            "other data or other bins",
            stacklevel=3,
        )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.interop.adopt", description=__doc__)
    parser.add_argument("source", help="state_N.pt, model_last.pt, their directory, a converted directory, or a hub id")
    parser.add_argument("checkpoint", help="the .ckpt file to write")
    parser.add_argument("--dataset-id", action="append", required=True, help="Minari id; repeat to join several sets")
    parser.add_argument("--observation-indices", type=int, nargs="+", help="observation dimensions that the model uses")
    parser.add_argument("--discretizer", choices=("quantile", "uniform"), help="kind of bins (default: the origin's)")
    parser.add_argument("--termination-penalty", help="reward of terminating steps, or none (default: the origin's)")
    parser.add_argument("--discount", type=float, help="discount of the return-to-go (default: 0.99)")
    parser.add_argument("--edges", help=".npy file of the bins' edges, instead of fitting them again")
    parser.add_argument("--n-head", type=int, help="attention heads (default: as noted beside the weights, or 4)")
    options = parser.parse_args(arguments)
    names = ("dataset_id", "observation_indices", "discount", "discretizer")
    data = {name: value for name in names if (value := getattr(options, name)) is not None}

    def work() -> str:
        if (penalty := options.termination_penalty) is not None:
            try:
                data["termination_penalty"] = None if penalty.lower() in ("none", "null") else float(penalty)
            except ValueError:
                raise UserError(f"--termination-penalty={penalty} is neither a number nor none") from None
        chosen = {} if options.n_head is None else {"n_head": options.n_head}
        adoption = adopt(options.source, options.checkpoint, data, chosen, options.edges)
        return f"'{options.checkpoint}': {adoption}; `python evaluate.py checkpoint=…` plans with it"

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
