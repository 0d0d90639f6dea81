"""Experiment trackers besides W&B, which a resumed run continues, and logging of tables and pictures to them."""

import importlib
import json
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

Rows = Sequence[Sequence[Any]]


class MLflowRun(MLFlowLogger):
    """An MLflow run, by default in ``mlflow.db`` in ``save_dir``; a resumed run continues it.

    Args:
        save_dir: the run's folder.
        tracking_uri: MLflow's tracking URI, such as a server's address; None: ``mlflow.db``.
        experiment_name: name of MLflow's experiment.
        run_name: name of the run; None: the folder's name.
        tags: tags of the run.
    """

    def __init__(
        self,
        save_dir: str,
        tracking_uri: str | None = None,
        experiment_name: str = "trajectory-transformer",
        run_name: str | None = None,
        tags: dict[str, str] | None = None,
    ) -> None:
        folder = Path(save_dir).absolute()
        self._id_file = folder / "mlflow_run_id.txt"
        known = self._id_file.read_text(encoding="utf-8").strip() if self._id_file.exists() else None
        artifacts = (folder / "mlflow").as_uri() if tracking_uri is None else None
        place = tracking_uri or f"sqlite:///{folder / 'mlflow.db'}"
        super().__init__(
            experiment_name, run_name or folder.name, place, tags, artifact_location=artifacts, run_id=known
        )

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        known = self._id_file.exists()  # a resumed run has its parameters, which MLflow does not allow to change
        self._id_file.write_text(str(self.run_id), encoding="utf-8")
        if not known:
            super().log_hyperparams(params)


class TensorBoardRun(TensorBoardLogger):
    """A TensorBoard logger that writes to ``save_dir/tensorboard``."""

    def __init__(self, save_dir: str) -> None:
        super().__init__(save_dir, "tensorboard", "", default_hp_metric=False)


class TrackioRun(Logger):
    """A Trackio run, stored on this machine in Trackio's folder (TRACKIO_DIR); a resumed run continues it.

    Args:
        save_dir: the run's folder; its name is the run's name.
        project: name of the project.
        group: name of a group of runs to compare.
        space_id: Hugging Face Space to send the metrics to; None: only this machine.
    """

    def __init__(
        self,
        save_dir: str,
        project: str = "trajectory-transformer",
        group: str | None = None,
        space_id: str | None = None,
    ) -> None:
        super().__init__()
        name = Path(save_dir).absolute().name
        self._options = {"project": project, "name": name, "group": group, "space_id": space_id, "resume": "allow"}
        self._trackio, self._run = importlib.import_module("trackio"), None

    @property
    def experiment(self) -> Any:
        """Trackio's run, which begins at the first call."""
        if self._run is None:
            self._run = self._trackio.init(**self._options)
        return self._run

    @property
    @override
    def name(self) -> str:
        return str(self._options["project"])

    @property
    @override
    def version(self) -> str:
        return str(self._options["name"])

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        self._options["config"] = params if isinstance(params, dict) else vars(params)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.experiment.log(metrics, step=step)

    def log_table(self, key: str, columns: list[str], data: Rows) -> None:
        self.experiment.log({key: self._trackio.Table(columns=columns, data=[list(row) for row in data])})

    def log_image(self, key: str, images: list[str]) -> None:
        self.experiment.log({key: self._trackio.Image(images[0])})

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._run.finish()
            self._run = None


def log_table(logger: Logger, name: str, columns: Sequence[str], rows: Rows) -> None:
    """Log a table, if the tracker supports it: another logger needs ``log_table``, like Lightning's WandbLogger."""
    if isinstance(logger, TensorBoardLogger):
        lines = [columns, ["---"] * len(columns), *rows]
        logger.experiment.add_text(name, "\n".join("|".join(map(str, ("", *line, ""))) for line in lines))
    elif isinstance(logger, MLFlowLogger):
        table = {"columns": list(columns), "data": [list(row) for row in rows]}  # the format of MLflow's run page
        client, run = logger.experiment, str(logger.run_id)
        client.log_dict(run, table, f"{name}.json")
        client.set_tag(run, "mlflow.loggedArtifacts", json.dumps([{"path": f"{name}.json", "type": "table"}]))
    elif hasattr(logger, "log_table"):
        logger.log_table(name, list(columns), rows)  # pyright: ignore[reportAttributeAccessIssue] - asked above


def log_picture(logger: Logger, name: str, file: Path) -> None:
    """Log a PNG file, if the tracker supports it: another logger needs ``log_image``, like Lightning's WandbLogger."""
    if isinstance(logger, TensorBoardLogger):
        from matplotlib.image import imread

        logger.experiment.add_image(name, imread(file)[..., :3], dataformats="HWC")
    elif isinstance(logger, MLFlowLogger):
        logger.experiment.log_artifact(str(logger.run_id), str(file), str(Path(name).parent))
    elif hasattr(logger, "log_image"):
        logger.log_image(name, [str(file)])  # pyright: ignore[reportAttributeAccessIssue] - asked above
