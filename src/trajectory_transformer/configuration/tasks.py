"""Options of ``evaluate.py``'s tasks besides planning."""

from dataclasses import dataclass

from .validation import one_of, require, validate, within

MIN_TRANSITIONS = 3  # a present, a previous and an earlier one


@dataclass
class AttentionConfig:
    """Windows of held-out episodes over which attention is averaged, and the one that is plotted separately."""

    transitions: int | None = None
    """Length of the windows in transitions; null is the model's full window."""
    windows: int = within(256, 1)
    """Windows to average over, sampled from the held-out episodes; all of them if there are fewer."""
    shown: int = within(0, 0)
    """Index, from 0, of the window that is plotted separately."""

    def __post_init__(self) -> None:
        validate("attention.", self)
        require(
            self.transitions is None or self.transitions >= MIN_TRANSITIONS,
            f"attention.transitions={self.transitions} must be at least {MIN_TRANSITIONS}: a present, a previous "
            "and an earlier transition are compared",
        )
        require(
            self.shown < self.windows, f"attention.shown={self.shown} must lie in [0, attention.windows={self.windows})"
        )


@dataclass
class PredictConfig:
    """Long-horizon prediction of held-out episodes (``task=predict``)."""

    horizon: int = within(100, 1)
    """Steps to predict from the first observation of each episode."""
    samples: int = within(1000, 1)
    """Continuations sampled for each episode."""
    context: int | None = within(None, 1)
    """Transitions from which an observation is predicted; null is as many as the model can see."""
    actions: str = one_of("recorded", ("recorded", "model"))
    """Actions of the continuations: recorded uses those of the episode, model samples them."""
    temperature: float = within(1.0, 1e-6, 1e6)
    """Sampling temperature of all tokens."""
    k_obs: int | None = within(None, 1)
    """Number of most likely tokens to sample observations from; null keeps all."""
    ensemble: str | None = None
    """Checkpoint of a dynamics ensemble to compare with; null compares with none."""

    def __post_init__(self) -> None:
        validate("predict.", self)
        require(self.ensemble != "", "predict.ensemble= names no file: give predict.ensemble=PATH, or null for none")
        require(
            self.ensemble is None or self.actions == "recorded",
            "predict.ensemble needs predict.actions=recorded: a dynamics ensemble has no actions of its own",
        )

    def context_within(self, sequence_length: int) -> int:
        """Return the context in transitions, for a model trained on windows of ``sequence_length`` transitions.

        Raises:
            UserError: the model cannot look back that far, or at all.
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
