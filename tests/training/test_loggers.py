"""metrics.csv, written at once and across a resume; an offline W&B run read back from its files."""

import csv
import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image

from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import LoggerConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import Measurement
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.reachability import wandb_key_is_configured
from trajectory_transformer.training import loggers as loggers_file
from trajectory_transformer.training.fit import fit
from trajectory_transformer.training.loggers import (
    MetricsFile,
    RunLabels,
    finish_loggers,
    log_artifacts,
    log_evaluation,
    log_measurements,
    log_pictures,
    log_sweep,
    make_loggers,
    require_loggers,
)

from .small_run import small_config, small_datamodule

RESULTS = {
    "behavior": {"return_mean": 1.5, "return_max": 2.5, "episodes": 3},
    "deadline": {"ms": 20.0, "plans": 12, "shortened": 3, "narrowed": 0, "late": 1},
    "episodes": [
        {"seed": i, "return": 10.0 * i, "length": 5, "terminated": True, "success": None, "normalized_score": None}
        for i in range(2)
    ],
    "summary": {"return_mean": 5.0, "plan_latency_ms": {"p50": 1.0}},
}
VARIABLES = {
    "PROJECT": "a-project", "NAME": "a-name", "RUN_GROUP": "a-group", "JOB_TYPE": "a-job", "TAGS": "a, b",
    "RUN_ID": "an-id", "ENTITY": "an-entity", "INIT_TIMEOUT": "60",
}  # fmt: skip
DATASET = {"ids": ["tests/one-v0"], "fingerprint": "0123456789abcdef", "returns": [1.0, 2.0]}


@pytest.fixture
def no_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No W&B account; environment variables that a logger sets are removed afterwards."""
    for name in (f"WANDB_{part}" for part in ("API_KEY", "DIR", "DATA_DIR", "CACHE_DIR", "MODE", *VARIABLES)):
        monkeypatch.setenv(name, "x")  # so that monkeypatch restores it
        monkeypatch.delenv(name)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
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

    def test_a_resumed_run_keeps_what_came_before_the_row_that_it_begins_with(self, tmp_path: Path) -> None:
        killed = MetricsFile(tmp_path / "metrics.csv")
        for step, name in ((10, "loss"), (20, "loss"), (20, "return"), (20, "later"), (30, "loss")):
            killed.log_metrics({name: float(step), "epoch": 0.5}, step)
        resumed = MetricsFile(tmp_path / "metrics.csv")
        resumed.log_metrics({"return": -20.0, "epoch": 0.5}, 20)
        assert [(row["step"], row["loss"], row["return"], row["later"]) for row in read(tmp_path / "metrics.csv")] == [
            ("10", "10.0", "", ""),
            ("20", "20.0", "", ""),
            ("20", "", "-20.0", ""),
        ]

    @pytest.mark.slow
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

    @pytest.mark.slow
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
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody listens there
    loggers = make_loggers(LoggerConfig("wandb"), tmp_path, {}, RunLabels())
    finish_loggers(loggers)
    assert len(list(tmp_path.glob("wandb/offline-run-*"))) == 1
    (warning,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert "127.0.0.1:9" in warning.getMessage()
    assert "anonymous" not in "".join(capfd.readouterr())  # a setting that W&B warns of


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("silent", [None, "false"])
def test_an_offline_run_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
    silent: str | None,
) -> None:
    """With the command that uploads it; W&B's own lines come if the user asks for them, and its errors always."""
    import wandb

    monkeypatch.delenv("WANDB_QUIET", raising=False)
    monkeypatch.delenv("WANDB_SILENT", raising=False)
    if silent is not None:
        monkeypatch.setenv("WANDB_SILENT", silent)
    caplog.set_level("INFO")
    monkeypatch.setattr(logging, "raiseExceptions", False)  # of handlers of earlier tests, whose streams are closed
    wandb.teardown()  # what an earlier test's run has set
    loggers = make_loggers(LoggerConfig("wandb"), tmp_path, {}, RunLabels())
    loggers[1].log_metrics({"val/loss": 1.0}, 1)
    wandb.termerror("a real error")
    finish_loggers(loggers)
    (folder,) = tmp_path.glob("wandb/offline-run-*")
    (line,) = [message for message in caplog.messages if message.startswith("W&B")]
    wanted = "no key is configured, so this run is recorded offline; upload it later with: wandb sync"
    assert line == f"W&B: {wanted} {folder}"
    printed = "".join(capfd.readouterr())
    assert "a real error" in printed
    assert ("Run summary" in printed) == (silent is not None)
    assert silent is not None or printed.count("\n") == 1


@pytest.mark.usefixtures("no_key")
@pytest.mark.parametrize("asked", ["option", "variable"])
def test_online_where_nothing_answers_stops_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asked: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "x" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    if asked == "variable":
        monkeypatch.setenv("WANDB_MODE", "online")
    with pytest.raises(UserError, match=r"cannot be reached .*127\.0\.0\.1:9.*logger\.offline=true"):
        make_loggers(LoggerConfig("wandb", offline=False if asked == "option" else None), tmp_path, {}, RunLabels())


@pytest.mark.usefixtures("no_key")
class TestLabels:
    """The arguments that W&B is started with; the client itself is replaced."""

    @pytest.fixture
    def started(self, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        calls: list[dict[str, Any]] = []

        class Client(loggers_file.WandbLogger):
            def __init__(self, **arguments: Any) -> None:
                calls.append(arguments)
                self._experiment = MagicMock()

            @property
            def experiment(self) -> Any:
                return self._experiment

        monkeypatch.setattr(loggers_file, "WandbLogger", Client)
        return calls

    def test_its_own_variables_count_where_no_option_was_given(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: list[dict[str, Any]]
    ) -> None:
        for name, value in VARIABLES.items():
            monkeypatch.setenv(f"WANDB_{name}", value)
        monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
        make_loggers(LoggerConfig("wandb"), tmp_path / "run", {}, RunLabels("sweep", "train", ("quick",)))
        names = ("project", "name", "group", "job_type", "tags", "id", "entity", "save_dir")
        expected = ["a-project", "a-name", "a-group", "a-job", ["a", "b", "quick"], "an-id", None]
        assert [started[0][name] for name in names] == [*expected, str(tmp_path / "elsewhere")]  # entity: the client's
        monkeypatch.delenv("WANDB_RUN_ID")
        given = LoggerConfig("wandb", "p", "e", "n", "g", "j", ["t"])
        make_loggers(given, tmp_path / "run", {}, RunLabels("sweep", "train", ("quick",)))
        assert [started[1][name] for name in names[:7]] == ["p", "n", "g", "j", ["t", "quick"], "an-id", "e"]

    def test_without_either_the_run_names_itself(self, tmp_path: Path, started: list[dict[str, Any]]) -> None:
        make_loggers(LoggerConfig("wandb"), tmp_path / "run", {}, RunLabels("sweep", "train", ("quick",)))
        found = [started[0][name] for name in ("project", "name", "group", "job_type", "tags", "save_dir")]
        assert found == ["trajectory-transformer", "run", "sweep", "train", ["quick"], str(tmp_path / "run")]

    @pytest.mark.parametrize(
        ("option", "variable", "differs", "name"),
        [
            (None, None, "seed=1 model.n_layer=2", "seed=1 model.n_layer=2"),
            (None, "mine", "seed=1", "mine seed=1"),
            ("own", "mine", "seed=1", "own seed=1"),
            (None, None, "", "7"),
            (None, None, "x" * 200, "x" * 128),
        ],
    )
    def test_a_sweep_s_job_is_named_after_what_differs(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        started: list[dict[str, Any]],
        option: str | None,
        variable: str | None,
        differs: str,
        name: str,
    ) -> None:
        monkeypatch.setenv("WANDB_RUN_ID", "an-id")
        if variable is not None:
            monkeypatch.setenv("WANDB_NAME", variable)
        make_loggers(LoggerConfig("wandb", run_name=option), tmp_path / "7", {}, RunLabels("sweep", differs=differs))
        assert started[0]["name"] == name
        assert started[0]["id"] != "an-id"  # all jobs would be one run


def inspected(file: Path, *options: str) -> str:
    """An offline run's records as JSON."""
    words = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", *options, str(file)]
    return subprocess.run(words, capture_output=True, text=True).stdout


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
        (directory / "plots").mkdir()
        Image.new("RGB", (4, 4)).save(directory / "plots" / "returns.png")
        (directory / "videos").mkdir()
        (directory / "videos" / "episode_0.mp4").write_bytes(b"a film")
        log_pictures(loggers, directory)
        finish_loggers(loggers)
        (file,) = directory.glob("wandb/offline-run-*/run-*.wandb")
        self.records = inspected(file)
        return json.loads(inspected(file, "--summary"))

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
        assert run["summary"]["plots/returns"]["_type"] == "image-file"
        assert run["summary"]["videos/episode_0"]["_type"] == "video-file"
        (table,) = tmp_path.glob("wandb/offline-run-*/files/media/table/evaluation/*.json")
        assert json.loads(table.read_text())["data"][1][:3] == [1, 10.0, 5]
        assert f'"ref":"{(tmp_path / "set" / "main_data.hdf5").as_uri()}"' in self.records  # where the set lies
        assert "elsewhere" not in self.records
        for word in ("my-sweep", '"train"', "quick", "mine", "dataset-0123456789ab", "0123456789abcdef"):
            assert word in self.records
        staged = [path.read_bytes() for path in (tmp_path / "wandb" / "data").rglob("*") if path.is_file()]
        assert b"weights" in staged  # beside the run, so that it travels with the folder

    def test_a_sweep_has_a_run_of_its_own_with_its_table(self, tmp_path: Path) -> None:
        """Numbers are stored as numbers, for filters and plots; the run is in the group of its jobs."""
        sweep = tmp_path / "layers"
        sweep.mkdir()
        Image.new("RGB", (4, 4)).save(sweep / "tradeoff.png")
        table = [["job", "model", "score", "reason"], ["0", "base", "1.5", ""], ["1", "tiny", "", "disk full"]]
        log_sweep(LoggerConfig("wandb", project="tests"), sweep, table)
        (file,) = sweep.glob("wandb/offline-run-*/run-*.wandb")
        records = inspected(file)
        assert '"run_group":"layers"' in records
        assert '"job_type":"sweep"' in records
        (written,) = sweep.glob("wandb/offline-run-*/files/media/table/sweep/*.json")
        content = json.loads(written.read_text())
        assert content["columns"] == table[0]
        assert content["data"] == [[0, "base", 1.5, None], [1, "tiny", None, "disk full"]]
        assert json.loads(inspected(file, "--summary"))["summary"]["sweep/tradeoff"]["_type"] == "image-file"

    def test_a_resumed_run_keeps_its_id_and_holds_its_whole_history(self, tmp_path: Path) -> None:
        ids = []
        for steps in (range(1, 6), range(4, 8)):  # it was killed after update 5, and had saved update 3
            loggers = make_loggers(LoggerConfig("wandb"), tmp_path, {}, RunLabels())
            ids.append(loggers[1].version)
            for step in steps:
                for logger in loggers:
                    logger.log_metrics({"train/loss": 10.0 + step}, step)
            finish_loggers(loggers)
            section = {"trajectory_transformer": {"format": 1}}
            write_checkpoint(tmp_path / "checkpoints" / "last.ckpt", {**section, "global_step": 3})
        assert ids[0] == ids[1]
        latest = max(tmp_path.glob("wandb/offline-run-*/run-*.wandb"), key=lambda file: file.stat().st_mtime_ns)
        history = [line for line in inspected(latest).splitlines() if '"type":"history"' in line]
        losses = [float(found) for line in history for found in re.findall(r'"train/loss":([0-9.]+)', line)]
        assert losses == [11.0, 12.0, 13.0, 14.0, 15.0, 16.0, 17.0]


OWN = """
import json
from pathlib import Path

from lightning.pytorch.loggers import Logger


class JsonLines(Logger):
    name, version = "lines", 0

    def __init__(self, save_dir, title="run"):
        super().__init__()
        self.file = Path(save_dir) / f"{title}.jsonl"

    def log_hyperparams(self, params):
        self._write({"options": params})

    def log_metrics(self, metrics, step=None):
        self._write({"metrics": metrics, "step": step})

    def finalize(self, status):
        self._write({"status": status})

    def _write(self, entry):
        with self.file.open("a") as file:
            print(json.dumps(entry), file=file)


class Unusable(JsonLines):
    def __init__(self):
        raise ModuleNotFoundError("the client is not installed.\\nTry pip install client")


class NoLogger:
    pass
"""


class TestExtraLoggers:
    @pytest.fixture(autouse=True)
    def package(self, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
        folder = tmp_path_factory.mktemp("path")
        (folder / "my_loggers.py").write_text(OWN)
        monkeypatch.syspath_prepend(folder)

    def test_it_is_told_all_in_the_run_s_folder(self, tmp_path: Path) -> None:
        config = LoggerConfig(extra={"lines": {"_target_": "my_loggers.JsonLines", "title": "mine"}})
        loggers = make_loggers(config, tmp_path, {"seed": 3}, RunLabels())
        assert isinstance(loggers[0], MetricsFile)
        loggers[1].log_metrics({"train/loss": 0.5}, 7)
        log_evaluation(loggers, RESULTS, 9)
        log_measurements(loggers, [Measurement("layer 1", "mass_past", 0.5, None, None, 3)])
        log_artifacts(loggers, tmp_path / "best.ckpt", DATASET)
        finish_loggers(loggers, exit_code=1)
        options, training, evaluation, measured, end = map(
            json.loads, (tmp_path / "mine.jsonl").read_text().splitlines()
        )
        assert options == {"options": {"seed": 3}}
        assert training == {"metrics": {"train/loss": 0.5}, "step": 7}
        assert evaluation["metrics"]["evaluation/return_mean"] == 5.0
        assert evaluation["step"] == 9
        assert evaluation["metrics"]["evaluation/plan_latency_ms/p50"] == 1.0
        assert evaluation["metrics"]["deadline/shortened"] == 3
        assert measured["metrics"] == {"layer 1/mass_past": 0.5}
        assert end == {"status": "failed"}
        assert not (tmp_path / "metrics.csv").exists()  # an evaluation has no step to stand at

    def test_a_folder_of_its_own_is_kept(self, tmp_path: Path) -> None:
        (tmp_path / "other").mkdir()
        spec = {"_target_": "my_loggers.JsonLines", "save_dir": str(tmp_path / "other")}
        make_loggers(LoggerConfig(extra={"lines": spec}), tmp_path / "run", {}, RunLabels())
        assert (tmp_path / "other" / "run.jsonl").exists()

    def test_lightning_s_own_logs_a_fit_beside_ours(self, tmp_path: Path) -> None:
        spec = {"_target_": "lightning.pytorch.loggers.CSVLogger", "name": "theirs", "flush_logs_every_n_steps": 1}
        loggers = make_loggers(LoggerConfig(extra={"csv": spec}), tmp_path, {"seed": 3}, RunLabels())
        config = small_config(max_steps=2)
        fit(TransformerLearner(), config, tmp_path, small_datamodule(config), loggers, (), False)
        finish_loggers(loggers)
        theirs = read(tmp_path / "theirs" / "version_0" / "metrics.csv")
        losses = [float(row["val/loss"]) for row in read(tmp_path / "metrics.csv") if row["val/loss"]]
        assert losses
        assert [float(row["val/loss"]) for row in theirs if row["val/loss"]] == losses
        assert "seed: 3" in (tmp_path / "theirs" / "version_0" / "hparams.yaml").read_text()

    @pytest.mark.parametrize(
        ("target", "words"),
        [
            ("my_loggers.NoLogger", r"logger\.extra\.mine\._target_=my_loggers\.NoLogger is not a Logger"),
            ("my_loggers.Missing", "there is no such class"),
            ("my_logers.JsonLines", "there is no module 'my_logers'"),
        ],
    )
    def test_what_is_no_logger_is_refused(self, tmp_path: Path, target: str, words: str) -> None:
        config = LoggerConfig(extra={"mine": {"_target_": target}})
        with pytest.raises(UserError, match=words):
            require_loggers(config)
        with pytest.raises(UserError, match=words):
            make_loggers(config, tmp_path, {}, RunLabels())

    def test_an_option_that_it_lacks_is_named(self, tmp_path: Path) -> None:
        config = LoggerConfig(extra={"mine": {"_target_": "my_loggers.JsonLines", "titel": "x"}})
        with pytest.raises(UserError, match=r"did you mean 'logger\.extra\.mine\.title'"):
            make_loggers(config, tmp_path, {}, RunLabels())

    def test_what_it_needs_is_named(self, tmp_path: Path) -> None:
        config = LoggerConfig(extra={"mine": {"_target_": "my_loggers.Unusable"}})
        with pytest.raises(UserError, match=r"^logger\.extra\.mine: the client is not installed\. Try pip install .*"):
            make_loggers(config, tmp_path, {}, RunLabels())

    @pytest.mark.usefixtures("no_key")
    def test_no_logger_begins_beside_one_that_cannot_be_built(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(loggers_file, "_wandb_logger", MagicMock(side_effect=AssertionError("W&B has begun")))
        extra = {name: {"_target_": f"my_loggers.{name}"} for name in ("JsonLines", "Unusable")}
        with pytest.raises(UserError, match=r"^logger\.extra\.Unusable: "):
            make_loggers(LoggerConfig("wandb", extra=extra), tmp_path, {}, RunLabels())
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("spec", [{}, {"_target_": 3}, "my_loggers.JsonLines", None])
    def test_an_entry_without_a_class_is_refused(self, spec: object) -> None:
        with pytest.raises(UserError, match=r"logger\.extra\.mine needs a Lightning logger"):
            LoggerConfig(extra={"mine": spec})
