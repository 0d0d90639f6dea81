"""Objectives: the functions that a plan maximises.

To add one, write a subclass of :class:`Objective` in any importable package, and a YAML file that names it, in
``configs/planner`` or in a folder given with ``--config-dir``::

    name: cautious                            # a label, recorded with the results
    objective:
      _target_: my_package.cautious.Cautious  # the class
      weight: 0.1                             # an argument of its constructor

This module does not import torch, so that the command line can report a mistake before torch is loaded.
"""

import dataclasses
import functools
import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..building import TYPED_BY_USER, build
from ..configuration import PlannerConfig, require
from ..layout import TransitionLayout

if TYPE_CHECKING:
    from torch import Tensor, device

    from ..data.discretizer import Discretizer
    from ..environments.spec import EnvironmentSpec

    Decode = Callable[[Tensor, slice], Tensor]


@dataclass(frozen=True)
class Candidates:
    """Candidates to be scored: n sequences for each environment, up to transition ``t`` of the plan."""

    t: int  # index of the transition within the plan, from 0
    returns: "Tensor"  # (environment, n, horizon + 1) estimated rewards up to ``t``, then the return-to-go, then 0
    discounts: "Tensor"  # (horizon + 1,) 1, γ, γ², …
    tokens: "Tensor"  # (environment, n, transition_dim) int64 of transition ``t``
    layout: TransitionLayout  # positions within a transition
    decode: "Decode | None" = None  # converts tokens of a slice of columns to real values
    sampled: "Tensor | None" = None  # :attr:`log_likelihoods`, if the objective needs them
    # Computes the tokens (environment, n, t + 1, transition_dim) of the whole plans so far; needed if t > 0.
    traced: "Callable[[], Tensor] | None" = None
    # (environment, action_dim) actions executed last, NaN where there is none; None: there are none
    executed: "Tensor | None" = None
    # (environment, n, 2, num_bins) of the bins of reward and value of transition ``t``; they need not add up to 1
    probabilities: "Tensor | None" = None

    @property
    def rewards(self) -> "Tensor":
        """Estimated rewards (environment, n, t + 1) of the transitions planned so far."""
        return self.returns[:, :, : self.t + 1]

    @property
    def value(self) -> "Tensor":
        """Estimated return-to-go (environment, n) after transition ``t``, without the reward of ``t``."""
        return self.returns[:, :, self.t + 1]

    @property
    def reward_distribution(self) -> "tuple[Tensor, Tensor]":
        """Predicted reward of transition ``t``: values (num_bins,) of the bins, ascending, and their probabilities.

        Probabilities are (environment, n, num_bins). The last of :attr:`rewards` is an estimate from them.
        """
        return self._distribution(0, self.layout.reward)

    @property
    def value_distribution(self) -> "tuple[Tensor, Tensor]":
        """The same of the return-to-go after transition ``t``; :attr:`value` is an estimate from it."""
        return self._distribution(1, self.layout.value)

    @property
    def observations(self) -> "Tensor":
        """Observations (environment, n, observation_dim) before the action of transition ``t``, as real values."""
        return self._decoded[:, :, self.layout.observation]

    @property
    def actions(self) -> "Tensor":
        """Actions (environment, n, action_dim) of transition ``t``, as real values."""
        return self._decoded[:, :, self.layout.action]

    @property
    def planned_observations(self) -> "Tensor":
        """Observations (environment, n, t + 1, observation_dim) of the whole plan so far, as real values.

        Each is that before the action of its transition: the first is the present one, the others are predicted. The
        one that follows the last action is not predicted yet.
        """
        return self._planned[..., self.layout.observation]

    @property
    def planned_actions(self) -> "Tensor":
        """Actions (environment, n, t + 1, action_dim) of the whole plan so far, as real values."""
        return self._planned[..., self.layout.action]

    @property
    def previous_actions(self) -> "Tensor":
        """Actions (environment, n, action_dim) just before those of transition ``t``, as real values.

        For ``t > 0``, those of transition ``t - 1`` of the same sequences. For ``t = 0``, the action last executed in
        the episode, as given to ``Agent.observe`` (which need not be a bin's centre), with any ``planner.context``;
        zeros at an episode's first step, where :attr:`has_previous` is False.
        """
        if self.t:
            return self.planned_actions[:, :, -2]
        return self._executed.nan_to_num(nan=0.0).unsqueeze(1).expand_as(self.actions)

    @property
    def has_previous(self) -> "Tensor":
        """Mask (environment, n) of the candidates with previous actions: all, except at an episode's first step."""
        began = self._executed.isfinite().all(dim=-1, keepdim=True)
        return (began | (self.t > 0)).expand(self.tokens.shape[:2])

    @property
    def action_changes(self) -> "Tensor":
        """Changes of action (environment, n, t + 1, action_dim) at each transition of the plan so far, as real values.

        The first is relative to the action last executed, and 0 at an episode's first step.
        """
        planned, executed = self.planned_actions, self._executed[:, None, None]
        return planned.diff(dim=2, prepend=planned[:, :, :1].where(executed.isnan(), executed))

    @property
    def log_likelihoods(self) -> "Tensor":
        """Log-likelihood (environment, n), in nats, of the action and observation tokens sampled so far.

        It is that of the model's own distribution, without filters, at temperature 1. The first observation, which is
        given, and reward and value tokens, which are chosen greedily, do not count.

        Raises:
            UserError: the objective does not declare ``needs_log_likelihoods``.
        """
        require(
            self.sampled is not None,
            "planner.objective reads log_likelihoods, which cost time: set needs_log_likelihoods = True in its class",
        )
        assert self.sampled is not None
        return self.sampled

    def _distribution(self, kind: int, column: int) -> "tuple[Tensor, Tensor]":
        assert self.decode is not None
        assert self.probabilities is not None
        found = self.probabilities[:, :, kind]
        bins = self.tokens.new_ones(found.shape[-1]).cumsum(0) - 1
        return self.decode(bins[:, None], slice(column, column + 1))[:, 0], found / found.sum(dim=-1, keepdim=True)

    @property
    def _executed(self) -> "Tensor":
        if self.executed is not None:
            return self.executed
        return self.returns.new_full((len(self.tokens), self.layout.action_dim), math.nan)

    @functools.cached_property
    def _planned(self) -> "Tensor":
        if self.t == 0:
            return self._decoded.unsqueeze(2)
        assert self.traced is not None
        assert self.decode is not None
        columns = slice(0, self.layout.reward)
        return self.decode(self.traced()[..., columns], columns)

    @functools.cached_property
    def _decoded(self) -> "Tensor":
        assert self.decode is not None
        columns = slice(0, self.layout.reward)
        return self.decode(self.tokens[:, :, columns], columns)


@dataclass(frozen=True)
class PlanningContext:
    """Information for an objective's preparation before the first plan."""

    layout: TransitionLayout
    discretizer: "Discretizer"
    settings: PlannerConfig  # with ``discount`` set
    device: "device | str"  # computes the scores
    environment: "EnvironmentSpec | None" = None  # the spaces of the model's data, if known
    fingerprint: str | None = None  # of the model's data, if known


class Objective(ABC):
    """Base class of objectives: scores the candidates of the search, which keeps those with the highest scores.

    The constructor's arguments are its options. If the class is a dataclass, they are checked against its types, and
    recorded when an instance is passed to an agent in Python.
    """

    needs_log_likelihoods: bool = False  # reads :attr:`Candidates.log_likelihoods`
    needs_goal: bool = False  # plans with a goal-conditioned model to the agent's goal (``Agent.aim``)
    imitates: bool = False  # imitates its data; the return is reported relative to the data's
    by_token: bool = False  # uses the token-wise search, unless as a term of a sum; reset in a class with own __call__

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "by_token" not in vars(cls):
            cls.by_token = False  # the token-wise search would not call it

    def check(self, settings: PlannerConfig) -> None:  # noqa: B027 - most objectives support all settings
        """Raise UserError if the objective does not support these settings; called before torch is loaded."""

    def prepare(self, context: PlanningContext) -> None:  # noqa: B027 - most objectives load nothing
        """Load what scoring needs, or raise UserError; called before training and again before the first plan."""

    @abstractmethod
    def __call__(self, candidates: Candidates) -> "Tensor":
        """Scores (environment, n) of one transition's candidates; one that is not finite is worse than any other.

        The search keeps the sequences with the highest scores after each transition, and the last scores choose the
        plan. So a score must count the whole plan so far, such as by ``rewards`` or ``planned_actions``, not only its
        last transition. Scores of an environment must not depend on other environments.

        On a GPU the whole search is captured as a CUDA graph and replayed: scores must be computed by tensor operations
        alone, without reading values in Python (else set ``planner.decoder=eager``).
        """


class Return(Objective):
    """The paper's objective: discounted sum of the estimated rewards of the plan and the return-to-go after it."""

    def __call__(self, candidates: Candidates) -> "Tensor":
        # Over the whole horizon, zeros included: the order of summation, and so the last bit, depends on its length.
        return (candidates.returns * candidates.discounts).sum(dim=-1)


@dataclass
class Likelihood(Objective):
    """The log-likelihood of the plan: the agent imitates the model's data.

    Used by itself, it counts all tokens and the search tries each one; as a term of a :class:`WeightedSum`, it is
    :attr:`Candidates.log_likelihoods`.
    """

    # Bins of equal mass are narrow where the data are dense, so the most probable bin is seldom where they are densest.
    density: bool = False
    """Rank plans by probability density instead of the probability of bins; not as a term of a sum."""

    needs_log_likelihoods = True
    imitates = True
    by_token = True

    def __call__(self, candidates: Candidates) -> "Tensor":
        return candidates.log_likelihoods


@dataclass
class Goal(Likelihood):
    """The log-likelihood of the plan, given the goal that it should reach."""

    needs_goal = True
    imitates = False

    def check(self, settings: PlannerConfig) -> None:
        require(
            settings.window == "growing",
            f"planner={settings.name} needs planner.window=growing: a sliding window would crop the goal",
        )


@dataclass
class WeightedSum(Objective):
    """A weighted sum of other objectives; UserError if there are no terms, or one is malformed."""

    terms: dict[str, Any]
    """Terms by names of your choice, each with a weight, a number, and an objective with its _target_."""

    def __post_init__(self) -> None:
        place = "planner.objective.terms"
        require(isinstance(self.terms, Mapping) and len(self.terms) > 0, f"{place} needs at least one term")
        for name, term in self.terms.items():
            require(
                isinstance(term, Mapping)
                and set(term) == {"weight", "objective"}
                and isinstance(term["weight"], (int, float))
                and math.isfinite(term["weight"])
                and isinstance(term["objective"], Objective),
                f"{place}.{name} needs a weight, a finite number, an objective with its _target_, and nothing else",
            )
        self._weighted: list[tuple[float, Objective]]
        self._weighted = [(float(term["weight"]), term["objective"]) for term in self.terms.values()]
        self.needs_log_likelihoods = any(objective.needs_log_likelihoods for objective in self.objectives)
        self.needs_goal = any(objective.needs_goal for objective in self.objectives)

    @property
    def objectives(self) -> list[Objective]:
        """The objectives of the terms, in their order."""
        return [objective for _, objective in self._weighted]

    def check(self, settings: PlannerConfig) -> None:
        for objective in self.objectives:
            objective.check(settings)

    def prepare(self, context: PlanningContext) -> None:
        for objective in self.objectives:
            objective.prepare(context)

    def __call__(self, candidates: Candidates) -> "Tensor":
        scores = (weight * objective(candidates) for weight, objective in self._weighted)
        return functools.reduce(operator.add, scores)


def make_objective(settings: PlannerConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> Objective:
    """Build the objective that ``settings`` name, and check it against them; torch is imported only if its module does.

    If ``settings`` come from a file, ``allow`` lists the packages that it may name, as in :func:`~..building.build`.

    Raises:
        UserError: the class does not exist, is not an objective or must not be imported, one of its options is wrong,
            or it does not support the settings.
    """
    objective = build(settings.objective_spec, Objective, "planner.objective", allow)
    require(
        settings.act in ("best", "auto") or not objective.by_token,
        f"planner.act={settings.act} averages over sampled plans, but planner={settings.name} samples none: it tries "
        "all tokens; use planner.act=best",
    )
    require(
        settings.act != "conditioned" or type(objective) is Return,
        f"planner.act=conditioned weights candidates by their predicted return, so it needs planner=return; planner="
        f"{settings.name} ranks them otherwise: use planner.act=best, elite or mean",
    )
    objective.check(settings)
    return objective


def require_same_purpose(objective: Objective, name: str, goal_conditioned: bool) -> None:
    """Raise UserError unless objective and model are both for planning to a goal, or neither is."""
    require(
        objective.needs_goal or not goal_conditioned,
        f"planner={name} cannot plan with a model that was trained to reach goals (model.goal_conditioned=true); "
        "use planner=goal",
    )
    require(
        not objective.needs_goal or goal_conditioned,
        f"planner={name} needs a model that was trained to reach goals (model.goal_conditioned=true), such as that of "
        "experiment=goal_fourrooms",
    )


def record_of(value: Any) -> Any:
    """Plain values from which :func:`~..building.build` makes an equal objective or search, of dataclasses."""
    if isinstance(value, Objective) or (dataclasses.is_dataclass(value) and not isinstance(value, type)):
        cls, fields = type(value), dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        options = {field.name: record_of(getattr(value, field.name)) for field in fields if field.init}
        return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **options}
    if isinstance(value, Mapping):
        return {name: record_of(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [record_of(entry) for entry in value]
    return value
