"""Measurements of a model's attention: masses of each head and layer, ratios to uniform attention, and intervals."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rich import box
from rich.table import Table

from ..evaluation.measurements import Measurement

UNIFORM = "uniform attention"
ALL_LAYERS = "all layers"
_RESAMPLES = 10_000
_TABLE_COLUMNS = {  # of at most nine letters a word, so that the table fits a screen of eighty
    "mass_present_transition": "present",
    "mass_previous_transition": "previous",
    "mass_same_dimension_as_predicted": "same dim. as predicted",
    "mass_same_dimension_as_query": "same dim. as query",
    "action_mass_past_actions": "actions: past actions",
    "action_mass_past_observations": "actions: past observ.",
}
_ACTIONS, _OBSERVATIONS = "action_mass_past_actions", "action_mass_past_observations"


@dataclass(frozen=True)
class MeasuredAttention:
    """Attention masses of a model in some windows.

    Attributes:
        names: of the masses.
        uniform: (masses,) under uniform attention.
        masses: (window, layer, head, mass) float64.
        episodes: (window,) int, the episode that each is from.
    """

    names: list[str]
    uniform: np.ndarray
    masses: np.ndarray
    episodes: np.ndarray

    def mean(self, name: str) -> np.ndarray:
        """(layer, head) mean over windows of a mass."""
        return self.masses[..., self.names.index(name)].mean(axis=0)

    def baseline(self, name: str) -> float:
        """The mass under uniform attention."""
        return float(self.uniform[self.names.index(name)])


def head_name(layer: int, head: int) -> str:
    """Layers and heads are counted from 1, as in the paper."""
    return f"layer {layer + 1} head {head + 1}"


def attention_measurements(measured: MeasuredAttention) -> list[Measurement]:
    """Measurements of uniform attention, of every head, of every layer (the mean of its heads) and of the whole model.

    Each has the masses, and under names with ``ratio`` for ``mass`` their ratio to those of uniform attention. Whether
    actions attend to past actions more than to past observations is in two differences: of the masses, and of the
    ratios, which compare one action token with one observation token.
    """
    count = len(np.unique(measured.episodes))
    measurements = [
        Measurement(UNIFORM, name, float(value), None, None, count)
        for name, value in zip(measured.names, measured.uniform, strict=True)
    ]
    masses, ratios = measured.masses, measured.masses / measured.uniform
    actions, observations = measured.names.index(_ACTIONS), measured.names.index(_OBSERVATIONS)
    differences = [part[..., actions] - part[..., observations] for part in (masses, ratios)]
    values = np.concatenate([masses, ratios, np.stack(differences, axis=-1)], axis=-1)
    names = [*measured.names, *(name.replace("mass_", "ratio_") for name in measured.names)]
    names += ["action_mass_past_actions_minus_observations", "action_ratio_past_actions_minus_observations"]
    for method, columns in _methods(values):
        intervals = episode_intervals(columns, measured.episodes)
        for index, name in enumerate(names):
            low, high = (None, None) if intervals is None else map(float, intervals[:, index])
            measurements.append(Measurement(method, name, float(columns[:, index].mean()), low, high, count))
    return measurements


def _methods(values: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Heads, layers, and all of them, by name: (window, number) of each, from (window, layer, head, number)."""
    _, layers, heads, _ = values.shape
    for layer in range(layers):
        for head in range(heads):
            yield head_name(layer, head), values[:, layer, head]
        yield f"layer {layer + 1}", values[:, layer].mean(axis=1)
    yield ALL_LAYERS, values.mean(axis=(1, 2))


def episode_intervals(values: np.ndarray, episodes: np.ndarray) -> np.ndarray | None:
    """95 % percentile bootstrap intervals of means over windows, whole episodes being drawn.

    Windows of one episode resemble each other; to draw them one by one would make the intervals too narrow.

    Args:
        values: (window, number).
        episodes: (window,) int, the episode that each window is from.

    Returns:
        (2, number), lower and upper ends; the draws are always the same. None with a single episode.
    """
    _, index, sizes = np.unique(episodes, return_inverse=True, return_counts=True)
    if len(sizes) < 2:
        return None
    sums = np.zeros((len(sizes), values.shape[1]))
    np.add.at(sums, index, values)
    share = np.full(len(sizes), 1.0 / len(sizes))
    drawn = np.random.default_rng(0).multinomial(len(sizes), share, size=_RESAMPLES)
    return np.percentile((drawn @ sums) / (drawn @ sizes)[:, None], [2.5, 97.5], axis=0)


def attention_table(measurements: Sequence[Measurement], title: str) -> Table:
    """A row for each head, their mean and uniform attention: percent of attention, and times what is uniform.

    Args:
        measurements: as from :func:`attention_measurements`.
        title: of the table.
    """
    values = {(measurement.method, measurement.name): measurement.value for measurement in measurements}
    heads = [
        method for method in dict.fromkeys(measurement.method for measurement in measurements) if " head " in method
    ]
    shown = [name for name in _TABLE_COLUMNS if (UNIFORM, name) in values]
    caption = "% of attention to the present transition, …, × what it would be with uniform attention"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("attention of", style="cyan", no_wrap=True)
    for name in shown:
        table.add_column(_TABLE_COLUMNS[name], justify="right")
    for method in (*heads, ALL_LAYERS):
        shares = {name: values[method, name] for name in shown}
        cells = (f"{100 * mass:.0f} ×{mass / values[UNIFORM, name]:.1f}" for name, mass in shares.items())
        table.add_row(method, *cells, end_section=method in (heads[-1], ALL_LAYERS))
    table.add_row("uniform", *(f"{100 * values[UNIFORM, name]:.0f}     " for name in shown))
    return table
