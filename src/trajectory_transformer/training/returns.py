"""Returns while training: episodes in the real environment with the weights of the moment, beside the loop."""

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
from .interruption import SignalWatch
from .learner import Learner
from .learner_module import LearnerModule

PREFIX = "evaluation/"  # of what is logged
_FIRST_SEED = 500_000_000  # far above those of the episodes after training, small enough for 32 bits
_PATIENCE = timedelta(days=7)  # of processes whose episodes are over, for the others'

Outcome = list[EpisodeRecord] | int | str  # a process's: its episodes, the signal that came, or what went wrong


class Watcher(Protocol):
    """Is told how far this process's episodes are, and then the mean return of all."""

    def playing(self, step: int, episodes: int, finished: int, mean: str) -> None: ...
    def played(self, mean: float) -> None: ...


class _Interrupted(Exception):
    """A signal asks the run to stop."""


class EpisodePlayer:
    """Plays ``evaluation.every_episodes`` episodes every ``evaluation.every`` updates, always with the same seeds.

    Their agent is built anew from a copy of the weights, and random states are as before afterwards: training goes on
    as if nothing had been played. Processes share the episodes.
    """

    def __init__(
        self, learner: Learner, config: TrainConfig, watch: SignalWatch, watchers: Sequence[Watcher] = ()
    ) -> None:
        self.learner, self.config, self.options = learner, config, config.evaluation
        self.watch, self.watchers = watch, watchers
        self.first_seed = _FIRST_SEED + 1000 * config.seed
        # "step" and scores as in the summary of results.json, of each time; saved with the run, as is the next
        self.history: list[dict[str, Any]] = []
        self.best: dict[str, Any] | None = None  # of the weights in best_return.ckpt
        self._warned = False
        self._group: Any = None  # of the processes, for outcomes

    def at(self, step: int) -> dict[str, Any] | None:
        """What was measured with the weights after an update, or None."""
        return next((measured for measured in self.history if measured["step"] == step), None)

    def is_due(self, step: int) -> bool:
        """True if the weights after an update are to be measured and have not been; the run's last ones always are."""
        return step > 0 and step % (self.options.every or step + 1) == 0 and self.at(step) is None

    def play(self, trainer: L.Trainer, module: LearnerModule) -> int | None:
        """Measure the present weights, and log what was found; the signal that broke it off, or None.

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
        """Scores of a checkpoint's agent, the same on all processes, each of which must call this; else as play."""
        rank, ranks, episodes = trainer.global_rank, trainer.world_size, self.options.every_episodes
        begin, end = (episodes * index // ranks for index in (rank, rank + 1))
        outcome: Outcome = []
        device, failure = trainer.strategy.root_device, None
        try:
            # Validation, at whose end this may be, is in inference mode.
            with isolate_rng(device.type == "cuda"), torch.inference_mode(False), self._warning_once():
                if end > begin:
                    outcome = self._play(checkpoint, str(device), trainer.global_step, begin, end)
        except _Interrupted:
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
                raise _Interrupted
            for watcher in self.watchers:
                watcher.playing(step, end - begin, finished, mean)

        options = RolloutOptions(
            progress=False,
            max_episode_steps=self.options.max_episode_steps,
            longest_episode=checkpoint.training.dataset.longest_episode,
            stepped=stepped,
        )
        seed = self.first_seed + begin
        return list(run_episodes(agent, agent.environment, end - begin, self.options.num_envs, seed, options).episodes)

    def _all(self, outcome: Outcome, ranks: int) -> list[Outcome]:
        """The outcomes of all processes, in their order."""
        if ranks == 1:
            return [outcome]
        if self._group is None:  # of its own, as others give up after minutes, or want everything on GPUs
            self._group = torch.distributed.new_group(backend="gloo", timeout=_PATIENCE)
        outcomes: list[Outcome] = [outcome] * ranks
        torch.distributed.all_gather_object(outcomes, outcome, group=self._group)
        return outcomes

    @contextlib.contextmanager
    def _warning_once(self) -> Iterator[None]:
        """What the first evaluation warned of, such as that PyTorch must plan, is not said again."""
        package = logging.getLogger(__name__.partition(".")[0])
        level = package.level
        package.setLevel(logging.ERROR if self._warned else level)
        try:
            yield
        finally:
            package.setLevel(level)
            self._warned = True

    def choice(self, trainer: L.Trainer, best_by_loss: Path) -> dict[str, Any] | int:
        """What ``results.json`` tells of the weights to choose from, once the last ones have been played; else as play.

        Those of the lowest validation loss are played with now where they have not been.
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
        """To be saved with a run."""
        return {"history": self.history, "best_return": self.best}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """From :meth:`state_dict`, or, as of a run that began without playing, nothing of it."""
        self.history, self.best = list(state.get("history", [])), state.get("best_return")
