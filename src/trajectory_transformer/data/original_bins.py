"""The original's bins, for weights that were trained on its tokens."""

import numpy as np
import torch

from .discretizer import SMALLEST_NORMAL, QuantileDiscretizer


def original_quantiles(values: np.ndarray, num_bins: int) -> QuantileDiscretizer:
    """Return the original's quantile bins of values (n, transition_dim).

    The edges are every ``ceil(n / num_bins)``-th sorted value and the largest. If these are fewer than
    ``num_bins + 1``, with which the original cannot plan, the rule of :class:`QuantileDiscretizer` is used.
    """
    thresholds = np.sort(values, axis=0)[:: -(-len(values) // num_bins)]
    if len(thresholds) != num_bins:
        return QuantileDiscretizer(num_bins).fit(values)
    return with_original_rule(np.concatenate([thresholds, values.max(axis=0, keepdims=True)]).T)


def with_original_rule(edges: np.ndarray) -> QuantileDiscretizer:
    """Return a discretiser of edges (transition_dim, num_bins + 1) with the original's rule for repeated ones.

    The original gives a value at repeated edges the last bin between them; our discretiser gives it the first. So all
    equal edges except the last (at the top, the last two) are moved to the next float below.
    """
    edges = np.array(edges, dtype=np.float32)
    repeated = edges[:, :-1] == edges[:, 1:]
    repeated[:, -1] = False  # the last bin may have zero width: the largest value must fall into it
    below = np.nextafter(edges[:, :-1], np.float32(-np.inf))
    below = np.where(np.abs(below) < SMALLEST_NORMAL, np.where(edges[:, :-1] > 0, 0, -SMALLEST_NORMAL), below)
    edges[:, :-1][repeated] = below[repeated]
    discretizer = QuantileDiscretizer(edges.shape[1] - 1)
    discretizer.edges = torch.from_numpy(edges)
    return discretizer
