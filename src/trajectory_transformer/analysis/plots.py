"""Plots of attention and of predictions."""

from pathlib import Path

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator, PercentFormatter

from ..evaluation.plots import BLACK, BLUE, GREY, ORANGE, SERIES, finish, tidy
from ..evaluation.scores import bootstrap_interval
from ..layout import TOKEN_KINDS, TransitionLayout
from .attention_masses import REGIONS, MeasuredAttention, head_name
from .prediction_curves import Curves

_KIND_COLORS = dict(zip(TOKEN_KINDS, (BLUE, ORANGE, SERIES[2], GREY), strict=True))
_UNSEEN = "#E4E4E4"
_COLUMNS = {
    "mass_present_transition": "present\ntransition",
    "mass_previous_transition": "previous\ntransition",
    "mass_earlier_transitions": "earlier\ntransitions",
    "mass_same_dimension_as_predicted": "same dim.\nas predicted",
    "mass_same_dimension_as_query": "same dim.\nas the query",
    "action_mass_past_actions": "actions: past\nactions",
    "action_mass_past_observations": "actions: past\nobservations",
}
_BAND = 0.035  # width of the coloured bands, as a share of the map's side
_STYLES = {
    "transformer": ("transformer", BLUE, "-"),
    "markovian": ("transformer, context of one transition", ORANGE, "-"),
    "ensemble": ("ensemble of Gaussians (PETS)", SERIES[2], "-"),
    "oracle": ("best that its bins allow", BLACK, "--"),
    "constant": ("nothing changes", GREY, "--"),
}
# The ensemble's curve is unbounded and may leave the axes, whose range is chosen by the other curves.
_BELOW = 3.0  # nats shown below the lowest of the other curves
_ABOVE = 2.0  # upper limit of errors, as a multiple of the highest of the other curves


# Differs from the paper, whose figure leaves rewards out: rewards and values are drawn, too.
def plot_attention_maps(
    weights: np.ndarray, mask: np.ndarray, layout: TransitionLayout, title: str, path: Path
) -> None:
    """Plot a map of (layer, head, query, key) weights for each head, one row per layer, all on one scale.

    Rows are predicted tokens, columns attended tokens. Coloured bands along both show the tokens' kinds, and lines
    separate transitions; keys hidden by the (query, key) mask are grey.
    """
    layers, heads, *_ = weights.shape
    side = 3.5 if heads <= 4 else 2.4
    figure = Figure(figsize=(side * heads + 1.0, side * layers + 1.1), layout="constrained")
    grid = figure.subplots(layers, heads, sharex=True, sharey=True, squeeze=False)
    # A quantile, because the large weights of the first tokens, which have few keys, would dominate the scale.
    norm = PowerNorm(0.5, vmin=0.0, vmax=float(np.quantile(weights[:, :, mask], 0.995)))
    for (layer, head), axes in np.ndenumerate(grid):
        _draw_map(axes, np.where(mask, weights[layer, head], np.nan), layout, norm)
        axes.set_title(head_name(layer, head), fontsize=10, loc="left")
    for axes in grid[:, 0]:
        axes.set_ylabel("token predicted, by its transition")
    for axes in grid[-1]:
        axes.set_xlabel("token attended to, by its transition")
    bar = figure.colorbar(grid[0, 0].images[0], ax=grid, extend="max", shrink=0.7, pad=0.01, aspect=30)
    bar.set_label("attention weight")
    colors = _KIND_COLORS | {"masked": _UNSEEN}
    handles = [Patch(color=color, label=label) for label, color in colors.items()]
    finish(figure, title, path, handles, columns=len(handles))


def _draw_map(axes: Axes, weights: np.ndarray, layout: TransitionLayout, norm: PowerNorm) -> None:
    """Draw the map of one head over all tokens of the context; masked weights are NaN."""
    width = layout.transition_dim
    tokens = len(weights) + 1
    whole = np.full((tokens, tokens), np.nan)  # the first token is not predicted, and the last one is not attended to
    whole[1:, :-1] = weights
    cmap = colormaps["magma"].with_extremes(bad=_UNSEEN)
    axes.imshow(whole, cmap=cmap, norm=norm, extent=(0, tokens, tokens, 0))
    kinds = np.zeros(width, dtype=int)
    for index, columns in enumerate(layout.kind_slices().values()):
        kinds[columns] = index
    kinds = np.tile(kinds, tokens // width)
    colors = ListedColormap(list(_KIND_COLORS.values()))
    band = _BAND * tokens
    beside, below = (-band, 0, tokens, 0), (0, tokens, tokens + band, tokens)
    for picture, extent in ((kinds[:, None], beside), (kinds[None, :], below)):
        axes.imshow(picture, cmap=colors, vmin=0, vmax=len(TOKEN_KINDS) - 1, extent=extent, interpolation="nearest")
    for border in range(width, tokens, width):
        axes.axhline(border, color=GREY, linewidth=0.4, alpha=0.7)
        axes.axvline(border, color=GREY, linewidth=0.4, alpha=0.7)
    axes.set(xlim=(-band, tokens), ylim=(tokens + band, 0))
    middles = np.arange(width / 2, tokens, width)
    labels = [str(number) for number in range(1, len(middles) + 1)]
    axes.set_xticks(middles, labels, fontsize=7)
    axes.set_yticks(middles, labels, fontsize=7)
    axes.tick_params(length=0)


def plot_attention_summary(measured: MeasuredAttention, title: str, path: Path) -> None:
    """Plot the division of attention among transitions as bars, and its ratio to uniform attention as a chart."""
    _, layers, heads, _ = measured.masses.shape
    rows = [head_name(layer, head) for layer in range(layers) for head in range(heads)]
    figure = Figure(figsize=(12.0, 0.36 * (len(rows) + 1) + 2.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(1, 1.5))
    _draw_shares(left, measured, [*rows, "uniform"])
    _draw_ratios(right, measured, len(rows))
    finish(figure, title, path, handles=())  # the bars have their own legend


def _draw_shares(axes: Axes, measured: MeasuredAttention, rows: list[str]) -> None:
    """Draw a stacked bar of each head's attention; the last one is uniform attention."""
    places = [*range(len(rows) - 1), len(rows) - 0.5]
    begin = np.zeros(len(rows))
    for region, color in zip(REGIONS, (BLUE, ORANGE, GREY), strict=True):
        name = f"mass_{region}"
        share = np.append(measured.mean(name).ravel(), measured.baseline(name))
        axes.barh(places, share, left=begin, height=0.75, color=color, label=_COLUMNS[name].replace("\n", " "))
        begin += share
    axes.set_yticks(places, rows, fontsize=8)
    axes.set(xlim=(0.0, 1.0), ylim=(len(rows), -0.6), xlabel="share of attention")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    tidy(axes)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=3, frameon=False, fontsize=8, columnspacing=1.0)


def _draw_ratios(axes: Axes, measured: MeasuredAttention, rows: int) -> None:
    """Draw a cell for each head and mass, coloured by its ratio to uniform attention, with ratio and mass as text."""
    names = [name for name in _COLUMNS if name in measured.names]
    masses = np.stack([measured.mean(name).ravel() for name in names], axis=1)
    ratios = masses / [measured.baseline(name) for name in names]
    doublings = np.log2(np.maximum(ratios, 2.0**-4))
    image = axes.imshow(doublings, cmap="RdBu_r", vmin=-4, vmax=4, aspect="auto")
    for (row, column), doubling in np.ndenumerate(doublings):
        text = f"×{ratios[row, column]:.2g}  {100 * masses[row, column]:.0f} %"
        color = "white" if abs(doubling) > 2.2 else BLACK
        axes.text(column, row, text, ha="center", va="center", fontsize=7, color=color)
    for column, name in enumerate(names):
        axes.text(column, rows + 0.5, f"{100 * measured.baseline(name):.0f} %", ha="center", va="center", fontsize=7)
    axes.set_xticks(range(len(names)), [_COLUMNS[name] for name in names], fontsize=7)
    axes.tick_params(length=0, labelleft=False)
    axes.spines[:].set_visible(False)
    bar = axes.figure.colorbar(image, ax=axes, ticks=[-4, -2, 0, 2, 4], extend="both", pad=0.01, aspect=30)
    bar.ax.set_yticklabels(["1/16", "1/4", "1", "4", "16"])
    bar.set_label("times uniform attention", fontsize=8)


def plot_log_likelihood(curves: Curves, title: str, path: Path) -> None:
    """Plot the log-likelihood of the actual outcome, mean over episodes with its 95 % band."""
    figure = Figure(figsize=(7.2, 4.6), layout="constrained")
    axes = figure.subplots()
    methods = curves["log_likelihood"]
    _draw_curves(axes, methods)
    highest = max(values.mean(axis=0).max() for values in methods.values())
    lowest = min(means.min() for means in _others(methods))
    axes.set(ylim=(lowest - _BELOW, highest + 1.0), ylabel="log-likelihood (nats per dimension)")
    _finish(figure, f"{title}: log-likelihood of held-out episodes", methods, path)


def plot_errors(curves: Curves, title: str, path: Path) -> None:
    """Plot the error against the actual outcome, of the samples' mean and of each sample."""
    figure = Figure(figsize=(9.6, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for axes, curve, name in ((left, "mean_error", "mean of the samples"), (right, "sample_error", "each sample")):
        _draw_curves(axes, curves[curve])
        axes.set_title(name, fontsize=10, loc="left")
    highest = max(means.max() for name in ("mean_error", "sample_error") for means in _others(curves[name]))
    left.set(ylim=(0, _ABOVE * highest), ylabel="root mean square error\n(standard deviations of the data)")
    _finish(figure, f"{title}: error of predictions", curves["mean_error"], path)


def _others(methods: dict[str, np.ndarray]) -> list[np.ndarray]:
    """Return the (horizon,) means over episodes of all methods except the ensemble."""
    return [values.mean(axis=0) for method, values in methods.items() if method != "ensemble"]


def _draw_curves(axes: Axes, methods: dict[str, np.ndarray]) -> None:
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
