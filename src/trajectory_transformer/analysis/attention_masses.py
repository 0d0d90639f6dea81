"""Attention masses of each head and layer, their ratios to uniform attention, and intervals.

The model at position p predicts the token at p + 1, so a query is described by the transition, kind and dimension of
the predicted token. With t the predicted token's transition::

    keys     | … transition t-2 … | … transition t-1 … | … transition t, up to the predicted token
             |       earlier      |      previous      |                present

Queries of the first two transitions are left out, so that each counted query has an earlier transition.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from rich import box
from rich.table import Table
from torch import Tensor

from ..evaluation.measurements import Measurement
from ..layout import TOKEN_KINDS, TransitionLayout

REGIONS = ("present_transition", "previous_transition", "earlier_transitions")
UNIFORM, ALL_LAYERS = "uniform attention", "all layers"
_FIRST_TRANSITION = 2  # first transition whose queries are counted
_RESAMPLES = 10_000
_ACTIONS, _OBSERVATIONS = "action_mass_past_actions", "action_mass_past_observations"
_TABLE_COLUMNS = {  # words of at most nine letters, so that the table fits into 80 columns
    "mass_present_transition": "present",
    "mass_previous_transition": "previous",
    "mass_same_dimension_as_predicted": "same dim. as predicted",
    "mass_same_dimension_as_query": "same dim. as query",
    _ACTIONS: "actions: past actions",
    _OBSERVATIONS: "actions: past observ.",
}


class AttentionMasses:
    """Shares of attention from groups of queries to groups of keys, each the mean over the queries.

    Args:
        layout: layout of a transition of D tokens.
        mask: (query, key) bool, True if the query may attend to the key; T * D - 1 of both, with T at least 3.

    Attributes:
        names: names such as ``mass_previous_transition``, or ``action_mass_previous_transition`` for queries that
            predict actions. A mass whose keys are masked for all its queries is left out.
        uniform: (masses,) float64 in (0, 1], the masses if each query attends equally to all its visible keys.
    """

    def __init__(self, layout: TransitionLayout, mask: Tensor) -> None:
        self._keys = _keys(layout, mask)
        self._queries = {target: _queries(layout, target, len(mask)) for target in self._keys}
        names = [name for queries in self._queries.values() for name in queries]
        self._kept = torch.ones(len(names), dtype=torch.bool)
        uniform = self.of(mask / mask.sum(dim=1, keepdim=True)).cpu()
        self._kept = uniform > 0.0
        self.uniform = uniform[self._kept].numpy()
        self.names = [name for name, kept in zip(names, self._kept, strict=True) if kept]

    def of(self, attention: Tensor) -> Tensor:
        """Return the masses (…, masses), float64 in [0, 1], of weights (…, query, key) whose rows sum to 1."""
        masses = []
        for target, keys in self._keys.items():
            received = torch.einsum("...qk,qk->...q", attention, keys.to(attention))
            counted = torch.stack(list(self._queries[target].values()), dim=-1).to(attention.device)
            masses.append(received.double() @ counted)
        return torch.cat(masses, dim=-1)[..., self._kept.to(attention.device)]


def _keys(layout: TransitionLayout, mask: Tensor) -> dict[str, Tensor]:
    """Return the visible keys of each target, for each query: (query, key) bool."""
    width = layout.transition_dim
    key = torch.arange(len(mask), device=mask.device)
    query, dimension = key[:, None], key % width
    steps_back = (query + 1) // width - key // width
    past = steps_back > 0
    observations, actions = (torch.isin(dimension, key[:width][part]) for part in (layout.observation, layout.action))
    targets = {
        "present_transition": steps_back == 0,
        "previous_transition": steps_back == 1,
        "earlier_transitions": steps_back > 1,
        # In the paper, dimensions attend to themselves at earlier steps. It is unclear whether its maps label a query
        # by its input token or by the predicted token, so both stripes, one token apart, are measured.
        "same_dimension_as_predicted": past & (dimension == (query + 1) % width),
        "same_dimension_as_query": (key < query) & (dimension == query % width),
        "past_observations": past & observations,
        "past_actions": past & actions,
    }
    return {name: keys & mask for name, keys in targets.items()}


def _queries(layout: TransitionLayout, target: str, count: int) -> dict[str, Tensor]:
    """Return the weights of the queries in each mass of a target, by name: (query,) float64 with sum 1 or 0."""
    predicted = torch.arange(1, count + 1)
    dimension = predicted % layout.transition_dim
    # Value tokens are masked as keys, so queries that predict one, or are one, have no key of the same dimension.
    left_out = {"same_dimension_as_predicted": layout.value, "same_dimension_as_query": 0}.get(target, -1)
    counted = (predicted >= _FIRST_TRANSITION * layout.transition_dim) & (dimension != left_out)
    kinds = ("observation", "action") if target.startswith("past_") else TOKEN_KINDS
    columns = {kind: torch.arange(layout.transition_dim)[part] for kind, part in layout.kind_slices().items()}
    chosen = {f"{kind}_mass_{target}": counted & torch.isin(dimension, columns[kind]) for kind in kinds}
    if kinds == TOKEN_KINDS:
        chosen[f"mass_{target}"] = counted
    return {name: queries.double() / queries.sum().clamp(min=1) for name, queries in chosen.items()}


@dataclass(frozen=True)
class MeasuredAttention:
    """Attention masses of a model, for each window."""

    names: list[str]
    uniform: np.ndarray  # (mass,) under uniform attention
    masses: np.ndarray  # (window, layer, head, mass) float64
    episodes: np.ndarray  # (window,) int, episode of each window

    def mean(self, name: str) -> np.ndarray:
        """Return the mean of a mass over windows, (layer, head)."""
        return self.masses[..., self.names.index(name)].mean(axis=0)

    def baseline(self, name: str) -> float:
        return float(self.uniform[self.names.index(name)])


def head_name(layer: int, head: int) -> str:
    """Return the name of a head; layers and heads are counted from 1, as in the paper."""
    return f"layer {layer + 1} head {head + 1}"


def attention_measurements(measured: MeasuredAttention) -> list[Measurement]:
    """Return the measurements of uniform attention, every head, every layer (mean of its heads) and the whole model.

    Each has the masses and, under names with ``ratio`` instead of ``mass``, their ratios to uniform attention. Two
    differences, of masses and of ratios, show whether actions attend more to past actions than to past observations.
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
    _, layers, heads, _ = values.shape
    methods: dict[str, np.ndarray] = {}  # (window, number) each
    for layer in range(layers):
        methods |= {head_name(layer, head): values[:, layer, head] for head in range(heads)}
        methods[f"layer {layer + 1}"] = values[:, layer].mean(axis=1)
    methods[ALL_LAYERS] = values.mean(axis=(1, 2))
    for method, columns in methods.items():
        intervals = episode_intervals(columns, measured.episodes)
        for index, name in enumerate(names):
            low, high = (None, None) if intervals is None else map(float, intervals[:, index])
            measurements.append(Measurement(method, name, float(columns[:, index].mean()), low, high, count))
    return measurements


def episode_intervals(values: np.ndarray, episodes: np.ndarray) -> np.ndarray | None:
    """Return 95 % percentile bootstrap intervals of means over windows, resampling whole episodes.

    Args:
        values: (window, number).
        episodes: (window,) int, episode of each window; windows of one episode are correlated.

    Returns:
        (2, number) lower and upper ends, with a fixed seed; None for a single episode.
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
    """Return a table with a row for each head, their mean and uniform attention: percent, and ratio to uniform."""
    values = {(one.method, one.name): one.value for one in measurements}
    heads = [method for method in dict.fromkeys(one.method for one in measurements) if " head " in method]
    shown = [name for name in _TABLE_COLUMNS if (UNIFORM, name) in values]
    caption = "% of attention to the present transition, …; × is its ratio to uniform attention"
    table = Table(title=title, caption=caption, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.title_justify = table.caption_justify = "left"
    table.add_column("attention of", style="cyan", no_wrap=True)
    for name in shown:
        table.add_column(_TABLE_COLUMNS[name], justify="right")
    for method in (*heads, ALL_LAYERS):
        shares = ((values[method, name], values[UNIFORM, name]) for name in shown)
        cells = (f"{100 * mass:.0f} ×{mass / uniform:.1f}" for mass, uniform in shares)
        table.add_row(method, *cells, end_section=method in (heads[-1], ALL_LAYERS))
    table.add_row("uniform", *(f"{100 * values[UNIFORM, name]:.0f}     " for name in shown))
    return table
