"""Long-horizon prediction (paper §4.1): held-out episodes against what models make of their starts."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ..configuration import PlannerConfig, PredictConfig, require
from ..data.environment import EnvironmentSpec
from ..data.episodes import Episode
from ..planning.ensemble_running import ProbabilisticDynamics, continue_with_members
from ..planning.free_running import Continuations, FreeRunning, continue_freely
from ..planning.planner import make_decoder
from ..planning.sampling import Choice
from ..planning.trained_model import TrainedModel
from .environments import environment_title
from .figures import Figure, RunFacts, write_figures
from .marginals import GaussianMarginals, Marginals, ObservationBins, TokenMarginals
from .prediction_curves import Curves, compare, prediction_figures, stack_curves
from .prediction_plots import plot_errors, plot_log_likelihood
from .state_video import film_predictions

log = logging.getLogger(__name__)

_NARROWEST = 1e-3  # of a dimension's standard deviation: what a bin's width is taken for at least


@dataclass(frozen=True)
class PredictionRequest:
    """What to predict, and what to record beside it.

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


class RecordedDynamics(Protocol):
    """A trained dynamics model, and what it was trained on."""

    @property
    def network(self) -> ProbabilisticDynamics: ...

    @property
    def environment(self) -> EnvironmentSpec: ...

    @property
    def dataset(self) -> Mapping[str, Any]: ...


def require_same_data(ensemble: RecordedDynamics, environment: EnvironmentSpec, fingerprint: str) -> None:
    """Refuse an ensemble of other dimensions or other data than the model's.

    Raises:
        UserError: naming the difference.
    """
    theirs, ours = ensemble.environment, environment
    for what, other, own in (
        ("observation", theirs.observation_dim, ours.observation_dim),
        ("action", theirs.action_dim, ours.action_dim),
    ):
        require(
            other == own,
            f"predict.ensemble has {other} {what} dimensions, the checkpoint's model {own}; train both on one data set",
        )
    require(
        ensemble.dataset["fingerprint"] == fingerprint,
        f"predict.ensemble was trained on other data ({', '.join(ensemble.dataset['ids'])}) than the checkpoint's "
        "model; train both on one data set",
    )
    require(
        theirs.observation_indices == ours.observation_indices,
        f"predict.ensemble sees the observation's dimensions {theirs.observation_indices}, the checkpoint's model "
        f"{ours.observation_indices}; train both with the same data.observation_indices",
    )


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
    trained: TrainedModel,
    planner: PlannerConfig,
    held_out: Sequence[Episode],
    ensemble: ProbabilisticDynamics | None,
    request: PredictionRequest,
    run_directory: Path,
) -> list[Figure]:
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
    with _progress_bar(request.progress) as progress:
        task = progress.add_task("predicting", total=len(references) * predictor.work, episodes=len(references))
        for index, episode in enumerate(references):
            prediction = predictor.predict(episode, request.facts.seed + index, lambda n: progress.advance(task, n))
            curves.append(compare(prediction.marginals, episode.observations, predictor.bins, predictor.scale))
            if index < request.video:
                films.append((episode.observations[: request.options.horizon + 1], prediction.sample))
    together = stack_curves(curves)
    figures = prediction_figures(together)
    write_figures(run_directory / "figures.csv", request.facts, figures)
    title = environment_title(trained.environment)
    plot_log_likelihood(together, title, run_directory / "plots" / "prediction_log_likelihood.png")
    plot_errors(together, title, run_directory / "plots" / "prediction_error.png")
    film_predictions(trained.environment, films, run_directory / "videos")
    return figures


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
        trained: TrainedModel,
        planner: PlannerConfig,
        options: PredictConfig,
        scale: np.ndarray,
        ensemble: ProbabilisticDynamics | None,
    ) -> None:
        config = trained.model.config
        require(
            not getattr(config, "goal_conditioned", False),
            "task=predict continues episodes whose end is open, but the checkpoint's model was trained to reach goals "
            "(data.goal_conditioned); train one without",
        )
        context = options.context_within((config.block_size + 1) // config.transition_dim)
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


def _progress_bar(shown: bool) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:.0f} % of {task.fields[episodes]} episodes"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        disable=not shown,
        refresh_per_second=4,
    )
