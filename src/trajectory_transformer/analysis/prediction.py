"""Long-horizon prediction (paper §4.1): held-out episodes against models' continuations of their starts."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..configuration import PlannerConfig, PredictConfig, require
from ..data.episodes import Episode
from ..environments.batch import environment_title
from ..evaluation.measurements import Measurement, RunFacts, write_measurements
from ..planning.planner import make_decoder
from ..planning.sampling import Choice
from ..planning.trained_transformer import TrainedTransformer
from ..progress import WorkProgress
from . import prediction_curves
from .continuations import FreeRunning, ProbabilisticDynamics, continue_freely, continue_with_members
from .plots import plot_errors, plot_log_likelihood
from .prediction_curves import GaussianMarginals, Marginals, ObservationBins, TokenMarginals
from .state_video import film_predictions

log = logging.getLogger(__name__)
_NARROWEST = 1e-3  # minimum width of a bin, as a fraction of its dimension's standard deviation


class Predictor:
    """The compared models, ready to continue episodes.

    Of ``planner``, only ``decoder`` and ``precision`` are used; ``scale`` is (observation_dim,) above 0, the standard
    deviation of each dimension.

    Raises:
        UserError: the model cannot look back as far as required, or is conditioned on goals.
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
            "task=predict continues episodes without a goal, but the checkpoint's model was trained to reach goals "
            "(model.goal_conditioned=true); train one with model.goal_conditioned=false",
        )
        context = options.context_within(config.sequence_length)
        self.contexts = {"transformer": context, "markovian": 1} if context > 1 else {"transformer": 1}
        self.trained, self.options, self.scale, self.ensemble = trained, options, scale, ensemble
        self.bins = ObservationBins(trained.discretizer, _NARROWEST * scale)
        self._decoder = make_decoder(trained.model, replace(planner, window="growing", beam_width=1, n_expand=1))

    @property
    def work(self) -> int:
        """Number of transitions that all models together sample per episode."""
        models = len(self.contexts) + (self.ensemble is not None)
        return models * self.options.samples * self.options.horizon

    def predict(
        self, episode: Episode, seed: int, on_transitions: Callable[[int], None]
    ) -> tuple[dict[str, Marginals], np.ndarray]:
        """Continue an episode of at least ``options.horizon`` steps; every model draws with ``seed``.

        Returns:
            The marginals by method; one of the transformer's samples, (horizon + 1, observation_dim) from the start on.
        """
        options, layout, discretizer = self.options, self.trained.model.layout, self.trained.discretizer
        start = torch.from_numpy(episode.observations[0])
        actions = torch.from_numpy(episode.actions[: options.horizon])
        first = discretizer.encode(start, layout.observation)
        taken = discretizer.encode(actions, layout.action) if options.actions == "recorded" else None
        others = Choice(temperature=options.temperature)
        runs, marginals = {}, dict[str, Marginals]()
        for method, context in self.contexts.items():
            settings = FreeRunning(options.samples, options.horizon, context, replace(others, k=options.k_obs), others)
            generator = torch.Generator().manual_seed(seed)
            run = continue_freely(self._decoder, layout, first, taken, settings, generator, on_transitions)
            runs[method], marginals[method] = run, TokenMarginals(run.probabilities.cpu().numpy(), self.bins)
        if self.ensemble is not None:
            bounds = torch.from_numpy(self.bins.low).float(), torch.from_numpy(self.bins.high).float()
            generator = torch.Generator().manual_seed(seed)
            _, *normal = continue_with_members(
                self.ensemble, start, actions, options.samples, bounds, generator, on_transitions
            )
            marginals["ensemble"] = GaussianMarginals(*(part.transpose(0, 1).double().numpy() for part in normal))
        sample = discretizer.decode(runs["transformer"].observations[0], layout.observation).cpu().numpy()
        return marginals, np.concatenate([episode.observations[:1], sample])


@dataclass(frozen=True)
class PredictionRequest:
    """Options of a long-horizon prediction, and facts about the run, whose seed determines all draws."""

    options: PredictConfig
    episodes: int  # maximum number of held-out episodes to continue
    video: int  # number of these to record
    facts: RunFacts
    progress: bool = True


def choose_references(held_out: Sequence[Episode], horizon: int, count: int) -> list[Episode]:
    """Return the first ``count`` episodes of at least ``horizon`` steps; fewer are a warning, none is a UserError."""
    chosen = [episode for episode in held_out if len(episode) >= horizon][:count]
    require(
        len(chosen) > 0,
        f"predict.horizon={horizon}: no held-out episode has that many steps; shorten it to at most "
        f"{max(map(len, held_out))}, the length of the longest of {len(held_out)} episodes",
    )
    if len(chosen) < count:
        log.warning(
            "only %d of the %d held-out episodes have the %d steps of predict.horizon; these are used",
            *(len(chosen), len(held_out), horizon),
        )
    return chosen


def predict(
    trained: TrainedTransformer,
    planner: PlannerConfig,
    held_out: Sequence[Episode],
    ensemble: ProbabilisticDynamics | None,
    request: PredictionRequest,
    run_directory: Path,
) -> list[Measurement]:
    """Continue held-out episodes from their first observations, and measure the accuracy of the predictions.

    Writes ``figures.csv``, ``plots/prediction_log_likelihood.png``, ``plots/prediction_error.png`` and, if requested,
    ``videos/episode_<i>.mp4``. ``ensemble`` is on the CPU and has the same dimensions.

    Returns:
        The measurements in ``figures.csv``; the first is the transformer's log-likelihood.

    Raises:
        UserError: the model cannot look back as far as required, all episodes are shorter than the horizon, or a file
            cannot be written.
    """
    references = choose_references(held_out, request.options.horizon, request.episodes)
    scale = np.concatenate([episode.observations for episode in held_out]).std(axis=0, dtype=np.float64)
    predictor = Predictor(trained, planner, request.options, np.where(scale > 0, scale, 1.0), ensemble)
    curves: list[prediction_curves.Curves] = []
    films: list[tuple[np.ndarray, np.ndarray]] = []
    with WorkProgress("{task.percentage:.0f} % of {task.fields[episodes]} episodes", request.progress) as progress:
        task = progress.add_task("predicting", total=len(references) * predictor.work, episodes=len(references))
        for index, episode in enumerate(references):
            seed = request.facts.seed + index
            marginals, sample = predictor.predict(episode, seed, lambda count: progress.advance(task, count))
            curves.append(prediction_curves.compare(marginals, episode.observations, predictor.bins, predictor.scale))
            if index < request.video:
                films.append((episode.observations[: request.options.horizon + 1], sample))
    together = prediction_curves.stack_curves(curves)
    measurements = prediction_curves.prediction_measurements(together)
    write_measurements(run_directory / "figures.csv", request.facts, measurements)
    title, plots = environment_title(trained.environment), run_directory / "plots"
    plot_log_likelihood(together, title, plots / "prediction_log_likelihood.png")
    plot_errors(together, title, plots / "prediction_error.png")
    film_predictions(trained.environment, films, run_directory / "videos", request.progress)
    return measurements
