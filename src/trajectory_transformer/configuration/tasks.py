"""Options of ``evaluate.py``'s tasks besides planning."""

from dataclasses import dataclass

from .validation import require, require_choice, require_finite

MIN_TRANSITIONS = 3  # a present, a previous and an earlier one


@dataclass
class AttentionConfig:
    """Windows of held-out episodes that attention is averaged over, and the one that is drawn by itself."""

    transitions: int | None = None  # of context; null: all that the model sees
    windows: int = 256  # drawn at random from the held-out episodes; all of them where there are fewer
    shown: int = 0  # which of the windows is drawn by itself

    def __post_init__(self) -> None:
        require(
            self.transitions is None or self.transitions >= MIN_TRANSITIONS,
            f"attention.transitions={self.transitions} must be at least {MIN_TRANSITIONS}: a present, a previous "
            "and an earlier transition are compared",
        )
        require(self.windows >= 1, f"attention.windows={self.windows} must be at least 1")
        in_range = 0 <= self.shown < self.windows
        require(in_range, f"attention.shown={self.shown} must lie in [0, attention.windows={self.windows})")


@dataclass
class PredictConfig:
    """Long-horizon prediction of held-out episodes (``task=predict``)."""

    horizon: int = 100  # steps predicted from the first observation of each episode
    samples: int = 1000  # continuations of each
    context: int | None = None  # transitions that an observation is predicted from; null: all that the model can see
    actions: str = "recorded"  # recorded: the episode's own; model: sampled from the model
    temperature: float = 1.0  # of all tokens drawn
    k_obs: int | None = None  # most likely tokens kept for observations; null: all of them
    ensemble: str | None = None  # checkpoint of a dynamics ensemble to compare with

    def __post_init__(self) -> None:
        require_finite("predict", self)
        for name in ("horizon", "samples"):
            require(getattr(self, name) >= 1, f"predict.{name}={getattr(self, name)} must be at least 1")
        for name in ("context", "k_obs"):
            value = getattr(self, name)
            require(value is None or value >= 1, f"predict.{name}={value} must be at least 1, or null for no limit")
        require_choice("predict.actions", self.actions, ("recorded", "model"))
        require(self.temperature > 0, f"predict.temperature={self.temperature} must be positive")
        require(
            self.ensemble is None or self.actions == "recorded",
            "predict.ensemble needs predict.actions=recorded: a dynamics ensemble has no actions of its own",
        )

    def context_within(self, sequence_length: int) -> int:
        """The context in transitions, for a model of windows of that many transitions.

        Raises:
            UserError: the model cannot look back as far, or at all.
        """
        longest = sequence_length - 1
        require(
            longest >= 1,
            f"a model with data.sequence_length={sequence_length} sees no transition before the observation that it "
            "predicts; train one with 2 or more",
        )
        context = longest if self.context is None else self.context
        require(
            context <= longest,
            f"predict.context={context} exceeds the {longest} transitions that the model can look back on "
            f"(data.sequence_length={sequence_length}, less the one that is being predicted)",
        )
        return context
