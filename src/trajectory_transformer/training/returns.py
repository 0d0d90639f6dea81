"""Returns during training, measured in episodes of the real environment with the present weights."""

import contextlib
import logging
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng

from ..checkpoint import Checkpoint
from ..checkpoint_file import read_checkpoint
from ..configuration import TrainConfig
from ..errors import UserError
from ..evaluation.records import EpisodeRecord, RolloutOptions
from ..evaluation.results import episodes_summary
from ..evaluation.rollout import run_episodes
from ..evaluation.scores import LEAST_EPISODES
from .interruption import PlayInterrupted, SignalWatch
from .learner import Learner
from .learner_module import LearnerModule

PREFIX = "evaluation/"  # of logged metrics
_FIRST_SEED = 500_000_000  # far above the seeds of episodes after training, and within 32 bits
_TIMEOUT = timedelta(days=7)  # for processes that wait for others' episodes

Outcome = list[EpisodeRecord] | int | str  # of a process: its episodes, a signal, or an error's message


class Watcher(Protocol):
    """Receives the progress of this process's episodes, and then the mean return of all."""

    def playing(self, step: int, episodes: int, finished: int, mean: str) -> None: ...
    def played(self, mean: float) -> None: ...


class EpisodePlayer:
    """Plays ``evaluation.every_episodes`` episodes every ``evaluation.every`` updates, always with the same seeds.

    A new agent is built from a copy of the weights, and random states are restored afterwards, so that training is not
    affected. The episodes are divided among processes.
    """

    def __init__(
        self, learner: Learner, config: TrainConfig, watch: SignalWatch, watchers: Sequence[Watcher] = ()
    ) -> None:
        self.learner, self.config, self.options = learner, config, config.evaluation
        self.watch, self.watchers = watch, watchers
        self.first_seed = _FIRST_SEED + 1000 * config.seed
        # Measurements: "step", and scores as in the summary of results.json. Saved with the run, like ``best``.
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None  # the measurement of best_return.ckpt
        self._warned = False
        self._group: Any = None  # the process group that exchanges outcomes

    def at(self, step: int) -> dict[str, Any] | None:
        """The measurement of the weights after an update, or None."""
        return next((measured for measured in self.history if measured["step"] == step), None)

    def is_due(self, step: int) -> bool:
        """True if the weights after this update must be measured before the next one, and have not been."""
        return step > 0 and step % (self.options.every or step + 1) == 0 and self.at(step) is None

    def play(self, trainer: L.Trainer, module: LearnerModule) -> int | None:
        """Measure and log the returns of the present weights; returns None, or the signal that interrupted it.

        Raises:
            UserError: the environment failed or the weights are not finite.
        """
        contents: dict[str, Any] = {"state_dict": {name: t.cpu() for name, t in module.state_dict().items()}}
        module.on_save_checkpoint(contents)
        found = self.measure(trainer, Checkpoint.from_contents(contents, "the weights in training"))
        if isinstance(found, int):
            return found
        self.history.append({"step": trainer.global_step, **found})
        row: dict[str, float] = {}
        for name, value in found.items():
            if name == "return_ci95" and self.options.every_episodes < LEAST_EPISODES:
                continue
            if isinstance(value, list):
                row |= {f"{PREFIX}{name}_low": value[0], f"{PREFIX}{name}_high": value[1]}
            elif value is not None:
                row[f"{PREFIX}{name}"] = value
        for logger in trainer.loggers:
            logger.log_metrics(row, trainer.global_step)
        for watcher in self.watchers:
            watcher.played(found["return_mean"])
        return None

    def measure(self, trainer: L.Trainer, checkpoint: Checkpoint) -> dict[str, Any] | int:
        """Scores of a checkpoint's agent, or the signal that interrupted it; UserError as in :meth:`play`.

        All processes must call this, and all get the same result.
        """
        rank, ranks, episodes = trainer.global_rank, trainer.world_size, self.options.every_episodes
        begin, end = (episodes * index // ranks for index in (rank, rank + 1))
        outcome: Outcome = []
        device, failure = trainer.strategy.root_device, None
        try:
            # Validation, at the end of which this may be called, runs in inference mode.
            with isolate_rng(device.type == "cuda"), torch.inference_mode(False), self._warning_once():
                if end > begin:
                    outcome = self._play(checkpoint, str(device), trainer.global_step, begin, end)
        except PlayInterrupted:
            outcome = self.watch.received or 0
        except UserError as error:
            outcome, failure = error.told, error
        outcomes = self._all(outcome, ranks)
        if wrong := [text for text in outcomes if isinstance(text, str)]:
            raise failure or UserError(wrong[0])
        if signals := [number for number in outcomes if isinstance(number, int)]:
            return max(signals)
        played = [episode for some in outcomes if isinstance(some, list) for episode in some]
        return episodes_summary(played, checkpoint.training.dataset.reference_scores)

    def _play(self, checkpoint: Checkpoint, device: str, step: int, begin: int, end: int) -> list[EpisodeRecord]:
        agent = self.learner.own_agent(self.config, checkpoint, device)

        def stepped(finished: int, mean: str) -> None:
            if self.watch.received is not None:
                raise PlayInterrupted
            for watcher in self.watchers:
                watcher.playing(step, end - begin, finished, mean)

        options = RolloutOptions(
            progress=False,
            max_episode_steps=self.options.max_episode_steps,
            longest_episode=checkpoint.training.dataset.longest_episode,
            stepped=stepped,
        )
        seed = self.first_seed + begin
        self.watch.acting = True
        try:
            record = run_episodes(agent, agent.environment, end - begin, self.options.num_envs, seed, options)
        finally:
            self.watch.acting = False
        return list(record.episodes)

    def _all(self, outcome: Outcome, ranks: int) -> list[Outcome]:
        """The outcomes of all processes, in their order."""
        if ranks == 1:
            return [outcome]
        if self._group is None:  # a separate group: others time out after minutes, or need tensors on GPUs
            self._group = torch.distributed.new_group(backend="gloo", timeout=_TIMEOUT)
        outcomes: list[Outcome] = [outcome] * ranks
        torch.distributed.all_gather_object(outcomes, outcome, group=self._group)
        return outcomes

    @contextlib.contextmanager
    def _warning_once(self) -> Iterator[None]:
        """Suppress this package's warnings after the first evaluation, because they would be repeated."""
        package = logging.getLogger(__name__.partition(".")[0])
        level = package.level
        package.setLevel(logging.ERROR if self._warned else level)
        try:
            yield
        finally:
            package.setLevel(level)
            self._warned = True

    def choice(self, trainer: L.Trainer, best_by_loss: Path) -> dict[str, Any] | int:
        """Record for ``results.json`` of the weights to choose from, or the signal that interrupted it.

        It is called after the last weights have been measured. Those of the lowest validation loss are measured now if
        they have not been.
        """
        contents, measured = read_checkpoint(best_by_loss), len(self.history)
        by_loss = self.at(contents["global_step"])
        if by_loss is None:
            found = self.measure(trainer, Checkpoint.from_contents(contents, str(best_by_loss)))
            if isinstance(found, int):
                return found
            by_loss, measured = {"step": contents["global_step"], **found}, measured + 1
        return {
            "by": self.options.choose,
            "episodes": measured * self.options.every_episodes,
            "episodes_each": self.options.every_episodes,
            "first_episode_seed": self.first_seed,
            "last": self.at(trainer.global_step),
            "best_by_loss": by_loss,
            "best_by_return": self.best,
        }

    def state_dict(self) -> dict[str, Any]:
        """State to save with a run."""
        return {"history": self.history, "best_return": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore :meth:`state_dict`, which is empty for a run that began without episodes."""
        self.history, self.best = list(state.get("history", [])), state.get("best_return")
