"""Options of the planner."""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Self

from .validation import one_of, require, require_choice, shown, validate, within

OBJECTIVES = {  # planner.name -> class of the objective
    "return": "trajectory_transformer.planning.objectives.Return",
    "imitation": "trajectory_transformer.planning.objectives.Likelihood",
    "goal": "trajectory_transformer.planning.objectives.Goal",
    "critic": "trajectory_transformer.learners.critic_objective.CriticValue",
}

MOST_CANDIDATES = 2**16  # per step and environment, so that a file cannot request all memory
# act=auto, by the share of the variance of returns-to-go that the model explains (docs/tried.md):
INFORMATIVE_VALUE_R2 = 0.65  # from here on, the mean of the candidates given a high return; below, their plain mean
TRUSTED_VALUE_R2 = 0.85  # from here on, the best sequence's action, for other objectives and models not pretrained
MEAN_TEMPERATURE = 0.6  # sampling temperature of candidates for the plain mean
SET_BY_AUTO = ("k_act", "cdf_act", "temperature")  # options of the sampling that act=auto may set
SAMPLING = ("n_expand", "k_obs", *SET_BY_AUTO)  # options of the sampling of candidates


@dataclass
class PlannerConfig:
    """Options of the beam search, under the original's names (its ``config/offline.py``)."""

    # Planning for likelihood tries all tokens: n_expand, k_obs, k_act, cdf_act, temperature, percentile are unused.
    name: str = ""
    """Name of the objective: return, imitation, goal or critic, or any label for an objective of your own; empty takes
    the objective's name, or return."""
    horizon: int = within(1, 1, 10_000)
    """Transitions planned ahead; a plan for likelihood ends with the action of the last one."""
    beam_width: int = within(32, 1)
    """Sequences kept after each transition or, when planning for likelihood, after each token."""
    n_expand: int = within(2, 1)
    """Continuations sampled for each kept sequence."""
    context: int = within(1, 1, 1_000_000)
    """Maximum number of transitions, including the current one, that the model sees before the plan begins."""
    window: str = one_of("growing", ("growing", "sliding"))
    """Input of the model during a plan: growing appends the plan to the context; sliding crops it, as in the
    original."""
    discount: float | None = within(None, high=1.0, above=0.0)
    """Discount factor per step of the plan's rewards; null takes data.discount."""
    k_obs: int | None = within(1, 1)
    """Number of most likely tokens to sample observations from; 1 is greedy, null keeps all."""
    k_act: int | None = within(None, 1)
    """Number of most likely tokens to sample actions from; null keeps all."""
    cdf_act: float | None = within(0.6, 0.0, below=1.0)
    """Probability mass below which the least likely action tokens are dropped, which is not nucleus sampling; null
    keeps all."""
    temperature: float = within(1.0, 1e-6, 1e6)
    """Sampling temperature of observations and actions."""
    percentile: Any = "mean"
    """Point estimate of a predicted reward and value: mean, or a fraction in (0, 1) for that percentile."""
    act: str = one_of("best", ("auto", "best", "conditioned", "elite", "mean"))
    """Action to take: best is that of the best sequence, elite a mean over the sequences kept at the end, mean one over
    all candidates, conditioned that mean given a high return; auto chooses by how well the model predicts returns
    (docs/planning.md)."""
    top_share: float = within(0.02, high=1.0, above=0.0)
    """Share of the returns predicted for all candidates, from the highest down, that act=conditioned asks for."""
    elite_share: float = within(1.0, high=1.0, above=0.0)
    """Fraction that is averaged: of the sequences kept at the end with act=elite, of all candidates, those likeliest to
    have a high return, with act=conditioned."""
    improvement: float | None = within(None, 0.0, 100.0)
    """Multiple of the model's action improvement (model.action_improvement) that is added to planned actions; the fewer
    candidates have most of the weight, the less; null is 2 where act averages candidates for the return, else 0."""
    plan_freq: int = within(1, 1)
    """Environment steps between plans."""
    deadline_ms: float | None = within(None, high=1e9, above=0.0)
    """Time limit in milliseconds of one plan for all environments together; null sets no limit."""
    decoder: str = one_of("auto", ("auto", "native", "eager", "compiled"))
    """Implementation of the model in the search: native is C on a CPU, eager and compiled are PyTorch, auto takes the
    fastest one available."""
    precision: str = one_of("32", ("32", "bf16"))
    """Precision of weights and activations in the search; bf16 needs a PyTorch decoder."""
    objective: Any = None
    """Quantity that plans maximise: the _target_ and options of an Objective; null takes the one of planner.name."""
    search: Any = None
    """Search for plans: the _target_ and options of a Search of your own; null is the paper's beam search. Its act is
    best, or mean: over the models of an ensemble."""

    def __post_init__(self) -> None:
        self.precision = str(self.precision)  # Python callers may pass the number 32
        validate("planner.", self)
        plain = isinstance(self.objective, (bool, int, float, str, list, tuple))
        require(
            not plain, f"planner.objective={shown(self.objective)} is neither an objective nor a mapping of options"
        )
        plain = isinstance(self.search, (bool, int, float, str, list, tuple))
        require(not plain, f"planner.search={shown(self.search)} is neither a search nor a mapping of options")
        require(
            self.search is None or self.act in ("auto", "best", "mean"),
            f"planner.act={self.act} averages candidates of the beam search, and planner.search replaces it: use "
            "planner.act=best, or mean for the mean over the models of an ensemble",
        )
        require(
            self.search is None or self.deadline_ms is None,
            f"planner.deadline_ms={self.deadline_ms} limits the beam search, and planner.search replaces it: leave it "
            "out",
        )
        begins_well = self.name == "" or self.name[0].isalpha()
        require(begins_well, f"planner.name={shown(self.name)} is not a valid name: it must begin with a letter")
        self._name_honestly()
        candidates = self.beam_width * self.n_expand
        require(
            candidates <= MOST_CANDIDATES,
            f"planner.beam_width={self.beam_width} and planner.n_expand={self.n_expand} make {candidates:,} candidates "
            f"per step; reduce them to at most {MOST_CANDIDATES:,}",
        )
        number = isinstance(self.percentile, (int, float)) and not isinstance(self.percentile, bool)
        require(
            self.percentile == "mean" or (number and 0.0 < self.percentile < 1.0),
            f"planner.percentile={self.percentile!r} must be 'mean' or a fraction in (0, 1)",
        )
        require(
            self.plan_freq <= self.horizon,
            f"planner.plan_freq={self.plan_freq} must not exceed planner.horizon={self.horizon}",
        )
        require(
            self.precision == "32" or self.decoder != "native",
            "planner.precision=bf16 needs planner.decoder=auto, eager or compiled: the native one computes in float32",
        )

    def _name_honestly(self) -> None:
        """Ensure that a built-in's name is recorded only for that built-in objective."""
        target, labels = _target_of(self.objective), {path: name for name, path in OBJECTIVES.items()}
        if target is None:
            self.name = self.name or "return"
            require_choice("planner.name", self.name, tuple(OBJECTIVES))
        elif not self.name:
            self.name = labels.get(target, target.rpartition(".")[2])
        elif OBJECTIVES.get(self.name, target) != target:
            require(
                target not in labels,
                f"planner.name={self.name} stands for {OBJECTIVES[self.name]}, but planner.objective is {target}; "
                f"choose planner.name={labels.get(target)}, or leave planner.objective out",
            )
            self.name = target.rpartition(".")[2]  # the name is the command line's default, not the user's
        elif target in labels:  # a label of the user's, unless it resembles another objective's name
            near = difflib.get_close_matches(self.name, OBJECTIVES, n=1, cutoff=0.8)
            require(
                near in ([], [labels[target]]),
                f"planner.name={self.name} is not an objective, and planner.objective is {target}; did you mean "
                f"planner={''.join(near)}?",
            )

    @property
    def objective_spec(self) -> Any:
        """Return the objective as :func:`~..building.build` takes it: an object, or a mapping with its class."""
        if self.objective is not None and not isinstance(self.objective, Mapping):
            return self.objective
        return {"_target_": OBJECTIVES.get(self.name), **(self.objective or {})}

    def resolve_act(self, value_r2: float | None, by_return: bool, pretrained: bool) -> Self:
        """Return the settings with ``act=auto`` resolved.

        Candidates are averaged, unfiltered because filters would bias the mean: weighted by their chance of a high
        return if the value is informative, else with equal weights. If it is predicted well, the best sequence is taken
        where such a mean is impossible (other objectives than the return) or inexact (no pretraining). Other objectives
        always choose what is averaged: the sequences that the search kept. A search of one's own has a best plan.

        Args:
            value_r2: share of the variance of the data's returns-to-go that the model explains; None: unknown.
            by_return: the objective is the return.
            pretrained: the model's numerical embedding was trained first (``model.numerical_pretraining``).
        """
        if self.act != "auto":
            return self
        if self.search is not None:
            return replace(self, act="best")
        explained = 0.0 if value_r2 is None else value_r2
        if explained >= TRUSTED_VALUE_R2 and not (by_return and pretrained):
            return replace(self, act="best")
        plain = replace(self, cdf_act=None, k_act=None)
        if not by_return:
            return replace(plain, act="elite", temperature=1.0)
        if explained >= INFORMATIVE_VALUE_R2:
            return replace(plain, act="conditioned", temperature=1.0)
        return replace(plain, act="mean", temperature=MEAN_TEMPERATURE)

    def resolve_improvement(self, by_return: bool, available: bool) -> Self:
        """Return the settings with ``improvement`` resolved; UserError if one is asked for that the model lacks.

        Args:
            by_return: the objective is the return.
            available: the model has an action improvement.
        """
        require(
            available or not self.improvement,
            f"planner.improvement={self.improvement} needs a model with an action improvement: train with "
            "model.action_improvement=3, on Box actions and returns that differ",
        )
        averages = by_return and self.act in ("mean", "conditioned") and self.search is None
        by_default = 2.0 if averages and available else 0.0
        return replace(self, improvement=by_default if self.improvement is None else self.improvement)

    @property
    def uses_members(self) -> bool:
        """True if plans use all models of an ensemble: their actions can be averaged, and time is not limited."""
        alone = ("best",) if self.search is None else ("best", "auto")
        return self.act not in alone and self.deadline_ms is None

    @property
    def looks_ahead_in_vain(self) -> bool:
        """True if no executed action depends on the plan's last transitions."""
        averages = self.act in ("mean", "conditioned") and self.search is None
        return averages and self.horizon > self.plan_freq

    def require_used(self, given: Mapping[str, Any], by_token: bool) -> None:
        """Raise UserError for an option without effect on plans with these settings.

        Args:
            given: the options that the user gave, with their values.
            by_token: the plans maximise the likelihood.
        """
        for name, reason in self._unused(by_token).items():
            require(name not in given, f"planner.{name} has no effect {reason}: leave it out")
        for name in filter(given.__contains__, SET_BY_AUTO):
            others = {n: getattr(self, n) for n in SET_BY_AUTO if n not in given}
            defaults = {field.name: field.default for field in fields(self)}
            changed = {"act": self.act} | {n: value for n, value in others.items() if value != defaults[n]}
            also = " ".join(f"planner.{n}={'null' if value is None else value}" for n, value in changed.items())
            require(
                given[name] == getattr(self, name),
                f"planner.{name} has no effect with planner.act=auto, which chose {self.act} for this model and sets "
                f"{name} itself: leave it out, or add {also}",
            )

    def _unused(self, by_token: bool) -> dict[str, str]:
        """Return the options without effect, each with the reason."""
        if by_token:
            reason = f"with planner={self.name}, which tries all tokens: it draws no samples and adds up no rewards"
            return dict.fromkeys((*SAMPLING, "percentile", "discount", "elite_share", "top_share"), reason)
        averaging = {"elite_share": ("elite", "conditioned"), "top_share": ("conditioned", "auto")}
        return {
            name: f"with planner.act={self.act}, but with planner.act={acts[0]}"
            for name, acts in averaging.items()
            if self.act not in acts
        }

    def require_fits(self, sequence_length: int) -> None:
        """Raise UserError if the context, or in a growing window context and plan, exceed the model's window.

        ``sequence_length`` is that window, in transitions.
        """
        require(
            self.context <= sequence_length,
            f"planner.context={self.context} exceeds the {sequence_length} transitions that the model can see "
            "(data.sequence_length)",
        )
        require(
            self.window == "growing" or self.context >= 2,
            f"planner.window=sliding crops whole transitions: planner.context={self.context} must be at least 2",
        )
        longest = self.context - 1 + self.horizon
        require(
            self.window == "sliding" or longest <= sequence_length,
            f"planner.context={self.context} and planner.horizon={self.horizon} need {longest} transitions, but the "
            f"model can see {sequence_length} (data.sequence_length); shorten them or use planner.window=sliding",
        )


def current_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Convert a record of planner options from any version to this one."""
    options = dict(record)
    critic, score = options.pop("critic", None), options.pop("critic_score", "return")
    if "objective" not in options and options.get("name") == "critic":  # before objectives had options of their own
        options["objective"] = {"_target_": OBJECTIVES["critic"], "critic": critic, "score": score}
    return options


def _target_of(objective: Any) -> str | None:
    """Return the dotted name of an objective's class, given the object or its options; None if no class is named."""
    if objective is None or isinstance(objective, Mapping):
        target = (objective or {}).get("_target_")
        return None if target is None else str(target)
    return f"{type(objective).__module__}.{type(objective).__qualname__}"
