"""Attention of a model in held-out episodes: maps, measurements, plots and a table."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from rich.console import Console

from ..configuration import require
from ..configuration.tasks import MIN_TRANSITIONS, AttentionConfig
from ..data.transitions import TransitionTable
from ..data.windows import TokenWindows
from ..evaluation.measurements import Measurement, RunFacts, write_measurements
from ..model.gpt import TrajectoryTransformer
from ..planning.trained_transformer import TrainedTransformer
from ..progress import WorkProgress
from .attention_masses import ALL_LAYERS, AttentionMasses, MeasuredAttention, attention_measurements, attention_table
from .plots import plot_attention_maps, plot_attention_summary

_WEIGHTS_AT_ONCE = 2**24  # 64 MiB


class ChosenWindows(NamedTuple):
    """Chosen windows within episodes, in order; each field is (window,) int64."""

    first: np.ndarray  # index of the first transition, among those of all episodes
    episodes: np.ndarray
    steps: np.ndarray  # first step within the episode


def evaluate_attention(
    trained: TrainedTransformer, table: TransitionTable, options: AttentionConfig, run: RunFacts, directory: Path
) -> list[Measurement]:
    """Measure the attention of every head over windows of ``table``, the held-out transitions, and write the results.

    Writes ``figures.csv`` and, in ``plots/``, ``attention_window.png`` (one window), ``attention_mean.png`` (the mean
    over windows) and ``attention_summary.png``; prints a table. The seed of ``run`` draws the windows.

    Raises:
        UserError: the model does not see that many transitions or is conditioned on goals, all episodes are shorter,
            the window to be shown does not exist, or the directory is not writable.
    """
    model = trained.model
    transitions = context_transitions(model, options.transitions)
    chosen = choose_windows(table.lengths, transitions, options.windows, run.seed)
    count, episodes = len(chosen.first), len(np.unique(chosen.episodes))
    require(
        options.shown < count,
        f"attention.shown={options.shown}: only {count} windows of {transitions} transitions are measured; choose a "
        "smaller number",
    )
    windows = TokenWindows(table, trained.discretizer, transitions, model.mask.device)
    measured, mean, shown = average_attention(model, windows, chosen, options.shown)
    measurements = attention_measurements(measured)
    measurements.append(Measurement(ALL_LAYERS, "num_windows", count, None, None, episodes))
    write_measurements(directory / "figures.csv", run, measurements)

    extent, plots = f"{count} windows of {episodes} held-out episodes", directory / "plots"
    begin = chosen.steps[options.shown]
    where = f"held-out episode {chosen.episodes[options.shown]}, steps {begin} to {begin + transitions - 1}"
    tokens = mean.shape[-1]
    mask = model.mask[:tokens, :tokens].cpu().numpy()
    for weights, title, name in (
        (shown, f"attention in {where}", "attention_window.png"),
        (mean, f"mean attention over {extent}", "attention_mean.png"),
    ):
        plot_attention_maps(weights, mask, model.layout, f"{run.env_id}: {title}", plots / name)
    plot_attention_summary(measured, f"{run.env_id}: where attention goes, {extent}", plots / "attention_summary.png")
    Console().print(attention_table(measurements, f"{run.env_id}: attention over {transitions} transitions, {extent}"))
    return measurements


def context_transitions(model: TrajectoryTransformer, wanted: int | None) -> int:
    """Return the transitions of context: ``wanted``, or all that the model sees; raises UserError if unsuitable."""
    require(
        not model.config.goal_conditioned,
        "the model is conditioned on goals, which task=attention does not support: a goal is neither a present, a "
        "previous nor an earlier transition; train one with model.goal_conditioned=false",
    )
    most = model.config.sequence_length
    require(
        most >= MIN_TRANSITIONS,
        f"the model sees {most} transitions, too few to compare its attention to a present, a previous and an earlier "
        f"one; train with data.sequence_length={MIN_TRANSITIONS} or more",
    )
    wanted = most if wanted is None else wanted
    require(wanted <= most, f"attention.transitions={wanted} exceeds the {most} transitions that the model sees")
    return wanted


def choose_windows(lengths: np.ndarray, transitions: int, count: int, seed: int) -> ChosenWindows:
    """Draw ``count`` windows without replacement from episodes of (episodes,) ``lengths``, or take all of them.

    Raises:
        UserError: no episode is as long as a window.
    """
    begins = np.maximum(lengths - transitions + 1, 0)  # number of windows in each episode
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


def average_attention(
    model: TrajectoryTransformer, windows: TokenWindows, chosen: ChosenWindows, shown: int
) -> tuple[MeasuredAttention, np.ndarray, np.ndarray]:
    """Run the model over the chosen windows, with a progress bar.

    Returns:
        The masses of each window; the mean weights, and those of the window ``chosen[shown]``, both (layer, head,
        query, key).
    """
    config, tokens = model.config, windows.sequence_length * windows.transition_dim - 1
    masses = AttentionMasses(model.layout, model.mask[:tokens, :tokens])
    total = torch.zeros(config.n_layer, config.n_head, tokens, tokens, device=windows.device)
    kept = torch.empty(0)
    measured: list[torch.Tensor] = []
    size = max(1, _WEIGHTS_AT_ONCE // total.numel())
    batches = torch.from_numpy(chosen.first).split(size)
    with WorkProgress("{task.percentage:.0f} %") as progress:
        for index, batch in enumerate(progress.track(batches, description="measuring attention")):
            with torch.inference_mode():
                inputs = windows.gather(batch).trajectories
                output = model(inputs, use_cache=False, output_attentions=True, return_dict=True)
            attention = torch.stack(output.attentions)  # (layer, window, head, query, key)
            measured.append(masses.of(attention).transpose(0, 1).cpu())
            total += attention.sum(dim=1)
            if shown // size == index:
                kept = attention[:, shown % size]
    record = MeasuredAttention(masses.names, masses.uniform, torch.cat(measured).numpy(), chosen.episodes)
    return record, (total / len(chosen.first)).cpu().numpy(), kept.cpu().numpy()
