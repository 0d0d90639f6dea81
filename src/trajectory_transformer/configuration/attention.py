"""Options of ``task=attention``: what a model looks at when it predicts a token."""

from dataclasses import dataclass

from .validation import require

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
        require(
            0 <= self.shown < self.windows,
            f"attention.shown={self.shown} must lie in [0, attention.windows={self.windows})",
        )
