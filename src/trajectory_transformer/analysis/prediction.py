"""Long-horizon prediction (paper §4.1): held-out episodes against what models make of their starts."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..configuration import PlannerConfig, PredictConfig, require
from ..data.episodes import Episode
from ..environments.batch import environment_title
from ..evaluation.measurements import Measurement, RunFacts, write_measurements
from ..evaluation.rollout import progress_bar
from ..planning.trained_transformer import TrainedTransformer
from .ensemble_running import ProbabilisticDynamics
from .prediction_curves import Curves, compare, prediction_measurements, stack_curves
from .prediction_plots import plot_errors, plot_log_likelihood
from .predictor import Predictor
from .state_video import film_predictions

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class PredictionRequest:
    """Options of a long-horizon prediction, and the run that it belongs to.

    Attributes:
        options: how far, how often, from how much.
        episodes: held-out episodes to continue, at most.
        video: of them to film.
        facts: of the run; its seed decides all draws.
        progress: show a progress bar.
    """

    options: PredictConfig
    episodes: int
    video: int
    facts: RunFacts
    progress: bool = True


def choose_references(held_out: Sequence[Episode], horizon: int, count: int) -> list[Episode]:
    """The first ``count`` held-out episodes of at least ``horizon`` steps, with one warning where there are fewer.

    Raises:
        UserError: there is none.
    """
    chosen = [episode for episode in held_out if len(episode) >= horizon][:count]
    longest = max(map(len, held_out))
    require(
        len(chosen) > 0,
        f"predict.horizon={horizon}: no held-out episode has that many steps; the longest of {len(held_out)} has "
        f"{longest}",
    )
    if len(chosen) < count:
        log.warning(
            "%d of the %d held-out episodes have the %d steps of predict.horizon; all of these are taken",
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
    """Continue held-out episodes from their first observations and record how well that predicts them.

    Writes ``figures.csv``, ``plots/prediction_log_likelihood.png``, ``plots/prediction_error.png`` and, if asked for,
    ``videos/episode_<i>.mp4``.

    Args:
        trained: the model.
        planner: its ``decoder`` and ``precision`` are used.
        held_out: episodes that the model was not trained on.
        ensemble: to compare with, on the CPU; of the same dimensions.
        request: what to predict.
        run_directory: where files go.

    Returns:
        The content of ``figures.csv``; the first is the transformer's log-likelihood.

    Raises:
        UserError: the model cannot see as far as asked for, no episode is as long, or a file cannot be written.
    """
    references = choose_references(held_out, request.options.horizon, request.episodes)
    scale = np.concatenate([episode.observations for episode in held_out]).std(axis=0, dtype=np.float64)
    predictor = Predictor(trained, planner, request.options, np.where(scale > 0, scale, 1.0), ensemble)
    curves: list[Curves] = []
    films: list[tuple[np.ndarray, np.ndarray]] = []
    with progress_bar(request.progress, "{task.percentage:.0f} % of {task.fields[episodes]} episodes") as progress:
        task = progress.add_task("predicting", total=len(references) * predictor.work, episodes=len(references))
        for index, episode in enumerate(references):
            prediction = predictor.predict(episode, request.facts.seed + index, lambda n: progress.advance(task, n))
            curves.append(compare(prediction.marginals, episode.observations, predictor.bins, predictor.scale))
            if index < request.video:
                films.append((episode.observations[: request.options.horizon + 1], prediction.sample))
    together = stack_curves(curves)
    measurements = prediction_measurements(together)
    write_measurements(run_directory / "figures.csv", request.facts, measurements)
    title = environment_title(trained.environment)
    plot_log_likelihood(together, title, run_directory / "plots" / "prediction_log_likelihood.png")
    plot_errors(together, title, run_directory / "plots" / "prediction_error.png")
    film_predictions(trained.environment, films, run_directory / "videos")
    return measurements
