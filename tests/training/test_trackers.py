"""TensorBoard, MLflow and Trackio, offline: each has the same metrics, table and picture, also after a resume."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from matplotlib.figure import Figure

from trajectory_transformer.configuration import LoggerConfig
from trajectory_transformer.training.loggers import (
    RunLabels,
    finish_loggers,
    log_evaluation,
    log_pictures,
    make_loggers,
)

from .test_loggers import RESULTS

CONFIGS = Path(__file__).parents[2] / "configs" / "logger"
OPTIONS = {"model": {"n_layer": 3, "block": None}, "planner": {"name": "return"}}
pytestmark = pytest.mark.filterwarnings("ignore")  # other projects' own


def log_run(directory: Path, name: str) -> Any:
    """Log a small run, and a resumed one in the same folder; returns the tracker's Lightning logger."""
    extra = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text(encoding="utf-8"))["extra"]
    picture = directory / "plots" / "returns.png"
    picture.parent.mkdir()
    figure = Figure(figsize=(0.2, 0.2))
    figure.savefig(picture)
    loggers = []
    for steps in ((1, 2), (3,)):
        loggers = make_loggers(LoggerConfig(extra=extra), directory, OPTIONS, RunLabels())
        for step in steps:
            for logger in loggers:
                logger.log_metrics({"val/loss": 0.5 * step}, step)
        if steps == (3,):
            log_evaluation(loggers, RESULTS)
            log_pictures(loggers, directory)
        finish_loggers(loggers)
    return loggers[1]


def test_tensorboard(tmp_path: Path) -> None:
    reading = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    log_run(tmp_path, "tensorboard")
    found = reading.EventAccumulator(str(tmp_path / "tensorboard"))
    found.Reload()
    assert [(event.step, event.value) for event in found.Scalars("val/loss")] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert found.Scalars("evaluation/return_mean")[0].value == 5.0
    (image,) = found.Images("plots/returns")
    assert (image.width, image.height) == (20, 20)
    (table,) = found.Tensors("evaluation/episodes/text_summary")
    assert b"|1|10.0|5|True|None|None|" in table.tensor_proto.string_val[0]
    assert "n_layer: 3" in (tmp_path / "tensorboard" / "hparams.yaml").read_text()


def test_mlflow(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    logger = log_run(tmp_path, "mlflow")
    client, run = logger.experiment, logger.run_id
    history = client.get_metric_history(run, "val/loss")
    assert [(one.step, one.value) for one in history] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    data = client.get_run(run).data
    assert data.metrics["evaluation/return_mean"] == 5.0
    assert data.params["model/n_layer"] == "3"
    files = {path.name: path for path in (tmp_path / "mlflow").rglob("*.*")}
    assert json.loads(files["episodes.json"].read_text(encoding="utf-8"))["data"][1][:3] == [1, 10.0, 5]
    assert files["returns.png"].read_bytes() == (tmp_path / "plots" / "returns.png").read_bytes()


@pytest.fixture
def trackio_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    return tmp_path / "trackio"


def test_trackio(tmp_path: Path, trackio_folder: Path) -> None:
    storage = pytest.importorskip("trackio.sqlite_storage").SQLiteStorage
    logger = log_run(tmp_path, "trackio")
    rows = storage.get_logs(logger.name, logger.version)
    assert [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [row["evaluation/return_mean"] for row in rows if "evaluation/return_mean" in row] == [5.0]
    table = next(row["evaluation/episodes"] for row in rows if "evaluation/episodes" in row)
    assert table["_value"][1]["return"] == 10.0
    (picture,) = trackio_folder.rglob("*.png")
    assert picture.stat().st_size > 0
