"""The callback ``callbacks=sample_plans``, which plots plans at each validation."""

from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from typing_extensions import override

from ..configuration import PlannerConfig, require
from ..evaluation.plots import plan_window, plot_plan
from ..evaluation.records import EpisodeTrace, PlanTrace
from ..planning.agent import Agent
from ..planning.planner import BeamPlanner
from ..training.datamodule import split_episodes
from ..training.trackers import log_picture
from .transformer_datamodule import TrajectoryDataModule
from .transformer_module import TrajectoryModule


class SamplePlans(Callback):
    """Plots plans of the highest return from states in the middle of a validation episode, with what happened there.

    The pictures are saved as ``plots/sample_plans/UPDATE.png`` in the run's folder and sent to the loggers. The
    callback has no state.

    Args:
        beam_width: beam width of the search for the plans, each of which is as long as the model's windows.
    """

    def __init__(self, beam_width: int = 8) -> None:
        PlannerConfig(beam_width=beam_width)  # raises UserError
        self.beam_width = beam_width

    @override
    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        plain = isinstance(pl_module, TrajectoryModule) and not pl_module.model.config.goal_conditioned
        require(plain, "callbacks=sample_plans needs learner=transformer without model.goal_conditioned=true")

    @override
    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        datamodule = getattr(trainer, "datamodule", None)
        assert isinstance(pl_module, TrajectoryModule)
        assert isinstance(datamodule, TrajectoryDataModule)
        data, config = datamodule.data, datamodule.config
        episode = split_episodes(data, config.validation_fraction, datamodule.seed)[1][0]
        horizon = config.sequence_length
        settings = PlannerConfig(horizon=horizon, beam_width=self.beam_width, discount=config.discount, decoder="eager")
        with torch.inference_mode():
            discretizer = datamodule.discretizer.to(pl_module.device)
            agent = Agent(BeamPlanner(pl_module.model, discretizer, settings, data.environment), data.environment)
            steps = plan_window(len(episode.observations), horizon)[: -1 : max(horizon, 2)]  # one after another
            agent.reset(len(steps))
            agent.act(episode.observations[list(steps)])
        plans = tuple(PlanTrace(step, plan) for step, plan in zip(steps, agent.last_plan.observations, strict=True))
        path = Path(trainer.default_root_dir) / "plots" / "sample_plans" / f"{trainer.global_step}.png"
        trace, title = EpisodeTrace(0, episode.observations, plans), f"after update {trainer.global_step}"
        plot_plan(trace, data.environment.observation_names, title, path)
        for logger in trainer.loggers:
            log_picture(logger, f"plots/sample_plans/{trainer.global_step}", path)
