"""metrics.csv on disk at once and across a resume; an offline W&B run read back from its files."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from trajectory_transformer.configuration import LoggerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import Measurement
from trajectory_transformer.training.loggers import (
    MetricsFile,
    RunLabels,
    finish_loggers,
    log_artifacts,
    log_evaluation,
    log_measurements,
    make_loggers,
    wandb_key_is_configured,
)

RESULTS = {
    "behavior": {"return_mean": 1.5, "return_max": 2.5, "episodes": 3},
    "deadline": {"ms": 20.0, "plans": 12, "shortened": 3, "narrowed": 0, "late": 1},
    "episodes": [
        {"seed": i, "return": 10.0 * i, "length": 5, "terminated": True, "success": None, "normalized_score": None}
        for i in range(2)
    ],
    "summary": {"return_mean": 5.0, "plan_latency_ms": {"p50": 1.0}},
}
DATASET = {"ids": ["tests/one-v0"], "fingerprint": "0123456789abcdef", "returns": [1.0, 2.0]}


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B account, and the environment variables that a logger sets gone afterwards."""
    for name in ("WANDB_API_KEY", "WANDB_DIR", "WANDB_DATA_DIR", "WANDB_CACHE_DIR", "WANDB_MODE"):
        monkeypatch.setenv(name, "x")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


class TestMetricsFile:
    def test_each_row_is_on_disk_at_once(self, tmp_path: Path) -> None:
        logger = MetricsFile(tmp_path / "metrics.csv")
        for step in range(3):
            logger.log_metrics({"loss": 0.5 * step}, step)
            assert [(row["step"], float(row["loss"])) for row in read(tmp_path / "metrics.csv")] == [
                (str(i), 0.5 * i) for i in range(step + 1)
            ]

    def test_a_new_metric_adds_a_column(self, tmp_path: Path) -> None:
        logger = MetricsFile(tmp_path / "metrics.csv")
        logger.log_metrics({"a": 1.0}, 1)
        logger.log_metrics({"b": torch.tensor(2.0).item()}, 1)
        assert read(tmp_path / "metrics.csv") == [
            {"step": "1", "a": "1.0", "b": ""},
            {"step": "1", "a": "", "b": "2.0"},
        ]

    def test_a_resumed_run_repeats_no_row(self, tmp_path: Path) -> None:
        killed = MetricsFile(tmp_path / "metrics.csv")
        for step in (10, 20, 30):
            killed.log_metrics({"loss": float(step)}, step)
        with (tmp_path / "metrics.csv").open("a") as file:
            file.write("4")  # as a killed process leaves it
        resumed = MetricsFile(tmp_path / "metrics.csv")
        resumed.log_metrics({"loss": -20.0}, 20)
        assert [(row["step"], row["loss"]) for row in read(tmp_path / "metrics.csv")] == [
            ("10", "10.0"),
            ("20", "-20.0"),
        ]

    def test_a_full_disk_costs_rows_and_one_warning(self, tmp_path: Path) -> None:
        code = (
            "import resource, signal, sys; from pathlib import Path\n"
            "from trajectory_transformer.training.loggers import MetricsFile\n"
            "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
            "_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)\n"
            "logger = MetricsFile(Path(sys.argv[1]))\n"
            "for step in range(200):\n"
            "    resource.setrlimit(resource.RLIMIT_FSIZE, (108 if 0 < step < 190 else 10_000, hard))\n"
            "    logger.log_metrics({'loss': 0.123456789}, step)\n"
        )
        file = tmp_path / "metrics.csv"
        done = subprocess.run([sys.executable, "-c", code, str(file)], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("cannot be written") == 1
        assert [row["step"] for row in read(file)][-10:] == [str(step) for step in range(190, 200)]
        assert {row["loss"] for row in read(file)} == {"0.123456789"}  # no row is half of one and half of another
        assert len(read(file)) < 20

    def test_a_killed_process_loses_nothing(self, tmp_path: Path) -> None:
        code = (
            "import os, signal, sys; from pathlib import Path\n"
            "from trajectory_transformer.training.loggers import MetricsFile\n"
            "logger = MetricsFile(Path(sys.argv[1]))\n"
            "for step in range(100): logger.log_metrics({'loss': 1.0}, step)\n"
            "os.kill(os.getpid(), signal.SIGKILL)"
        )
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "metrics.csv")])
        assert done.returncode == -9
        assert len(read(tmp_path / "metrics.csv")) == 100


def test_csv_is_the_only_logger_unless_another_is_chosen(tmp_path: Path) -> None:
    (logger,) = make_loggers(LoggerConfig(), tmp_path, {}, RunLabels())
    assert isinstance(logger, MetricsFile)
    log_evaluation([logger], RESULTS)  # nothing to tell it
    log_artifacts([logger], tmp_path / "best.ckpt", DATASET)
    finish_loggers([logger])
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("no_key")
def test_a_key_is_found_in_the_environment_and_in_netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not wandb_key_is_configured()
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password not-a-key\n")
    (tmp_path / "netrc").chmod(0o600)
    assert wandb_key_is_configured()
    (tmp_path / "netrc").write_text("machine example.org login user password not-a-key\n")
    assert not wandb_key_is_configured()
    monkeypatch.setenv("WANDB_API_KEY", "not-a-key")
    assert wandb_key_is_configured()


@pytest.mark.usefixtures("no_key")
def test_online_without_a_key_stops_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"logger\.offline=true"):
        make_loggers(LoggerConfig("wandb", offline=False), tmp_path, {}, RunLabels())


@pytest.mark.usefixtures("no_key")
def test_with_a_key_but_no_network_it_goes_on_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    loggers = make_loggers(LoggerConfig("wandb"), tmp_path, {}, RunLabels())
    finish_loggers(loggers)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "127.0.0.1:9" in warning.getMessage()


@pytest.mark.usefixtures("no_key")
class TestOffline:
    def record(self, directory: Path) -> dict[str, Any]:
        """Log a small run and read it back from its files."""
        config = LoggerConfig("wandb", project="tests", tags=["mine"])
        loggers = make_loggers(config, directory, {"model": {"n_layer": 3}}, RunLabels("my-sweep", "train", ("quick",)))
        for step, loss in enumerate((0.5, 0.25, 0.75)):
            for logger in loggers:
                logger.log_metrics({"val/loss": loss}, step)
        checkpoint = directory / "best.ckpt"
        checkpoint.write_bytes(b"weights")
        (directory / "set").mkdir()
        (directory / "set" / "main_data.hdf5").touch()
        log_artifacts(loggers, checkpoint, DATASET, [directory / "set", directory / "elsewhere"])
        log_evaluation(loggers, RESULTS)
        log_measurements(loggers, [Measurement("layer 1", "mass_past", 0.5, None, None, 3)])
        finish_loggers(loggers)
        (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
        wandb = str(Path(sys.executable).with_name("wandb"))
        done = subprocess.run(
            [wandb, "leet", "inspect", "--summary", "--json", str(file)], capture_output=True, text=True
        )
        self.records = subprocess.run(
            [wandb, "leet", "inspect", "--json", str(file)], capture_output=True, text=True
        ).stdout
        return json.loads(done.stdout)

    def test_it_holds_config_summary_group_table_and_artifacts(self, tmp_path: Path) -> None:
        run = self.record(tmp_path)
        assert run["config"]["model"] == {"n_layer": 3}
        assert run["state"] == "finished"
        assert run["project"] == "tests"
        assert run["summary"]["evaluation/return_mean"] == 5.0
        assert run["summary"]["evaluation/plan_latency_ms/p50"] == 1.0
        assert run["summary"]["behavior/return_max"] == 2.5
        assert run["summary"]["deadline/shortened"] == 3
        assert run["summary"]["layer 1/mass_past"] == 0.5
        assert run["summary"]["val/loss"] == {"min": 0.25}
        assert run["summary"]["evaluation/episodes"]["nrows"] == 2
        (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluation/*.json")
        assert json.loads(table.read_text())["data"][1][:3] == [1, 10.0, 5]
        assert f'"ref":"{(tmp_path / "set" / "main_data.hdf5").as_uri()}"' in self.records  # where the set lies
        assert "elsewhere" not in self.records
        for word in ("my-sweep", '"train"', "quick", "mine", "dataset-0123456789ab", "0123456789abcdef"):
            assert word in self.records
        staged = [path.read_bytes() for path in (tmp_path / "wandb" / "data").rglob("*") if path.is_file()]
        assert b"weights" in staged  # beside the run, so that it travels with the folder

    def test_a_resumed_run_keeps_its_id(self, tmp_path: Path) -> None:
        ids = []
        for _ in range(2):
            loggers = make_loggers(LoggerConfig("wandb"), tmp_path, {}, RunLabels())
            ids.append(loggers[1].version)
            finish_loggers(loggers)
        assert ids[0] == ids[1]
