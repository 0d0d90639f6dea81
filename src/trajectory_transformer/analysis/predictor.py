"""The models whose predictions are compared, ready to continue episodes."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..configuration import PlannerConfig, PredictConfig, require
from ..data.episodes import Episode
from ..planning.planner import make_decoder
from ..planning.sampling import Choice
from ..planning.trained_transformer import TrainedTransformer
from .ensemble_running import ProbabilisticDynamics, continue_with_members
from .free_running import Continuations, FreeRunning, continue_freely
from .marginals import GaussianMarginals, Marginals, ObservationBins, TokenMarginals

_NARROWEST = 1e-3  # of a dimension's standard deviation: what a bin's width is taken for at least


@dataclass(frozen=True)
class Prediction:
    """Of one episode.

    Attributes:
        marginals: by method.
        sample: (horizon + 1, observation_dim) one of the transformer's samples, from the start on.
    """

    marginals: dict[str, Marginals]
    sample: np.ndarray


class Predictor:
    """All models that are compared, ready to continue episodes.

    Args:
        trained: the transformer.
        planner: its ``decoder`` and ``precision`` are used.
        options: how far, how often, from how much.
        scale: (observation_dim,) standard deviation of each dimension, above 0.
        ensemble: to compare with, or None.

    Raises:
        UserError: the model cannot see as far as asked for, or predicts for goals.
    """

    def __init__(
        self,
        trained: TrainedTransformer,
        planner: PlannerConfig,
        options: PredictConfig,
        scale: np.ndarray,
        ensemble: ProbabilisticDynamics | None,
    ) -> None:
        config = trained.model.config
        require(
            not config.goal_conditioned,
            "task=predict continues episodes whose end is open, but the checkpoint's model was trained to reach goals "
            "(model.goal_conditioned=true); train one without",
        )
        context = options.context_within(config.sequence_length)
        self.contexts = {"transformer": context, "markovian": 1} if context > 1 else {"transformer": 1}
        self.trained, self.options, self.scale, self.ensemble = trained, options, scale, ensemble
        self.bins = ObservationBins(trained.discretizer, _NARROWEST * scale)
        one_row = replace(planner, window="growing", beam_width=1, n_expand=1)
        self._decoder = make_decoder(trained.model, one_row)

    @property
    def work(self) -> int:
        """Transitions that all models together sample for an episode."""
        models = len(self.contexts) + (self.ensemble is not None)
        return models * self.options.samples * self.options.horizon

    def predict(self, episode: Episode, seed: int, on_transitions: Callable[[int], None]) -> Prediction:
        """Continue an episode of at least ``options.horizon`` steps; every model draws with ``seed``."""
        start = torch.from_numpy(episode.observations[0])
        actions = torch.from_numpy(episode.actions[: self.options.horizon])
        runs = {
            method: self._continue(start, actions, context, seed, on_transitions)
            for method, context in self.contexts.items()
        }
        marginals: dict[str, Marginals] = {
            method: TokenMarginals(run.probabilities.cpu().numpy(), self.bins) for method, run in runs.items()
        }
        if self.ensemble is not None:
            bounds = [torch.from_numpy(bound).float() for bound in self.bins.range]
            run = continue_with_members(
                self.ensemble, start, actions, self.options.samples, (bounds[0], bounds[1]),
                torch.Generator().manual_seed(seed), on_transitions,
            )  # fmt: skip
            means, deviations = (x.transpose(0, 1).double().numpy() for x in (run.means, run.deviations))
            marginals["ensemble"] = GaussianMarginals(means, deviations)
        tokens = runs["transformer"].observations[0]
        sample = self.trained.discretizer.decode(tokens, self.trained.model.layout.observation).cpu().numpy()
        return Prediction(marginals, np.concatenate([episode.observations[:1], sample]))

    def _continue(
        self, start: torch.Tensor, actions: torch.Tensor, context: int, seed: int, on_transitions: Callable[[int], None]
    ) -> Continuations:
        """By the transformer, with the given context."""
        options, layout, discretizer = self.options, self.trained.model.layout, self.trained.discretizer
        others = Choice(temperature=options.temperature)
        observations = replace(others, k=options.k_obs)
        settings = FreeRunning(options.samples, options.horizon, context, observations, others)
        taken = discretizer.encode(actions, layout.action) if options.actions == "recorded" else None
        first = discretizer.encode(start, layout.observation)
        generator = torch.Generator().manual_seed(seed)
        return continue_freely(self._decoder, layout, first, taken, settings, generator, on_transitions)
