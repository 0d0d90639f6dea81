"""Checkpoints with their agents and held-out data, for either command and any learner."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import Checkpoint
from ..data.episodes import Episode
from ..data.sources import load_offline_data
from ..errors import UserError
from ..evaluation.records import ActingAgent
from ..training.datamodule import split_episodes
from ..training.learner import Learner, make_learner


@dataclass(frozen=True)
class LoadedAgent:
    """A checkpoint, read and verified once, and the agent that plans with it or follows its policy."""

    path: Path
    checkpoint: Checkpoint
    agent: ActingAgent


def load_agent(
    path: Path,
    accelerator: str,
    planner_overrides: Mapping[str, Any],
    allow: Sequence[str] = (),
    learner: Learner | None = None,
) -> LoadedAgent:
    """Read a checkpoint.

    Args:
        path: a ``.ckpt`` file.
        accelerator: that plans; as Lightning's.
        planner_overrides: options that replace those recorded in the checkpoint.
        allow: packages that the checkpoint may name parts of.
        learner: that trained it; None: the one that the checkpoint names.

    Raises:
        UserError: the file is no good, does not fit the planner or does not act, or there is no such accelerator.
    """
    device = torch_device(accelerator, "accelerator")
    checkpoint = Checkpoint.read(path)
    if learner is None:
        learner = make_learner(checkpoint.training.learner, allow)
    return LoadedAgent(path, checkpoint, learner.make_agent(checkpoint, device, planner_overrides, allow))


def held_out_episodes(checkpoint: Checkpoint, allow: Sequence[str] = ()) -> list[Episode]:
    """The validation episodes of a checkpoint's own data, which its training has not seen, in the order stored.

    Its source of episodes may come from this package and those in ``allow``.

    Raises:
        UserError: the data is not available, or is not what the checkpoint was trained on.
    """
    training = checkpoint.training
    data = load_offline_data(training.data, allow=allow)
    if data.fingerprint != training.dataset.fingerprint:
        raise UserError(
            f"data set {', '.join(data.dataset_ids)} on this machine has other contents than the one that "
            f"'{checkpoint.name}' was trained on"
        )
    return split_episodes(data, training.data.validation_fraction, training.seed)[1]


def torch_device(accelerator: str, option: str) -> str:
    """The torch device that plans, for the accelerator that Lightning trains on.

    Raises:
        UserError: there is none.
    """
    if accelerator == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    there = {"gpu": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    if accelerator in there and not there[accelerator]():
        raise UserError(f"{option}={accelerator}: this machine has none that torch can use; choose {option}=cpu")
    return "cuda" if accelerator == "gpu" else accelerator
