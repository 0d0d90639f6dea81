"""Bins exactly as the original cuts them, for weights that were trained on its tokens."""

import numpy as np
import torch

from .discretizer import SMALLEST_NORMAL, QuantileDiscretizer


def original_quantiles(values: np.ndarray, num_bins: int) -> QuantileDiscretizer:
    """The original's quantile bins: every ``ceil(n / num_bins)``-th value in order, and the largest.

    Where that gives fewer than ``num_bins + 1`` edges (few values), the original cannot plan, and
    :meth:`QuantileDiscretizer.fit` decides.

    Args:
        values: (n, transition_dim) float32.
        num_bins: V.
    """
    thresholds = np.sort(values, axis=0)[:: -(-len(values) // num_bins)]
    if len(thresholds) != num_bins:
        return QuantileDiscretizer(num_bins).fit(values)
    return with_original_rule(np.concatenate([thresholds, values.max(axis=0, keepdims=True)]).T)


def with_original_rule(edges: np.ndarray) -> QuantileDiscretizer:
    """A discretiser that gives a value on a repeated edge the original's token.

    There a value gets the last bin whose lower edge does not exceed it, here the first of the bins between equal edges.
    All but the last of the equal edges (but the last two, at the top) are therefore moved down by the least possible
    step.

    Args:
        edges: (transition_dim, num_bins + 1), ascending along the last axis; they may repeat.
    """
    edges = np.array(edges, dtype=np.float32)
    repeated = edges[:, :-1] == edges[:, 1:]
    repeated[:, -1] = False  # the last bin may have no width: the largest value has to fall into it
    below = np.nextafter(edges[:, :-1], np.float32(-np.inf))
    below = np.where(np.abs(below) < SMALLEST_NORMAL, np.where(edges[:, :-1] > 0, 0, -SMALLEST_NORMAL), below)
    edges[:, :-1][repeated] = below[repeated]
    discretizer = QuantileDiscretizer(edges.shape[1] - 1)
    discretizer.edges = torch.from_numpy(edges)
    return discretizer
