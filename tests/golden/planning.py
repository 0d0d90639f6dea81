"""The searches whose every step the original recorded; see ``make_planning.py``."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from trajectory_transformer.configuration import PlannerConfig

from .seeded import Case


@dataclass(frozen=True)
class Search:
    """A model (weights of :func:`~.seeded.original_weights`), a prefix of ``past`` transitions, and settings."""

    model: Case
    past: int
    settings: PlannerConfig

    @property
    def name(self) -> str:
        return f"{self.model.name}/{self.settings.window}-{self.past}-{self.settings.context}-{self.settings.horizon}"

    def prefix(self) -> np.ndarray:
        """(time,) tokens: whole transitions, then an observation."""
        time = self.past * self.model.transition_dim + self.model.observation_dim
        return np.random.RandomState(2).randint(0, self.model.vocab_size, time)

    def centers(self) -> np.ndarray:
        """(2, vocab_size) values of the reward's and of the return-to-go's bins."""
        return np.random.RandomState(3).standard_normal((2, self.model.vocab_size)).astype(np.float32)


def search(model: tuple[str, int, int, int, int, int, int], past: int, **settings: Any) -> Search:
    options = asdict(PlannerConfig(discount=0.9)) | settings
    return Search(Case(*model, length=1, stop=False), past, PlannerConfig(**options))


HALFCHEETAH = ("halfcheetah", 17, 6, 40, 2, 2, 32)
HOPPER = ("hopper", 11, 3, 40, 2, 4, 32)
SMALL = ("small", 2, 1, 9, 3, 2, 16)
SEARCHES = [
    search(SMALL, 2, context=3, horizon=4, beam_width=6, n_expand=3),
    search(SMALL, 4, context=5, horizon=5, beam_width=5, cdf_act=None, k_act=4, k_obs=3),
    search(HOPPER, 4, context=5, horizon=5, beam_width=8),
    search(HALFCHEETAH, 1, context=2, horizon=3, beam_width=8),
    search(SMALL, 2, window="sliding", context=3, horizon=6, beam_width=6, n_expand=3),
    search(SMALL, 0, window="sliding", context=3, horizon=6, beam_width=4, k_obs=3),
    search(HOPPER, 4, window="sliding", context=5, horizon=7, beam_width=8),
    search(HALFCHEETAH, 2, window="sliding", context=3, horizon=4, beam_width=6),
]
