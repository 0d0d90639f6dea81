"""How plans are made."""

from dataclasses import dataclass
from typing import Any

from .validation import require, require_choice, require_finite, require_probability


@dataclass
class PlannerConfig:
    """Beam search, under the original's option names (its ``config/offline.py``)."""

    name: str = "return"  # return or critic: for reward; imitation or goal: for likelihood, see docs/planning.md
    horizon: int = 5  # transitions planned ahead; a likelihood plan ends with the last one's action
    beam_width: int = 32  # sequences kept after each transition, or, planning for likelihood, after each token
    # Planning for likelihood tries all tokens: n_expand, k_obs, k_act, cdf_act, temperature, percentile are for reward.
    n_expand: int = 2  # continuations tried for each kept sequence
    context: int = 5  # transitions, the current one included, that the model sees at most before the plan begins
    window: str = "growing"  # growing: the plan is appended to the context; sliding: the original's cropping
    discount: float | None = None  # null: the data's
    k_obs: int | None = 1  # most likely tokens kept for observations; 1: greedy
    k_act: int | None = None
    cdf_act: float | None = 0.6  # drops the least likely action tokens of total mass below this; not nucleus sampling
    temperature: float = 1.0
    percentile: Any = "mean"  # of the predicted reward and value: "mean", or a fraction in (0, 1)
    plan_freq: int = 1  # environment steps between plans
    deadline_ms: float | None = None  # for a plan, in all environments together; null: none
    decoder: str = "auto"  # native: C, on a CPU; eager, compiled: PyTorch; auto: the fastest, docs/planning.md
    precision: str = "32"  # 32, or bf16: weights and activations, in PyTorch only
    critic: str | None = None  # planner=critic: checkpoint of experiment=iql_…
    critic_score: str = "return"  # rewards, then the critic's value of the last action; v: of its state; q: Q alone

    def __post_init__(self) -> None:
        require_finite("planner", self)
        require_choice("planner.name", self.name, ("return", "imitation", "goal", "critic"))
        require_choice("planner.critic_score", self.critic_score, ("return", "v", "q"))
        require(
            self.name != "critic"
            or self.critic_score != "v"
            or (self.plan_freq < self.horizon and self.deadline_ms is None),
            "planner.critic_score=v ranks by states that actions lead to, so that a plan's last action is any one: it "
            "needs planner.horizon above planner.plan_freq, and no planner.deadline_ms, which shortens plans",
        )
        require(
            self.name != "goal" or self.window == "growing",
            "planner=goal needs planner.window=growing: a sliding window would crop the goal",
        )
        for name in ("horizon", "beam_width", "n_expand", "context", "plan_freq"):
            require(getattr(self, name) >= 1, f"planner.{name}={getattr(self, name)} must be at least 1")
        require_choice("planner.window", self.window, ("growing", "sliding"))
        require(
            self.discount is None or 0.0 < self.discount <= 1.0, f"planner.discount={self.discount} must lie in (0, 1]"
        )
        for name in ("k_obs", "k_act"):
            k = getattr(self, name)
            require(k is None or k >= 1, f"planner.{name}={k} must be at least 1, or null for no limit")
        if self.cdf_act is not None:
            require_probability("planner.cdf_act", self.cdf_act)
        require(self.temperature > 0, f"planner.temperature={self.temperature} must be positive")
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
            self.deadline_ms is None or self.deadline_ms > 0,
            f"planner.deadline_ms={self.deadline_ms} must be positive, or null for none",
        )
        require_choice("planner.decoder", self.decoder, ("auto", "native", "eager", "compiled"))
        self.precision = str(self.precision)  # in Python, 32 is a number
        require_choice("planner.precision", self.precision, ("32", "bf16"))
        require(
            self.precision == "32" or self.decoder != "native",
            "planner.precision=bf16 needs planner.decoder=auto, eager or compiled: the native one computes in float32",
        )

    @property
    def maximizes_likelihood(self) -> bool:
        """Rather than reward."""
        return self.name in ("imitation", "goal")

    def require_critic(self) -> None:
        """Refuse ``planner=critic`` without a file to read one from.

        Raises:
            UserError: there is none.
        """
        require(
            self.name != "critic" or self.critic is not None,
            "planner=critic needs planner.critic=PATH, a checkpoint of experiment=iql_…",
        )

    def require_fits(self, sequence_length: int) -> None:
        """Refuse a plan that the model cannot see.

        Args:
            sequence_length: transitions of the window that the model was trained on.

        Raises:
            UserError: the context, or in the growing window the context and the plan, exceed that window.
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


def require_same_purpose(goal_conditioned: bool, planner: str) -> None:
    """Refuse to plan to a goal with a model that knows none, and otherwise with one that needs one.

    Raises:
        UserError: ``planner`` is not for such a model.
    """
    require(
        planner == "goal" or not goal_conditioned,
        f"planner={planner} cannot plan with a model that was trained to reach goals (model.goal_conditioned=true); "
        "use planner=goal",
    )
    require(
        planner != "goal" or goal_conditioned,
        "planner=goal needs a model that was trained to reach goals (model.goal_conditioned=true), as "
        "experiment=goal_fourrooms trains one",
    )
