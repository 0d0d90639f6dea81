"""What joins weights and training state in a checkpoint, and how Lightning reads and writes one."""

import os
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from typing_extensions import override

from ..checkpoint import SECTION, read_checkpoint, require_kind, write_checkpoint
from ..configuration import TrainConfig
from ..data.discretizer import Discretizer
from ..data.episodes import OfflineData
from ..errors import UserError


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's file access by way of ``checkpoint.py``: atomic, verified, never unpickling.

    Lightning writes on one process only and then waits for it, so a failed save must not raise there: it warns, keeps
    the error in :attr:`failure`, and whoever cannot do without the file raises it.

    Attributes:
        failure: why the latest save failed; None where it did not.
    """

    def __init__(self) -> None:
        self.failure: UserError | None = None

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        self.failure = None
        try:
            write_checkpoint(path, checkpoint)
        except UserError as error:
            self.failure = error
            warnings.warn(str(error), stacklevel=2)

    @override
    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        return read_checkpoint(path)

    @override
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        Path(path).unlink(missing_ok=True)


def standalone_facts(config: TrainConfig, data: OfflineData, discretizer: Discretizer) -> dict[str, Any]:
    """All that planning needs besides weights and model config, as plain values and tensors."""
    return {"discretizer": discretizer.to_dict(), **run_facts(config, data), "planner": asdict(config.planner)}


def run_facts(config: TrainConfig, data: OfflineData) -> dict[str, Any]:
    """What every learner's checkpoint says of its data, as plain values and tensors."""
    return {
        "environment": data.environment.to_dict(),
        "dataset": {
            "ids": list(data.dataset_ids),
            "fingerprint": data.fingerprint,
            "returns": torch.from_numpy(data.returns),
            "reference_scores": None if data.reference_scores is None else list(data.reference_scores),
            "reference_source": data.reference_source,
        },
        "data": asdict(config.data),
        "seed": config.seed,
    }


def require_same_run(path: Path, record: Mapping[str, Any]) -> None:
    """Refuse to go on from a checkpoint of another learner, model, data set or seed.

    Args:
        path: the checkpoint.
        record: what a checkpoint of the run would say now.

    Raises:
        UserError: naming the first option that differs.
    """
    contents = read_checkpoint(path)
    require_kind(contents, record["kind"], f"'{path}'")
    saved = contents[SECTION]
    for name, value in record["model"].items():
        if saved["model"].get(name) != value:
            raise UserError(
                f"'{path}' has {name}={saved['model'].get(name)}, but now it would be {value}; resume with the options "
                "and the data that the run began with"
            )
    if saved["dataset"]["fingerprint"] != record["dataset"]["fingerprint"]:
        raise UserError(
            f"'{path}' was trained on {', '.join(saved['dataset']['ids'])} with other contents than "
            f"{', '.join(record['dataset']['ids'])} has now; resume with the same data"
        )
    if "discretizer" in record and not torch.equal(saved["discretizer"]["edges"], record["discretizer"]["edges"]):
        raise UserError(
            f"'{path}' has other discretiser bins than data.discretizer gives now; resume with the same options"
        )
    for name, was, now in [
        ("seed", saved.get("seed"), record["seed"]),
        *((f"data.{name}", saved["data"].get(name), now) for name, now in record["data"].items()),
    ]:
        if was != now and name != "data.download":
            raise UserError(f"'{path}' was trained with {name}={was}, now it is {now}; a run cannot change it half way")
