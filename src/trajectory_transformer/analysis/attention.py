"""Attention of a model in held-out episodes: maps, measurements, pictures and a table."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from ..configuration import require
from ..configuration.tasks import MIN_TRANSITIONS, AttentionConfig
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows
from ..evaluation.measurements import Measurement, RunFacts, write_measurements
from ..model.gpt import TrajectoryTransformer
from ..model.output import TrajectoryTransformerOutput
from ..planning.trained_transformer import TrainedTransformer
from .attention_masses import AttentionMasses
from .attention_measurements import ALL_LAYERS, MeasuredAttention, attention_measurements, attention_table
from .attention_plots import AttentionMaps, plot_attention_maps, plot_attention_summary

_WEIGHTS_AT_ONCE = 2**24  # 64 MiB of them


@dataclass(frozen=True)
class ChosenWindows:
    """Windows to look at, all within their episodes.

    Attributes:
        first: (window,) int64, the transition that each begins with, among those of all episodes.
        episodes: (window,) int64, the episode that each is from.
        steps: (window,) int64, the step of its episode that each begins at.
    """

    first: np.ndarray
    episodes: np.ndarray
    steps: np.ndarray


def evaluate_attention(
    trained: TrainedTransformer, table: TransitionTable, options: AttentionConfig, run: RunFacts, directory: Path
) -> list[Measurement]:
    """Measure the attention of every head over windows of ``table``, and record it.

    Writes ``figures.csv``, ``plots/attention_window.png`` (one window), ``plots/attention_mean.png`` (the mean over
    windows) and ``plots/attention_summary.png``; prints a table.

    Args:
        trained: what attends.
        table: episodes that it was not trained on.
        options: how long a context, and how many.
        run: origin of the measurements; its seed draws the windows.
        directory: where files go; made if it is missing.

    Raises:
        UserError: the model does not see that many transitions or is conditioned on goals, no episode has as many,
            there is no window of the number to be shown, or the directory cannot be written.
    """
    transitions = context_transitions(trained.model, options.transitions)
    chosen = choose_windows(table.lengths, transitions, options.windows, run.seed)
    require(
        options.shown < len(chosen.first),
        f"attention.shown={options.shown}: the held-out episodes have only {len(chosen.first)} windows of "
        f"{transitions} transitions; choose a smaller number",
    )
    windows = TokenWindows(table, trained.discretizer, transitions, trained.model.mask.device)
    attended = average_attention(trained.model, windows, chosen, options.shown)
    measurements = attention_measurements(attended.measured)
    measurements.append(
        Measurement(ALL_LAYERS, "num_windows", len(chosen.first), None, None, len(np.unique(chosen.episodes)))
    )
    write_measurements(directory / "figures.csv", run, measurements)
    _plot(attended, trained.model, chosen, options.shown, run.env_id, directory / "plots")
    title = f"{run.env_id}: attention over {transitions} transitions, {_extent(chosen)}"
    Console().print(attention_table(measurements, title))
    return measurements


def context_transitions(model: TrajectoryTransformer, wanted: int | None) -> int:
    """Transitions of context: ``wanted``, or all that the model sees.

    Raises:
        UserError: it sees fewer than are wanted, or than can be compared, or it is conditioned on goals.
    """
    require(
        not model.config.goal_conditioned,
        "the model is conditioned on goals, and task=attention takes models that are not: a goal has no place among a "
        "present, a previous and an earlier transition",
    )
    most = model.config.sequence_length
    require(
        most >= MIN_TRANSITIONS,
        f"the model sees {most} transitions, and its attention to a present, a previous and an earlier one cannot be "
        f"compared; train with data.sequence_length={MIN_TRANSITIONS} or more",
    )
    wanted = most if wanted is None else wanted
    require(wanted <= most, f"attention.transitions={wanted} is more than the {most} transitions that the model sees")
    return wanted


def choose_windows(lengths: np.ndarray, transitions: int, count: int, seed: int) -> ChosenWindows:
    """Draw ``count`` windows without replacement, or take all where there are fewer; in the order of the episodes.

    Args:
        lengths: (episodes,) their steps.
        transitions: of a window.
        count: at least 1.
        seed: of the draw.

    Raises:
        UserError: no episode is as long as a window.
    """
    begins = np.maximum(lengths - transitions + 1, 0)  # windows in each episode
    require(
        begins.sum() > 0,
        f"all {len(lengths)} held-out episodes are shorter than a context of {transitions} transitions, the longest "
        f"has {lengths.max()}; choose a smaller attention.transitions (at least {MIN_TRANSITIONS})",
    )
    episodes = np.repeat(np.arange(len(lengths)), begins)
    steps = np.arange(len(episodes)) - np.repeat(np.cumsum(begins) - begins, begins)
    drawn = np.sort(np.random.default_rng(seed).permutation(len(episodes))[:count])
    offsets = np.cumsum(lengths) - lengths
    return ChosenWindows((offsets[episodes] + steps)[drawn], episodes[drawn], steps[drawn])


@dataclass(frozen=True)
class AveragedAttention:
    """Attention weights of all windows, averaged and measured.

    Attributes:
        measured: the masses of each window.
        mean: (layer, head, query, key) mean weights.
        shown: (layer, head, query, key) weights in one window.
    """

    measured: MeasuredAttention
    mean: np.ndarray
    shown: np.ndarray


def average_attention(
    model: TrajectoryTransformer, windows: TokenWindows, chosen: ChosenWindows, shown: int
) -> AveragedAttention:
    """Run the model over the chosen windows; a progress bar shows how far it is.

    Args:
        model: in evaluation mode.
        windows: of the length to look at, on the model's device.
        chosen: which of them.
        shown: index into ``chosen`` of the one whose weights are kept.
    """
    tokens = windows.sequence_length * windows.transition_dim - 1
    masses = AttentionMasses(model.layout, model.mask[:tokens, :tokens])
    config = model.config
    total = torch.zeros(config.n_layer, config.n_head, tokens, tokens, device=windows.device)
    kept = torch.empty(0)
    measured: list[Tensor] = []
    first = 0
    for attention in _attention(model, windows, torch.from_numpy(chosen.first)):
        measured.append(masses.of(attention).transpose(0, 1).cpu())
        total += attention.sum(dim=1)
        if first <= shown < first + attention.shape[1]:
            kept = attention[:, shown - first]
        first += attention.shape[1]
    record = MeasuredAttention(masses.names, masses.uniform, torch.cat(measured).numpy(), chosen.episodes)
    return AveragedAttention(record, (total / first).cpu().numpy(), kept.cpu().numpy())


def _attention(model: TrajectoryTransformer, windows: TokenWindows, indices: Tensor) -> Iterator[Tensor]:
    """(layer, window, head, query, key) weights, a few windows at a time."""
    config = model.config
    tokens = windows.sequence_length * windows.transition_dim - 1
    size = max(1, _WEIGHTS_AT_ONCE // (config.n_layer * config.n_head * tokens**2))
    for batch in track(indices.split(size), description="looking at attention"):
        with torch.inference_mode():
            output = model(
                windows.gather(batch).trajectories, use_cache=False, output_attentions=True, return_dict=True
            )
            assert isinstance(output, TrajectoryTransformerOutput)
            assert output.attentions is not None
            yield torch.stack(output.attentions)


def _plot(
    attended: AveragedAttention,
    model: TrajectoryTransformer,
    chosen: ChosenWindows,
    shown: int,
    env_id: str,
    plots: Path,
) -> None:
    tokens = attended.mean.shape[-1]
    mask = model.mask[:tokens, :tokens].cpu().numpy()
    begin = int(chosen.steps[shown])
    end = begin + (tokens + 1) // model.config.transition_dim - 1
    where = f"held-out episode {chosen.episodes[shown]}, steps {begin} to {end}"
    window = AttentionMaps(attended.shown, mask, model.layout)
    plot_attention_maps(window, f"{env_id}: attention in {where}", plots / "attention_window.png")
    mean = AttentionMaps(attended.mean, mask, model.layout)
    plot_attention_maps(mean, f"{env_id}: mean attention over {_extent(chosen)}", plots / "attention_mean.png")
    plot_attention_summary(
        attended.measured, f"{env_id}: where attention goes, {_extent(chosen)}", plots / "attention_summary.png"
    )


def _extent(chosen: ChosenWindows) -> str:
    return f"{len(chosen.first)} windows of {len(np.unique(chosen.episodes))} held-out episodes"
