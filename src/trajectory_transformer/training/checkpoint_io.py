"""Reading and writing of Lightning's checkpoint files, and the check that a resumed run has the same options."""

import os
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import CheckpointIO
from typing_extensions import override

from ..checkpoint import Checkpoint, fitting_parts, require_shapes
from ..checkpoint_file import read_checkpoint, write_checkpoint
from ..configuration import may_change
from ..errors import UserError
from .learner_module import LearnerModule


class VerifiedCheckpointIO(CheckpointIO):
    """Lightning's access to files by ``checkpoint_file.py``: atomic, verified, without unpickling.

    Lightning writes in one process, for which the others wait, so a failed save warns instead of raising.
    """

    failure: UserError | None = None  # of the latest save; raised by callers that need the file

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


def _muon(groups: Iterable[Mapping[str, Any]]) -> float:
    """Return the value of optimizer.muon that an optimiser's parameter groups have; 0 if all are AdamW's."""
    return max(group.get("muon", 0.0) for group in groups)


def require_same_run(path: Path, module: LearnerModule, accumulate: int) -> None:
    """Raise UserError if a checkpoint has other data, or another value of an option that must not change.

    Options that may change are :data:`~..configuration.resuming.MAY_CHANGE`; the message names the option.
    """
    contents = read_checkpoint(path)
    saved, now = Checkpoint.from_contents(contents, str(path)), module.record
    with fitting_parts(str(path)):  # Lightning counts parts of batches
        ready, steps = (
            contents["loops"]["fit_loop"]["epoch_loop.batch_progress"]["total"]["ready"],
            contents["global_step"],
        )
        parts = ready // steps if steps else accumulate
        muon = _muon(contents["optimizer_states"][0]["param_groups"])
    saved.require_kind(now.kind)
    learner = ((f"learner.{name}", saved.training.learner.get(name), now.learner[name]) for name in now.learner)
    model = ((f"model.{name}", saved.model.get(name), value) for name, value in module.model_options().items())
    for name, was, value in (*learner, *model):
        if was != value and not may_change(name):
            raise UserError(
                f"'{path}' has {name}={was}, but now it would be {value}; resume with the options and the data of the "
                "original run"
            )
    try:
        require_shapes(module.state_dict(), saved.state_dict)
    except ValueError as error:
        raise UserError(
            f"'{path}' does not fit the present code: {error}; resume with the code that the run was trained with"
        ) from None
    if saved.training.dataset.fingerprint != now.dataset.fingerprint:
        raise UserError(
            f"'{path}' was trained on {', '.join(saved.training.dataset.ids)}, whose contents differ from those of "
            f"{', '.join(now.dataset.ids)} now; resume with the same data"
        )
    bins = saved.training.discretizer
    if now.discretizer is not None and (bins is None or not torch.equal(bins.edges, now.discretizer.edges)):
        raise UserError(
            f"the discretiser bins in '{path}' differ from those that data.discretizer gives now; resume with the same "
            "options"
        )
    before, after = (
        {"seed": run.seed, "trainer.accumulate": count, "optimizer.muon": multiple}
        | {f"data.{name}": value for name, value in asdict(run.data).items()}
        for run, count, multiple in (
            (saved.training, parts, muon),
            (now, accumulate, _muon(module.parameter_groups())),
        )
    )
    for name, was in before.items():
        if was != (value := after[name]) and not may_change(name):
            raise UserError(f"'{path}' was trained with {name}={was}, now it is {value}; it cannot change within a run")
