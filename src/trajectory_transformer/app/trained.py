"""A checkpoint as the two commands use it, whatever was trained."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..checkpoint import SECTION, kind_of, read_checkpoint
from ..configuration import DataConfig, DiscretizerConfig
from ..data.episodes import Episode
from ..data.sources import load_offline_data
from ..errors import UserError
from ..evaluation.records import ActingAgent
from ..learners.critic import Critic
from ..learners.policy_agent import PolicyAgent
from ..planning.agent import Agent
from ..training.datamodule import split_episodes


@dataclass(frozen=True)
class Trained:
    """A checkpoint, read and verified once.

    Attributes:
        checkpoint: the file.
        contents: of the file.
        dataset: what it records of the data that it was trained on.
        agent: plans with it, or follows its policy.
        allow: packages besides this one whose classes the file may name.
    """

    checkpoint: Path
    contents: Mapping[str, Any]
    dataset: Mapping[str, Any]
    agent: ActingAgent
    allow: Sequence[str] = ()


def load_trained(
    checkpoint: Path, accelerator: str, planner_overrides: Mapping[str, Any], allow: Sequence[str] = ()
) -> Trained:
    """Read a checkpoint.

    Args:
        checkpoint: a ``.ckpt`` file.
        accelerator: that plans; as Lightning's.
        planner_overrides: planner options that replace those recorded in the checkpoint.
        allow: packages besides this one whose classes the file may name.

    Raises:
        UserError: the file is no good, does not fit the planner or does not act, or there is no such accelerator.
    """
    device = torch_device(accelerator, "accelerator")
    contents = read_checkpoint(checkpoint)
    kind = kind_of(contents)
    if kind == "ensemble":
        raise UserError(
            f"'{checkpoint}' holds an ensemble of dynamics models, which predicts and does not act; compare a "
            f"transformer with it by checkpoint=TRANSFORMER.ckpt task=predict predict.ensemble={checkpoint}"
        )
    if kind == "iql" and planner_overrides:
        raise UserError(
            f"'{checkpoint}' holds a critic, whose policy acts without planning: leave out planner and "
            f"{', '.join(f'planner.{name}' for name in planner_overrides)}"
        )
    if kind == "iql":
        agent: ActingAgent = PolicyAgent(Critic.from_contents(contents, device))
    else:
        agent = Agent.from_contents(contents, device, allow, **planner_overrides)
    return Trained(checkpoint, contents, contents[SECTION]["dataset"], agent, allow)


def held_out_episodes(trained: Trained) -> list[Episode]:
    """The validation episodes of a checkpoint's own data, which its training has not seen, in the order stored.

    Raises:
        UserError: the data cannot be had, or is not what the checkpoint was trained on.
    """
    section = trained.contents[SECTION]
    recorded = dict(section["data"])
    config = DataConfig(**{**recorded, "discretizer": DiscretizerConfig(**recorded["discretizer"])})
    data = load_offline_data(config)
    if data.fingerprint != trained.dataset["fingerprint"]:
        raise UserError(
            f"data set {', '.join(data.dataset_ids)} on this machine has other contents than the one that "
            f"'{trained.checkpoint}' was trained on"
        )
    return split_episodes(data, config.validation_fraction, section["seed"])[1]


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
