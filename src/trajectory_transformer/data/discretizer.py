"""Discretisers, which convert the real values of each transition dimension to tokens and back."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import NamedTuple, Self

import numpy as np
import torch
from torch import Tensor, nn

from ..configuration import DiscretizerConfig

ALL_COLUMNS = slice(None)
SMALLEST_NORMAL = torch.finfo(torch.float32).tiny
LARGEST_INDEX = 2**22  # float32 represents all multiples of 0.5 up to here


class _Derived(NamedTuple):
    """Tensors derived from the edges, cached until the edges change."""

    edges: Tensor
    version: int
    boundaries: Tensor
    centers: Tensor


class Discretizer(nn.Module, ABC):
    """Bins between ``num_bins + 1`` edges for each transition dimension.

    ::

        edges    e0 ≤ e1 ≤ e2 ≤ … ≤ eN      one row for each dimension
        token       0    1   …   N-1        value v gets the bin with e[i] ≤ v < e[i+1]
        stop token                    N     never returned by encode; decoded as the last bin

    A value equal to a repeated edge gets the first bin between the equal edges, which has zero width, so the value is
    decoded exactly. Values outside the edges are clamped to the nearest edge. All arithmetic is in float32. The
    argument ``columns`` of the methods is the slice of transition dimensions of the d given values; default: all.
    """

    edges: Tensor  # (transition_dim, num_bins + 1) float32 buffer, rows ascend; no rows before ``fit``
    strategy: str = ""
    _derived: _Derived | None = None

    def __init__(self, num_bins: int = 100) -> None:
        super().__init__()
        if num_bins < 2:
            raise ValueError(f"num_bins must be at least 2, got {num_bins}")
        self.num_bins = num_bins
        self.register_buffer("edges", torch.empty(0, num_bins + 1))
        self.register_load_state_dict_pre_hook(_take_stored_shape)

    @property
    def stop_token(self) -> int:
        """Token of every dimension after a terminated episode: ``num_bins``."""
        return self.num_bins

    @property
    def transition_dim(self) -> int:
        """Number of fitted dimensions; 0 before ``fit``."""
        return len(self.edges)

    @property
    def centers(self) -> Tensor:
        """Centres of the bins, (transition_dim, num_bins) float32."""
        return self._from_edges().centers

    def fit(self, values: Tensor | np.ndarray, indices: Mapping[int, tuple[float, float]] | None = None) -> Self:
        """Fit the edges to values (n ≥ 1, transition_dim), converted to float32; returns itself.

        Args:
            values: finite numbers.
            indices: for each column of whole numbers, its smallest and largest possible value, within
                ±:data:`LARGEST_INDEX` and spanning at most ``num_bins`` numbers. With any strategy, each number gets a
                token of its own, whether it occurs in ``values`` or not.

        Raises:
            ValueError: values that are not finite, or more whole numbers than bins.
        """
        indices = indices or {}
        rows = torch.as_tensor(values).detach().to("cpu", torch.float32).numpy()
        if rows.ndim != 2 or rows.size == 0:
            raise ValueError(f"fit needs values of shape (n ≥ 1, transition_dim ≥ 1), got {tuple(rows.shape)}")
        edges = np.stack([self._fitted(column, indices.get(number)) for number, column in enumerate(rows.T)])
        edges[np.abs(edges) < SMALLEST_NORMAL] = 0.0  # some devices flush subnormal numbers to zero
        self.edges = torch.from_numpy(edges).to(self.edges.device)
        return self

    def _fitted(self, column: np.ndarray, ends: tuple[float, float] | None) -> np.ndarray:
        """Return (num_bins + 1,) float32 edges for one dimension's values (n,); ``ends``: its first and last index."""
        ordered = np.sort(column)  # NaN comes last
        if not np.isfinite(ordered[[0, -1]]).all():
            raise ValueError("fit needs finite values")
        return self._column_edges(ordered) if ends is None else self._index_edges(*ends)

    def _index_edges(self, first: float, last: float) -> np.ndarray:
        """Return (num_bins + 1,) float32 edges with a bin around each whole number from ``first`` to ``last``."""
        whole = np.arange(first, last + 1, dtype=np.float32)
        if len(whole) > self.num_bins:
            raise ValueError(f"{len(whole)} indices do not fit into {self.num_bins} bins")
        if 2 * len(whole) <= self.num_bins + 1:
            return self._atoms(whole)
        return np.pad(np.append(whole - 0.5, whole[-1] + 0.5), (0, self.num_bins - len(whole)), mode="edge")

    def _atoms(self, distinct: np.ndarray) -> np.ndarray:
        """Return (num_bins + 1,) edges with a bin of zero width for each of at most half as many ascending values."""
        return np.pad(distinct.repeat(2), (0, self.num_bins + 1 - 2 * len(distinct)), mode="edge")

    @abstractmethod
    def _column_edges(self, ordered: np.ndarray) -> np.ndarray:
        """Return (num_bins + 1,) float32 edges for one dimension's values (n,) in ascending order."""

    def encode(self, values: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Encode real values (..., d) as tokens; ±inf get the first and last bins.

        Returns:
            (..., d) int64 in [0, num_bins), on the edges' device.

        Raises:
            ValueError: NaN among the values, or a d other than the number of columns.
        """
        edges = _some(self.edges, columns, values.shape[-1])
        flat = values.to(edges).reshape(-1, len(edges)).T.contiguous()  # (d, n)
        bad = torch.isnan(flat)
        if bad.any():
            found = bad.any(dim=1).nonzero()[:, 0].tolist()
            raise ValueError(f"cannot encode NaN, found in columns {found} of the given values")
        flat = flat.clamp(edges[:, :1], edges[:, -1:])
        tokens = torch.searchsorted(self._from_edges().boundaries[columns], flat, right=True, out_int32=True) - 1
        return tokens.clamp_(0, self.num_bins - 1).T.reshape(values.shape).to(torch.int64)

    def decode(self, tokens: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Decode integer tokens (..., d) to bin centres (..., d) float32; the stop token counts as the last bin."""
        centers = _some(self.centers, columns, tokens.shape[-1])
        flat = tokens.reshape(-1, len(centers)).to(centers.device, torch.int64).clamp(0, self.num_bins - 1)
        return centers.T.gather(0, flat).reshape(tokens.shape)

    def expectation(self, probabilities: Tensor, columns: slice = ALL_COLUMNS) -> Tensor:
        """Return the mean bin centre (..., d) under probabilities (..., d, num_bins) or (..., d, num_bins + 1).

        The stop token's probability is dropped without rescaling the rest, as in the original: a likely end of the
        episode pulls the expectation towards 0.
        """
        bins = self._bin_probabilities(probabilities)
        return (bins * _some(self.centers, columns, bins.shape[-2]).to(bins)).sum(dim=-1)

    def percentile(self, probabilities: Tensor, fraction: float, columns: slice = ALL_COLUMNS) -> Tensor:
        """Return the centre (..., d) of the first bin whose cumulative probability reaches ``fraction``, in (0, 1).

        Probabilities are (..., d, num_bins) or (..., d, num_bins + 1). The stop token's probability is dropped and
        ``fraction`` refers to the remaining mass. NaN probabilities give NaN.

        Raises:
            ValueError: ``fraction`` outside (0, 1).
        """
        # Differs from the original: its percentile is one bin too low, and wraps from the first bin to the last.
        if not 0.0 < fraction < 1.0:
            raise ValueError(f"fraction must lie in (0, 1), got {fraction}")
        bins = self._bin_probabilities(probabilities)
        cumulative = bins.cumsum(dim=-1)
        mass = cumulative[..., -1:]
        tokens = (cumulative < fraction * mass).sum(dim=-1)
        return self.decode(tokens, columns).to(bins).masked_fill(mass.squeeze(-1).isnan(), torch.nan)

    def log_widths(self) -> Tensor:
        """Return (transition_dim, num_bins + 1) logarithms of the bins' widths relative to each dimension's mean width.

        Widths are at least a twentieth of the mean, so that repeated values do not outweigh all others; the stop token
        has width 1.
        """
        widths = self.edges.diff(dim=1)
        mean = widths.mean(dim=1, keepdim=True)
        relative = torch.where(mean > 0, widths / mean, torch.ones_like(widths)).clamp(min=0.05)
        return nn.functional.pad(relative.log(), (0, 1))

    def to_dict(self) -> dict[str, str | Tensor]:
        """Return the strategy's name and the edges on the CPU, for :meth:`from_dict`."""
        return {"strategy": self.strategy, "edges": self.edges.detach().cpu().clone()}

    @staticmethod
    def from_dict(data: Mapping[str, object]) -> "Discretizer":
        """Restore the result of :meth:`to_dict`; raises ValueError for an unknown strategy or invalid edges."""
        strategy, edges = data.get("strategy"), data.get("edges")
        if strategy not in STRATEGIES:
            raise ValueError(f"unknown discretiser strategy {strategy!r}")
        if not isinstance(edges, Tensor) or edges.ndim != 2 or edges.shape[0] < 1 or edges.shape[1] < 3:
            raise ValueError("a discretiser's edges must be a tensor (transition_dim, num_bins + 1)")
        if not torch.isfinite(edges).all() or (edges.diff(dim=1) < 0).any():
            raise ValueError("a discretiser's edges must be finite and ascending")
        discretizer = STRATEGIES[str(strategy)](edges.shape[1] - 1)
        discretizer.edges = edges.detach().to(torch.float32, copy=True)
        return discretizer

    def _from_edges(self) -> _Derived:
        edges = self.edges
        version = 0 if edges.is_inference() else edges._version
        if self._derived is None or self._derived.edges is not edges or self._derived.version != version:
            with torch.inference_mode(False):  # so that the cached tensors can be used in autograd
                centers = (edges[:, :-1] + edges[:, 1:]) / 2
                self._derived = _Derived(edges, version, _boundaries(edges), centers)
        return self._derived

    def _bin_probabilities(self, probabilities: Tensor) -> Tensor:
        if probabilities.shape[-1] not in (self.num_bins, self.num_bins + 1):
            raise ValueError(f"expected {self.num_bins} or {self.num_bins + 1} tokens, got {probabilities.shape[-1]}")
        return probabilities[..., : self.num_bins]


class QuantileDiscretizer(Discretizer):
    """Bins with equal numbers of the fitted values.

    With n values the edges are every ``ceil(n / num_bins)``-th sorted value and the largest: the original's rule. If
    this gives too few edges (few values), every ``n / num_bins``-th is taken instead, rounded down. A value that would
    make three or more equal edges (the 0 of a sparse reward) gets one bin of zero width, and the remaining edges are
    placed among the other values by the same rule. A dimension of at most ``(num_bins + 1) // 2`` distinct values has
    such a bin for each of them.
    """

    strategy = "quantile"

    def _column_edges(self, ordered: np.ndarray) -> np.ndarray:
        num_edges = self.num_bins + 1
        distinct = ordered[np.append(True, ordered[1:] != ordered[:-1])]
        if 2 * len(distinct) <= num_edges:
            return self._atoms(distinct)
        # Differs from the original, where repeated edges make unreachable bins, and few values too few edges.
        atoms = ordered[:0]
        while True:
            others = ordered[~np.isin(ordered, atoms)] if len(atoms) else ordered
            edges = _quantile_edges(others, num_edges - 2 * len(atoms))
            repeated = np.unique(edges[2:][edges[2:] == edges[:-2]])
            if len(repeated) == 0:
                return np.sort(np.concatenate([edges, atoms, atoms]))
            atoms = np.concatenate([atoms, repeated])


class UniformDiscretizer(Discretizer):
    """Bins of equal width between the smallest and the largest fitted value."""

    strategy = "uniform"

    def _column_edges(self, ordered: np.ndarray) -> np.ndarray:
        return np.linspace(ordered[0], ordered[-1], self.num_bins + 1, dtype=np.float64).astype(np.float32)


STRATEGIES: dict[str, type[Discretizer]] = {"quantile": QuantileDiscretizer, "uniform": UniformDiscretizer}


def make_discretizer(config: DiscretizerConfig) -> Discretizer:
    """Return the discretiser of a configuration, not yet fitted."""
    return STRATEGIES[config.strategy](config.num_bins)


def _some(of_all: Tensor, columns: slice, width: int) -> Tensor:
    """Return the rows of the dimensions ``columns``; raises ValueError unless there are ``width`` of them."""
    rows = of_all[columns]
    if len(rows) == 0 or width != len(rows):
        raise ValueError(f"the discretiser has {len(rows)} columns here, the values have {width}")
    return rows


def _take_stored_shape(module: nn.Module, state_dict: Mapping[str, Tensor], prefix: str, *_: object) -> None:
    """Resize the edges before ``load_state_dict``, which may bring any number of dimensions."""
    stored = state_dict.get(prefix + "edges")
    if isinstance(module, Discretizer) and stored is not None and stored.shape[1:] == module.edges.shape[1:]:
        module.edges = module.edges.new_empty(stored.shape)


def _quantile_edges(ordered: np.ndarray, num_edges: int) -> np.ndarray:
    """Return (num_edges,) values at equal rank distances among ascending values (n,), ending with the largest."""
    count, bins = len(ordered), num_edges - 1
    stride = -(-count // max(bins, 1))
    original = -(-count // stride) == bins
    ranks = np.arange(bins) * stride if original else np.arange(bins) * count // max(bins, 1)
    return np.append(ordered[ranks], ordered[-1])


def _boundaries(edges: Tensor) -> Tensor:
    """Return the edges for searchsorted: of equal edges, all but the first are moved to the next float above."""
    above = torch.nextafter(edges, torch.full_like(edges, torch.inf))
    normal = torch.where(edges < 0, torch.zeros_like(edges), SMALLEST_NORMAL)
    above = torch.where(above.abs() < SMALLEST_NORMAL, normal, above)
    repeats = torch.cat([torch.zeros_like(edges[:, :1], dtype=torch.bool), edges[:, 1:] == edges[:, :-1]], dim=1)
    return torch.where(repeats, above, edges).contiguous()
