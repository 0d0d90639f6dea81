"""Plots of a run, drawn without pyplot, so that no global state is changed and no display is needed."""

import contextlib
import csv
import io
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, PercentFormatter

from ..files import write_output
from ..layout import TOKEN_KINDS
from .records import EpisodeTrace, PlanTrace

# Okabe and Ito's colours, which the colour-blind can distinguish.
BLUE, ORANGE, GREEN, BLACK, GREY = "#0072B2", "#D55E00", "#009E73", "#222222", "#8C8C8C"
SERIES = (BLUE, ORANGE, GREEN, "#CC79A7", "#E69F00", "#56B4E9", BLACK)
_MAX_PANELS = 12
_SCORE_NAMES = {  # column of metrics.csv -> title, and the column of its interval
    "return_mean": ("episode return", "return_ci95"),
    "success_rate": ("success rate", "success_ci95"),
}
_TOKEN_LOSSES = {f"{kind}_loss": f"{kind} tokens" for kind in TOKEN_KINDS}


def plot_returns(
    behavior: np.ndarray, own: np.ndarray, interval: tuple[float, float] | None, title: str, path: Path, actor: str
) -> None:
    """Plot an agent's ``own`` returns (episodes,), with the 95 % ``interval`` of their mean, below the behaviour's.

    ``actor`` is what the agent is called, such as "planner".
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    grid = figure.subplots(2, 1, sharex=True)
    both = np.concatenate([behavior, own])
    low, high = float(both.min()), float(both.max())
    margin = 0.02 * (high - low) or 1.0
    bins = np.linspace(low - margin, high + margin, 51).tolist()
    kinds = (("behaviour data", "behaviour", behavior, BLUE, "--"), (actor, actor, own, ORANGE, "-"))
    for axes, (name, _, values, color, _) in zip(grid, kinds, strict=True):
        axes.hist(values, bins, weights=np.full(len(values), 1.0 / len(values)), color=color, alpha=0.6)
        axes.set_title(f"{name}, {len(values)} episodes", fontsize=10, loc="left")
        axes.set_ylabel("share of episodes")
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        axes.yaxis.set_major_locator(MaxNLocator(4))
        for _, owner, returns, line, style in kinds:
            label = f"{owner}'s mean {returns.mean():.5g}" if axes is grid[1] else None
            axes.axvline(float(returns.mean()), color=line, linewidth=2, linestyle=style, label=label)
        tidy(axes)
    if interval is not None:
        words = "its 95 % interval {:.5g} to {:.5g}".format(*interval)
        grid[1].axvspan(*interval, color=ORANGE, alpha=0.2, linewidth=0, label=words)
    grid[1].set_xlabel("return of an episode (sum of rewards)")
    finish(figure, f"{title}: returns", path)


@dataclass(frozen=True)
class TradeoffPoint:
    """The return and planning time of one choice of planner options."""

    series: str  # name of the line that joins the points
    label: str  # label of the point within its series
    milliseconds: float  # median time of a planned action
    episode_return: tuple[float, float, float]  # mean, and the ends of its 95 % interval, NaN if it has none


def plot_tradeoff(points: list[TradeoffPoint], behavior_mean: float, title: str, path: Path) -> None:
    """Plot the return against the planning time of at least one point, with the data's mean return."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    for name, color in zip(dict.fromkeys(point.series for point in points), itertools.cycle(SERIES), strict=False):
        line = sorted((point for point in points if point.series == name), key=lambda point: point.milliseconds)
        x, (mean, low, high) = [p.milliseconds for p in line], np.array([p.episode_return for p in line]).T
        style = {"color": color, "marker": "o", "capsize": 2, "linewidth": 1.2}
        axes.errorbar(x, mean, yerr=[mean - low, high - mean], label=name, **style)
        for point in line:
            position = (point.milliseconds, point.episode_return[0])
            axes.annotate(point.label, position, xytext=(4, 4), textcoords="offset points", fontsize=8, color=color)
    words = f"behaviour's mean {behavior_mean:.5g}"
    axes.axhline(behavior_mean, color=GREY, linestyle="--", linewidth=1.5, label=words)
    axes.set(xlabel="milliseconds per action (median)", ylabel="return of an episode, mean and 95 % interval")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    tidy(axes)
    finish(figure, f"{title}: return against planning time", path)


def plan_window(steps: int, length: int) -> range:
    """Return the middle steps of an episode, of ``steps`` observations, that show plans of ``length`` observations."""
    shown = min(steps, max(6 * max(length - 1, 1), 24) + 1)
    return range((steps - shown) // 2, (steps - shown) // 2 + shown)


def plot_plan(trace: EpisodeTrace, names: list[str], title: str, path: Path) -> None:
    """Plot plans (at least one) made in the middle of an episode against the actual outcome.

    There is one panel for each of the first twelve dimensions that change.
    """
    reach = max(len(trace.plans[0].observations) - 1, 1)
    window = plan_window(len(trace.observations), len(trace.plans[0].observations))
    outcome = trace.observations[window.start : window.stop]
    shown: list[PlanTrace] = []  # those within the window that do not overlap
    for plan in trace.plans:
        if plan.step in window[:-1] and (not shown or plan.step - shown[-1].step > reach):
            shown.append(plan)
    changing = np.flatnonzero(np.ptp(outcome, axis=0) > 0)
    dimensions = (changing if len(changing) else np.arange(outcome.shape[1]))[:_MAX_PANELS]
    figure, panels = _panels(len(dimensions), 1.9, "environment step")
    for axes, dimension in zip(panels, dimensions, strict=True):
        axes.plot(window, outcome[:, dimension], color=BLACK, linewidth=1.5)
        for plan in shown:
            predicted = plan.observations[: window.stop - plan.step, dimension]
            axes.plot(plan.step + np.arange(len(predicted)), predicted, color=ORANGE, linewidth=1.8)
            axes.plot(plan.step, predicted[0], "o", color=ORANGE, markersize=4)
        axes.set_title(names[dimension], fontsize=9, loc="left")
    words = "predicted by a plan, which begins at its dot"
    handles = [
        Line2D([], [], color=BLACK, linewidth=1.5, label="what happened"),
        Line2D([], [], color=ORANGE, linewidth=1.8, marker="o", markersize=4, label=words),
    ]
    finish(figure, f"{title}: plans against what happened, episode {trace.episode}", path, handles)


def plot_training(metrics: Path, path: Path) -> bool:
    """Plot training and validation loss, in total and for each of its parts (``…_loss``), over optimiser updates.

    If episodes were evaluated during training, their results come first, with 95 % intervals and the best marked.
    Missing columns are left out. Returns False if ``metrics.csv`` has nothing to plot.
    """
    columns = _read_columns(metrics)
    keys = dict.fromkeys(name.partition("/")[2] for name in columns if name.startswith(("train/", "val/")))
    of_tokens = not keys.keys().isdisjoint(_TOKEN_LOSSES)
    names = {"loss": "all tokens, weighted" if of_tokens else "loss"} | _TOKEN_LOSSES
    names |= {key: key.replace("_", " ") for key in keys if key.endswith("_loss") and key not in names}
    found = [(key, name) for key, name in names.items() if key in keys]
    scores = [key for key in _SCORE_NAMES if f"evaluation/{key}" in columns]
    if not found and not scores:
        return False
    figure, panels = _panels(len(scores) + len(found), 2.5, "optimiser update")
    for axes, key in zip(panels, scores, strict=False):
        _draw_score(axes, columns, key)
    panels = panels[len(scores) :]
    for axes, (key, name) in zip(panels, found, strict=True):
        for split, color, label, style in (("train", BLUE, "training", "-"), ("val", ORANGE, "validation", "o-")):
            if f"{split}/{key}" in columns:
                axes.plot(*columns[f"{split}/{key}"], style, color=color, linewidth=1.3, markersize=3, label=label)
        axes.set_title(name, fontsize=10, loc="left")
        in_nats = of_tokens and key in ("loss", *_TOKEN_LOSSES)
        axes.set_ylabel("loss (nats per token)" if in_nats else "loss", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if found:
        panels[0].legend(frameon=False, fontsize=9)
    _save(figure, path)
    return True


def _draw_score(axes: Axes, columns: dict[str, np.ndarray], key: str) -> None:
    """Plot a score over updates with its 95 % interval, and a star at the best return (the last of equal ones)."""
    title, interval = _SCORE_NAMES[key]
    steps, values = columns[f"evaluation/{key}"]
    ends = [columns.get(f"evaluation/{interval}_{end}") for end in ("low", "high")]
    if ends[0] is not None and ends[1] is not None:
        axes.fill_between(
            ends[0][0], ends[0][1], ends[1][1], color=GREEN, alpha=0.2, linewidth=0, label="95 % interval"
        )
    axes.plot(steps, values, "o-", color=GREEN, linewidth=1.3, markersize=3, label="mean of episodes")
    axes.set_title(title, fontsize=10, loc="left")
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    if key == "success_rate":
        axes.set_ylim(-0.03, 1.03)
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
        return
    best = len(values) - 1 - int(values[::-1].argmax())
    label = f"best, {values[best]:.4g} at {steps[best]:.0f}"
    axes.plot(steps[best], values[best], "*", color=GREEN, markersize=10, label=label)
    axes.legend(frameon=False, fontsize=8)


def _read_columns(metrics: Path) -> dict[str, np.ndarray]:
    """Return (2, n) steps and values of each numeric column; empty if the file is missing."""
    points = defaultdict(list)
    if metrics.is_file():
        with metrics.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                for name, cell in row.items():
                    with contextlib.suppress(KeyError, TypeError, ValueError):  # an empty or truncated cell
                        point = float(row["step"]), float(cell)
                        if all(map(math.isfinite, point)):
                            points[name].append(point)
    return {name: np.transpose(found) for name, found in points.items()}


def _panels(count: int, height: float, label: str) -> tuple[Figure, list[Axes]]:
    """Make ``count`` panels with a common horizontal axis, at most three in a row, each ``height`` inches high."""
    columns = min(3, count)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(3.4 * columns + 0.6, height * rows + 0.9), layout="constrained")
    panels = list(figure.subplots(rows, columns, sharex=True, squeeze=False).flat)
    for axes in panels[:count]:
        tidy(axes)
    for axes in panels[count:]:
        axes.set_visible(False)
    for axes in panels[:count][-3:]:  # the bottom panel of each column
        axes.set_xlabel(label)
        axes.tick_params(axis="x", labelbottom=True)
    return figure, panels[:count]


def tidy(axes: Axes) -> None:
    """Remove the upper and right side of the frame, and draw a faint grid."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=GREY, alpha=0.25, linewidth=0.6)
    axes.set_axisbelow(True)


def finish(figure: Figure, title: str, path: Path, handles: Sequence[Artist] | None = None, columns: int = 3) -> None:
    """Add a title above and a legend below a figure with constrained layout, and save it; an error raises UserError.

    The legend has ``handles``, by default all labelled artists, and is omitted if there are none.
    """
    if handles is None:
        handles = [handle for axes in figure.axes for handle in axes.get_legend_handles_labels()[0]]
    if handles:
        figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)
    figure.suptitle(title, fontsize=11)
    _save(figure, path)


def _save(figure: Figure, path: Path) -> None:
    picture = io.BytesIO()
    figure.savefig(picture, dpi=130, format="png")
    write_output("picture", path, picture.getvalue())
