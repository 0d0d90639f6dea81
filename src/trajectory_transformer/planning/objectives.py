"""Objectives: what a plan is to maximise.

One's own is a subclass of :class:`Objective` in any importable package, and a YAML file that names it, in
``configs/planner`` or in a folder given with ``--config-dir``::

    name: cautious                            # a label, recorded with the results
    objective:
      _target_: my_package.cautious.Cautious  # the class
      weight: 0.1                             # an argument of its constructor

Nothing here imports torch, so that the command line can refuse a mistake before torch is loaded.
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
    """All continuations (n for each environment) of kept sequences by transition ``t`` of the plan, to be scored."""

    t: int  # number of the transition within the plan, from 0
    returns: "Tensor"  # (environment, n, horizon + 1) rewards expected up to ``t``, then the return-to-go, then 0
    discounts: "Tensor"  # (horizon + 1,) 1, γ, γ², …
    tokens: "Tensor"  # (environment, n, transition_dim) int64 of transition ``t``
    layout: TransitionLayout  # which of them is what
    decode: "Decode | None" = None  # from tokens of some columns to real values
    sampled: "Tensor | None" = None  # :attr:`log_likelihoods`, where an objective needs them

    @property
    def rewards(self) -> "Tensor":
        """(environment, n, t + 1) estimated rewards of the transitions planned so far."""
        return self.returns[:, :, : self.t + 1]

    @property
    def value(self) -> "Tensor":
        """(environment, n) estimated return-to-go after transition ``t``, without its own reward."""
        return self.returns[:, :, self.t + 1]

    @property
    def observations(self) -> "Tensor":
        """(environment, n, observation_dim) real values of the state that the action is taken in."""
        return self._decoded[:, :, self.layout.observation]

    @property
    def actions(self) -> "Tensor":
        """(environment, n, action_dim) real values."""
        return self._decoded[:, :, self.layout.action]

    @property
    def log_likelihoods(self) -> "Tensor":
        """(environment, n) log-likelihood, in nats, of the action and observation tokens sampled so far.

        Under the model's own distribution: without filters, at temperature 1. The first observation is given; reward
        and value tokens are taken greedily and do not count.

        Raises:
            UserError: the objective does not say that it needs them.
        """
        require(
            self.sampled is not None,
            "planner.objective reads log_likelihoods, which cost time: set needs_log_likelihoods = True in its class",
        )
        assert self.sampled is not None
        return self.sampled

    @functools.cached_property
    def _decoded(self) -> "Tensor":
        assert self.decode is not None
        columns = slice(0, self.layout.reward)
        return self.decode(self.tokens[:, :, columns], columns)


@dataclass(frozen=True)
class PlanningContext:
    """The facts that an objective may prepare with, before the first plan."""

    layout: TransitionLayout
    discretizer: "Discretizer"
    settings: PlannerConfig  # with ``discount`` set
    device: "device | str"  # where scores are computed
    environment: "EnvironmentSpec | None" = None  # the spaces of the model's data, where they are known
    fingerprint: str | None = None  # of the model's data, where it is known


class Objective(ABC):
    """Scores the candidates of the search; those of the highest scores are kept.

    Options are the constructor's arguments. Those of a dataclass are checked against its types, and recorded when an
    object is handed to an agent in Python.
    """

    needs_log_likelihoods: bool = False  # it reads :attr:`Candidates.log_likelihoods`
    needs_goal: bool = False  # it plans with goal-conditioned models, to where the agent is told (``aim``)
    imitates: bool = False  # it acts like its data, so that its return is reported as a share of theirs
    by_token: bool = False  # it is searched for token by token, unless as a term; not inherited beside a new __call__

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__call__" in vars(cls) and "by_token" not in vars(cls):
            cls.by_token = False  # what its author wrote must be called

    def check(self, settings: PlannerConfig) -> None:  # noqa: B027 - most objectives do with any
        """Refuse settings that this objective cannot do with, by a UserError, before even torch is loaded."""

    def prepare(self, context: PlanningContext) -> None:  # noqa: B027 - most objectives load nothing
        """Load what scoring needs, or raise UserError; called before training, and again before the first plan."""

    @abstractmethod
    def __call__(self, candidates: Candidates) -> "Tensor":
        """(environment, n) scores of one transition's candidates; one that is not finite is worse than any other.

        A row's scores must not depend on other environments. On a GPU the whole search is captured as a CUDA graph and
        replayed: scores must follow from the candidates by operations of tensors, whose values Python does not look at
        (or give ``planner.decoder=eager``).
        """


class Return(Objective):
    """The paper's: discounted sum of the rewards expected within the plan and the return-to-go expected after it."""

    def __call__(self, candidates: Candidates) -> "Tensor":
        # Over the whole horizon, zeros included: the order of a sum, and so its last bit, depends on its length.
        return (candidates.returns * candidates.discounts).sum(dim=-1)


@dataclass
class Likelihood(Objective):
    """The log-likelihood of the plan: it acts like the model's data.

    By itself it counts all tokens and tries each one; as a term of a :class:`WeightedSum`, it counts those of
    :attr:`Candidates.log_likelihoods`.
    """

    # Bins of equal mass are narrow where the data are, so that the most probable one is seldom where they are densest.
    density: bool = False
    """Rank plans by probability density instead of the probability of bins; not as a term of a sum."""

    needs_log_likelihoods = True
    imitates = True
    by_token = True

    def __call__(self, candidates: Candidates) -> "Tensor":
        return candidates.log_likelihoods


@dataclass
class Goal(Likelihood):
    """The log-likelihood of the plan, given where it should end."""

    needs_goal = True
    imitates = False

    def check(self, settings: PlannerConfig) -> None:
        require(
            settings.window == "growing",
            f"planner={settings.name} needs planner.window=growing: a sliding window would crop the goal",
        )


@dataclass
class WeightedSum(Objective):
    """A weighted sum of other objectives; UserError if there are no terms, or one is something else."""

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
        self.needs_log_likelihoods = any(objective.needs_log_likelihoods for _, objective in self._weighted)
        self.needs_goal = any(objective.needs_goal for _, objective in self._weighted)

    def check(self, settings: PlannerConfig) -> None:
        for _, objective in self._weighted:
            objective.check(settings)

    def prepare(self, context: PlanningContext) -> None:
        for _, objective in self._weighted:
            objective.prepare(context)

    def __call__(self, candidates: Candidates) -> "Tensor":
        scores = (weight * objective(candidates) for weight, objective in self._weighted)
        return functools.reduce(operator.add, scores)


def make_objective(settings: PlannerConfig, allow: Sequence[str] | None = TYPED_BY_USER) -> Objective:
    """The objective that ``settings`` name, checked against them; imports torch only if its own module does.

    Where ``settings`` come from a file, ``allow`` are the packages that it may name, as of :func:`~..building.build`.

    Raises:
        UserError: there is no such class, it is no objective or must not be imported, one of its options is wrong, or
            it cannot do with the settings.
    """
    objective = build(settings.objective_spec, Objective, "planner.objective", allow)
    require(
        settings.act in ("best", "auto") or not objective.by_token,
        f"planner.act={settings.act} averages over sampled plans, and planner={settings.name} draws none: it tries all "
        "tokens; leave planner.act=best",
    )
    objective.check(settings)
    return objective


def require_same_purpose(objective: Objective, name: str, goal_conditioned: bool) -> None:
    """Refuse, with a UserError, to plan to a goal with a model that knows none, and without one where it needs one."""
    require(
        objective.needs_goal or not goal_conditioned,
        f"planner={name} cannot plan with a model that was trained to reach goals (model.goal_conditioned=true); "
        "use planner=goal",
    )
    require(
        not objective.needs_goal or goal_conditioned,
        f"planner={name} needs a model that was trained to reach goals (model.goal_conditioned=true), as "
        "experiment=goal_fourrooms trains one",
    )


def record_of(value: Any) -> Any:
    """Plain values from which :func:`~..building.build` makes an equal objective, if all in it are dataclasses."""
    if isinstance(value, Objective):
        cls, fields = type(value), dataclasses.fields(value) if dataclasses.is_dataclass(value) else ()
        options = {field.name: record_of(getattr(value, field.name)) for field in fields if field.init}
        return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **options}
    if isinstance(value, Mapping):
        return {name: record_of(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [record_of(entry) for entry in value]
    return value
