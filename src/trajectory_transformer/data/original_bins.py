"""Bins exactly as the original cuts them, for weights that were trained on its tokens."""

import numpy as np
import torch

from .discretizer import SMALLEST_NORMAL, QuantileDiscretizer


def original_quantiles(values: np.ndarray, num_bins: int) -> QuantileDiscretizer:
    """The original's quantile bins of values (n, transition_dim): every ``ceil(n / num_bins)``-th, and the largest.

    Where that gives fewer than ``num_bins + 1`` edges, the original cannot plan, and our own rule is taken.
    """
    thresholds = np.sort(values, axis=0)[:: -(-len(values) // num_bins)]
    if len(thresholds) != num_bins:
        return QuantileDiscretizer(num_bins).fit(values)
    return with_original_rule(np.concatenate([thresholds, values.max(axis=0, keepdims=True)]).T)


def with_original_rule(edges: np.ndarray) -> QuantileDiscretizer:
    """A discretiser of ascending edges (transition_dim, num_bins + 1) with the original's token for a repeated edge.

    Of the bins between equal edges that is the last, otherwise the first. So all but the last of the equal edges (but
    the last two, at the top) are moved down by the least possible step.
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
