"""Attention masses: the numbers behind the patterns that the paper sees in its attention maps.

The model at position p predicts the token at p + 1, and so a query is named after that token: it has the predicted
token's transition, kind and dimension. With t the predicted token's transition::

    keys     | … transition t-2 … | … transition t-1 … | … transition t, up to the predicted token
             |       earlier      |      previous      |                present

Queries of the first two transitions are left out, so that an earlier transition exists for each one that counts.
"""

import torch
from torch import Tensor

from ..layout import TOKEN_KINDS, TransitionLayout

REGIONS = ("present_transition", "previous_transition", "earlier_transitions")
PAST = ("past_observations", "past_actions")
_FIRST_TRANSITION = 2  # whose queries count


class AttentionMasses:
    """Shares of attention that certain queries give to certain keys, each the mean over these queries.

    Args:
        layout: of a transition of D tokens.
        mask: (query, key) bool, True where the query may attend to the key; T * D - 1 of both, with T at least 3.

    Attributes:
        names: such as ``mass_previous_transition``, or ``action_mass_previous_transition`` where only queries that
            predict actions count. A mass of keys that no such query may see is left out.
        uniform: (masses,) float64 in (0, 1], where each query attends equally to all that it may see.
    """

    def __init__(self, layout: TransitionLayout, mask: Tensor) -> None:
        self._keys = _keys(layout, mask)
        self._queries = {target: _queries(layout, target, len(mask)) for target in self._keys}
        self._kept = torch.ones(sum(map(len, self._queries.values())), dtype=torch.bool)
        uniform = self.of(mask / mask.sum(dim=1, keepdim=True)).cpu()
        self._kept = uniform > 0.0
        self.uniform = uniform[self._kept].numpy()
        names = [name for queries in self._queries.values() for name in queries]
        self.names = [name for name, kept in zip(names, self._kept, strict=True) if kept]

    def of(self, attention: Tensor) -> Tensor:
        """The masses of attention weights.

        Args:
            attention: (…, query, key), each row adding up to 1.

        Returns:
            (…, masses) float64 in [0, 1].
        """
        masses = []
        for target, keys in self._keys.items():
            received = torch.einsum("...qk,qk->...q", attention, keys.to(attention))
            counted = torch.stack(list(self._queries[target].values()), dim=-1).to(attention.device)
            masses.append(received.double() @ counted)
        return torch.cat(masses, dim=-1)[..., self._kept.to(attention.device)]


def _keys(layout: TransitionLayout, mask: Tensor) -> dict[str, Tensor]:
    """The keys of each target, for each query: (query, key) bool, all of them seen."""
    width = layout.transition_dim
    key = torch.arange(len(mask), device=mask.device)
    query = key[:, None]
    dimension = key % width
    steps_back = (query + 1).div(width, rounding_mode="floor") - key.div(width, rounding_mode="floor")
    past = steps_back > 0
    targets = {
        "present_transition": steps_back == 0,
        "previous_transition": steps_back == 1,
        "earlier_transitions": steps_back > 1,
        # The paper has dimensions that attend to themselves at earlier steps. Its maps may be read by the token that
        # goes in at a query or by the one that is predicted there; the two stripes lie one token apart.
        "same_dimension_as_predicted": past & (dimension == (query + 1) % width),
        "same_dimension_as_query": (key < query) & (dimension == query % width),
        "past_observations": past & _is_kind(layout, "observation", dimension),
        "past_actions": past & _is_kind(layout, "action", dimension),
    }
    return {name: keys & mask for name, keys in targets.items()}


def _queries(layout: TransitionLayout, target: str, count: int) -> dict[str, Tensor]:
    """The names of a target's masses, and the weights of the queries in each: (query,) float64, adding up to 1 or 0.

    Where a dimension is compared with itself, that of value tokens does not count, since nothing may attend to those.
    """
    predicted = torch.arange(1, count + 1)
    dimension = predicted % layout.transition_dim
    counted = predicted >= _FIRST_TRANSITION * layout.transition_dim
    if target == "same_dimension_as_predicted":
        counted &= dimension != layout.value
    if target == "same_dimension_as_query":
        counted &= dimension != 0  # a value token is the query
    kinds = ("observation", "action") if target in PAST else TOKEN_KINDS
    chosen = {f"{kind}_mass_{target}": counted & _is_kind(layout, kind, dimension) for kind in kinds}
    if target not in PAST:
        chosen[f"mass_{target}"] = counted
    return {name: queries.double() / queries.sum().clamp(min=1) for name, queries in chosen.items()}


def _is_kind(layout: TransitionLayout, kind: str, dimension: Tensor) -> Tensor:
    columns = layout.kind_slices()[kind]
    return (dimension >= columns.start) & (dimension < columns.stop)
