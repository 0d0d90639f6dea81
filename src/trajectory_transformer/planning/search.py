"""Searches of the user's own, in place of the beam search (``planner.search``).

To add one, write a dataclass that is a subclass of :class:`Search` in any importable package, and a YAML file that
names it, in ``configs/planner`` or in a folder given with ``--config-dir``::

    defaults: [return, _self_]
    search:
      _target_: my_package.searches.RandomShooting  # the class
      rounds: 4                                     # an argument of its constructor
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..building import TYPED_BY_USER, build
from ..configuration import PlannerConfig, require
from ..layout import TransitionLayout
from .beam_search import Decode, RewardEstimate, SearchResult, predict_outcome
from .decoder import BeamDecoder
from .objectives import Objective
from .sampling import Choice


@dataclass(frozen=True)
class SearchProblem:
    """What to plan for, in several environments at once, and the means to do it."""

    decoder: BeamDecoder  # the model; at most ``beam_width * n_expand`` sequences of each environment at once
    prefix: Tensor  # (environment, time) tokens: a goal if the model needs one, past transitions, the observation
    uniforms: Tensor  # (environment, *Search.draws(…)) numbers in [0, 1), which determine all draws
    settings: PlannerConfig  # with ``discount`` set
    layout: TransitionLayout  # positions within a transition
    num_bins: int  # tokens from 0 to num_bins - 1 are bins; num_bins is the stop token, after an episode's end
    objective: Objective  # what plans should maximise
    estimate: RewardEstimate  # of reward and return-to-go, as ``settings.percentile`` says
    decode: Decode  # converts tokens of a slice of a transition's columns to real values
    executed: Tensor  # (environment, action_dim) actions executed last, NaN where there is none

    @property
    def observations(self) -> Tensor:
        """Tokens (environment, observation_dim) of the present observations."""
        return self.prefix[:, -self.layout.observation_dim :]

    @property
    def of_actions(self) -> Choice:
        """Filters and temperature for sampling actions with ``decoder.extend``, as in the settings."""
        return Choice(self.settings.k_act, self.settings.cdf_act, self.settings.temperature)

    @property
    def of_observations(self) -> Choice:
        """Filters and temperature for sampling observations, as in the settings."""
        return Choice(self.settings.k_obs, None, self.settings.temperature)

    def outcome(self) -> tuple[Tensor, Tensor]:
        """Predict reward and return-to-go of sequences that end with an action, and append the reward's token.

        Returns:
            Estimates (environment, rows, 2), and the most likely tokens (environment, rows, 2) of both. The second of
            them must be appended next, if the sequences go on, as by ``decoder.extend(…, given=tokens[:, :, 1])``.
        """
        estimates, tokens, _ = predict_outcome(self.decoder, self.estimate)
        return estimates, tokens

    def best_of(self, tokens: Tensor, rewards: Tensor, value: Tensor, scores: Tensor) -> SearchResult:
        """The result whose plan is the one with the highest score in each environment.

        Args:
            tokens: (environment, n, horizon, transition_dim) of n whole plans.
            rewards: (environment, n, horizon) estimated.
            value: (environment, n) estimated return-to-go after the last transition.
            scores: (environment, n); those that are not finite rank below all others.
        """
        ranked = scores.nan_to_num(nan=-torch.inf, posinf=-torch.inf, neginf=-torch.inf)
        score, best = ranked.max(dim=1)
        rows = torch.arange(len(best), device=best.device)
        parts = tokens[rows, best], rewards[rows, best], value[rows, best], score
        return SearchResult(*parts, [], self.settings.beam_width)


class Search(ABC):
    """A search for plans of ``planner.horizon`` transitions. Options are the fields of a dataclass."""

    def draws(self, settings: PlannerConfig, layout: TransitionLayout) -> Sequence[int]:
        """Shape of the uniform random numbers that determine one environment's search; by default the beam search's."""
        return settings.horizon, layout.transition_dim, settings.n_expand * settings.beam_width

    @abstractmethod
    def __call__(self, problem: SearchProblem) -> SearchResult:
        """Find a plan for each environment: :meth:`SearchProblem.best_of`, or a :class:`.SearchResult`.

        The action executed is the first one of ``tokens`` or, if ``actions`` are given, of those. An environment's plan
        must not depend on the others'.
        """


def make_search(settings: PlannerConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> Search | None:
    """Build the search that ``settings`` name, None for the beam search; ``allow`` and errors: as in ``build``."""
    return None if settings.search is None else build(settings.search, Search, "planner.search", allow)


def require_result(search: Search, found: object, problem: SearchProblem) -> SearchResult:
    """Return what a search found, its numbers as float32.

    Raises:
        UserError: it is no result of the right shapes, has tokens that do not exist, or actions that are not finite.
    """
    name, layout = f"{type(search).__module__}.{type(search).__qualname__}", problem.layout
    require(
        isinstance(found, SearchResult), f"planner.search: {name} returns a {type(found).__name__}, no SearchResult"
    )
    assert isinstance(found, SearchResult)
    size = len(problem.prefix), problem.settings.horizon
    for field, shape in (
        ("tokens", (*size, layout.transition_dim)),
        ("rewards", size),
        ("value", size[:1]),
        ("score", size[:1]),
        ("actions", None if found.actions is None else (*size, layout.action_dim)),
    ):
        value = getattr(found, field)
        require(
            value is None if shape is None else tuple(getattr(value, "shape", ())) == shape,
            f"planner.search: {name} returns {field} of shape {tuple(getattr(value, 'shape', ()))}, expected {shape}: "
            "(environment, horizon, …)",
        )
    kind = found.tokens.dtype
    require(kind == torch.int64, f"planner.search: {name} returns tokens of type {kind}, expected torch.int64")
    lowest, highest = (int(end) for end in found.tokens.aminmax())
    require(
        lowest >= 0 and highest <= problem.num_bins,
        f"planner.search: {name} returns tokens from {lowest} to {highest}, expected 0 to {problem.num_bins}",
    )
    actions = found.actions
    require(
        actions is None or bool(actions.isfinite().all()), f"planner.search: {name} returns actions that are not finite"
    )
    numbers = {field: getattr(found, field).float() for field in ("rewards", "value", "score")}
    return replace(found, **numbers, actions=None if actions is None else actions.float())
