"""Plot of a comparison: interval estimates, performance profiles, and the effect of the tuning budget."""

import itertools
import textwrap
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..evaluation.plots import SERIES, finish, tidy
from .report import Report
from .statistics import AGGREGATES


def plot_comparison(report: Report, title: str, path: Path) -> None:
    """Plot the report as a PNG; raises UserError if it cannot be written."""
    colors = dict(zip(report.aggregates, itertools.cycle(SERIES), strict=False))
    figure = Figure(figsize=(10.0, 4.8 + 0.22 * len(colors)), layout="constrained")
    parts = figure.subfigures(2, 1, squeeze=False, height_ratios=[1.1 + 0.22 * len(colors), 3.2])
    upper, lower = parts.flat
    panels = upper.subplots(1, len(AGGREGATES), sharey=True, squeeze=False).flat
    for index, (name, axes) in enumerate(zip(AGGREGATES, panels, strict=True)):
        for row, (method, estimates) in enumerate(report.aggregates.items()):
            one = estimates[index]
            if one.low is not None and one.high is not None:
                axes.barh(row, one.high - one.low, 0.6, one.low, color=colors[method], alpha=0.45, linewidth=0)
            axes.plot([one.value] * 2, [row - 0.3, row + 0.3], color=colors[method], linewidth=2.5)
        better = "lower" if name == "optimality gap" else "higher"
        axes.set_title(f"{name} ({better} is better)", fontsize=9)
        axes.set_yticks(range(len(colors)), list(colors), fontsize=9)
        axes.set_ylim(len(colors) - 0.4, -0.6)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.set_xlabel("normalized score (%)", fontsize=9)
        axes.use_sticky_edges = False  # otherwise the bars begin at the frame
        axes.margins(x=0.1)
        tidy(axes)
        axes.grid(visible=False, axis="y")
    left, right = lower.subplots(1, 2, width_ratios=[2, 1])
    for method, color in colors.items():
        value, low, high = np.array([(p.value, p.low, p.high) for p in report.profiles[method]], dtype=float).T
        left.plot(report.thresholds, value, color=color, linewidth=1.6)
        left.fill_between(report.thresholds, low, high, color=color, alpha=0.2, linewidth=0)  # NaN: no interval
        budget = report.budgets[method]
        right.plot(range(1, len(budget) + 1), budget, "o-", color=color, linewidth=1.6, markersize=4)
    left.set(xlabel="normalized score τ (%)", ylabel="share of runs above τ", ylim=(-0.02, 1.02))
    left.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    left.set_title("performance profiles", fontsize=10)
    right.set(xlabel="policies tried", ylabel="expected best normalized score (%)")
    right.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    right.set_title("tuning budget", fontsize=10)
    for axes in (left, right):
        tidy(axes)
    handles = [Line2D([], [], color=color, linewidth=2.5, label=method) for method, color in colors.items()]
    finish(figure, textwrap.fill(title, 110), path, handles, columns=min(6, len(colors)))
