"""Pictures of predictions: how likely and how far from what happened, step by step."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from ..evaluation.plots import BLACK, BLUE, GREY, ORANGE, SERIES, finish, tidy
from ..evaluation.scores import bootstrap_interval
from .prediction_curves import Curves

_STYLES = {
    "transformer": ("transformer", BLUE, "-"),
    "markovian": ("transformer, context of one transition", ORANGE, "-"),
    "ensemble": ("ensemble of Gaussians (PETS)", SERIES[2], "-"),
    "oracle": ("best that its bins allow", BLACK, "--"),
    "constant": ("nothing changes", GREY, "--"),
}
# An ensemble can fall without end, and leaves the picture rather than flatten the others.
_BELOW = 3.0  # nats shown below the lowest of the others
_ABOVE = 2.0  # errors are shown up to that multiple of the highest of the others


def plot_log_likelihood(curves: Curves, title: str, path: Path) -> None:
    """Log-likelihood of what happened, mean over episodes with its 95 % band.

    Args:
        curves: of several episodes.
        title: environment id.
        path: of the picture.
    """
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    methods = curves["log_likelihood"]
    _draw(axes, methods)
    highest = max(values.mean(axis=0).max() for values in methods.values())
    axes.set_ylim(min(means.min() for means in _others(methods)) - _BELOW, highest + 1.0)
    axes.set_ylabel("log-likelihood (nats per dimension)")
    _finish(figure, f"{title}: log-likelihood of held-out episodes", methods, path)


def plot_errors(curves: Curves, title: str, path: Path) -> None:
    """Distance from what happened, of the samples' mean and of each sample; arguments as above."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, curve, name in ((left, "mean_error", "mean of the samples"), (right, "sample_error", "each sample")):
        _draw(axes, curves[curve])
        axes.set_title(name, fontsize=10, loc="left")
    highest = max(means.max() for name in ("mean_error", "sample_error") for means in _others(curves[name]))
    left.set_ylim(0, _ABOVE * highest)
    left.set_ylabel("root mean square error\n(standard deviations of the data)")
    _finish(figure, f"{title}: error of predictions", curves["mean_error"], path)


def _others(methods: dict[str, np.ndarray]) -> list[np.ndarray]:
    """(horizon,) means over episodes of all methods but the ensemble."""
    return [values.mean(axis=0) for method, values in methods.items() if method != "ensemble"]


def _draw(axes: Axes, methods: dict[str, np.ndarray]) -> None:
    for method, values in methods.items():
        name, color, style = _STYLES[method]
        steps = np.arange(1, values.shape[1] + 1)
        marker = "o" if len(steps) == 1 else ""
        axes.plot(steps, values.mean(axis=0), style, color=color, linewidth=1.8, marker=marker, label=name)
        if len(values) > 1:
            axes.fill_between(steps, *bootstrap_interval(values), color=color, alpha=0.2, linewidth=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("step")
    tidy(axes)


def _finish(figure: Figure, title: str, methods: dict[str, np.ndarray], path: Path) -> None:
    episodes = len(next(iter(methods.values())))
    title = f"{title}, {episodes} episode{'s' * (episodes > 1)}"
    finish(figure, title, path, figure.axes[0].lines, columns=2)
