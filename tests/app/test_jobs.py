"""A run's directory, record, exit code and environment."""

import errno
import json
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
import yaml

from trajectory_transformer.app import experiment, jobs
from trajectory_transformer.app.commands import evaluate_command, resume_command, sweep_command
from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.app.page import PAGE, SWEEP, write_run_page, write_sweep_page
from trajectory_transformer.app.schema import run_name
from trajectory_transformer.configuration import EnvironmentConfig, TrainConfig, TrainerConfig
from trajectory_transformer.data import sources
from trajectory_transformer.errors import UserError
from trajectory_transformer.files import FolderInUseError, FolderLock, is_in_use

from .conftest import Runs


def test_a_run_gets_its_directory_its_config_and_a_record(
    train: Callable[..., int], runs: Runs, tmp_path: Path
) -> None:
    assert train("seed=3", "model=base", "hydra.run.dir=here") == 0
    (config, run) = runs.calls[0]
    assert run.directory.absolute() == tmp_path / "here"
    assert not run.resume
    saved = yaml.safe_load((tmp_path / "here" / "config.yaml").read_text())
    assert saved["seed"] == config.seed == 3
    assert saved["model"]["n_embd"] == 128
    assert RunRecord.read(tmp_path / "here") == RunRecord(
        "finished",
        {"seed": "3", "model": "base"},
        3.0,
        command="python train.py seed=3 model=base hydra.run.dir=here",
    )


def test_runs_are_kept_below_logs(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train() == 0
    assert [path.parts[:3] for path in [runs.calls[0][1].directory.relative_to(tmp_path)]] == [
        ("logs", "train", "runs")
    ]


def test_a_directory_that_holds_a_run_is_not_used_again(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train("hydra.run.dir=here") == 0
    assert train("hydra.run.dir=here") == 2
    assert "resume=here" in capsys.readouterr().err
    assert len(runs.calls) == 1


@pytest.mark.parametrize("argument", ["hydra.run.dir=file/run", "hydra.sweep.dir=file/sweep"])
def test_a_directory_that_cannot_be_written_is_one_sentence(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path, argument: str
) -> None:
    (tmp_path / "file").touch()
    assert train(*(["-m", "seed=0,1"] if "sweep" in argument else []), argument) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message
    assert len(message.strip().splitlines()) == 1
    assert not runs.calls


def test_a_users_mistake_within_a_run_is_one_sentence(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    runs.error = UserError("the data set is not there")
    assert train("hydra.run.dir=here") == 1
    assert capsys.readouterr().err.strip() == "error: the data set is not there"
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert (record.status, record.reason) == ("failed", "the data set is not there")


@pytest.mark.parametrize("code", [130, 143, 128 + signal.SIGUSR1])
def test_an_interruption_keeps_its_exit_code(train: Callable[..., int], runs: Runs, tmp_path: Path, code: int) -> None:
    runs.error = SystemExit(code)
    assert train("hydra.run.dir=here") == code
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert record.status == "interrupted"


@pytest.mark.parametrize("saved", [False, True])
def test_an_interruption_tells_how_to_resume(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path, saved: bool
) -> None:
    """By a command that resumes the run."""
    runs.error = SystemExit(143)
    checkpoints = tmp_path / "runs" / "a b" / "checkpoints"
    if saved:
        checkpoints.mkdir(parents=True)
        (checkpoints / "last.ckpt").touch()
    mine = "+trainer.callbacks.mine._target_=lightning.pytorch.callbacks.TQDMProgressBar"
    assert train("hydra.run.dir=runs/a b", mine) == 143
    (line,) = capsys.readouterr().err.splitlines()
    told, command = line.split("; continue with: ")
    assert told == ("saved" if saved else "nothing is saved yet")
    assert command == "python train.py 'resume=runs/a b' 'allow=[lightning]'"
    runs.error = None
    assert train(*shlex.split(command)[2:]) == 0
    assert runs.calls[-1][1].resume is saved


def test_an_interruption_before_the_run_began_tells_nothing(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(sources, "require_available", stop)
    assert train("hydra.run.dir=here") == 130
    assert capsys.readouterr().err == ""
    assert not runs.calls


def test_a_finished_run_tells_where_its_page_is_and_how_to_plan_again(
    train: Callable[..., int], evaluate: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
) -> None:  # fmt: skip
    def run(config: TrainConfig, run: experiment.RunContext) -> float:
        checkpoints = run.directory / "checkpoints"
        checkpoints.mkdir()
        for name in ("best.ckpt", "best_return.ckpt"):
            (checkpoints / name).touch()
        return runs(config, run)

    monkeypatch.setattr(experiment, "run_training", run)
    page, best = (
        "run: {0}\npage: {0}/index.html\n",
        "plan again: python evaluate.py checkpoint={0}/checkpoints/best.ckpt\n",
    )
    assert train("hydra.run.dir=one") == 0
    assert capsys.readouterr().out == (page + best).format("one")
    assert train("hydra.run.dir=two", "evaluation.every=5", "evaluation.choose=return") == 0
    assert capsys.readouterr().out == (page + best.replace("best.", "best_return.")).format("two")
    assert train("hydra.run.dir=three", "learner=ensemble") == 0  # which does not act
    assert capsys.readouterr().out == page.format("three")
    assert train("-m", "hydra.sweep.dir=sweep", "seed=0,1") == 0  # whose table names the folders
    assert "plan again" not in capsys.readouterr().out


@pytest.mark.parametrize(("script", "before"), [("train.py", "python "), ("/bin/trajectory-transformer-train", "")])
def test_python_stands_before_a_script_and_not_before_an_installed_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, script: str, before: str
) -> None:
    monkeypatch.setattr(sys, "argv", [script, "-m", "seed=0,1"])
    assert sweep_command(Path("sweep")) == f"{before}{script} -m seed=0,1 hydra.sweep.dir=sweep"
    assert jobs.context(jobs.Job(tmp_path)).command == f"{before}{script} -m seed=0,1"
    write_run_page(tmp_path, "failed", None, "")
    assert f">{before}{script} -m seed=0,1<" in (tmp_path / PAGE).read_text()
    (tmp_path / SWEEP).write_text("job,status\n")
    write_sweep_page(tmp_path)
    assert f">{before}{script} -m seed=0,1<" in (tmp_path / PAGE).read_text()


@pytest.mark.parametrize("folder", ["plain/2026-11-28_10-00-00", "seed=1,x=2", "Läufe mit 'Namen' (2)"])
def test_the_checkpoint_s_path_is_quoted_for_shell_and_hydra(
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    folder: str,
) -> None:
    """The command finds the file, which is refused for its contents."""
    monkeypatch.setattr(sys, "argv", ["train.py"])  # pytest's workers have another
    checkpoint = tmp_path / folder / "best.ckpt"
    checkpoint.parent.mkdir(parents=True)
    checkpoint.touch()
    words = shlex.split(evaluate_command(checkpoint, TrainConfig(environment=EnvironmentConfig(modules=["json"]))))
    assert words == ["python", "evaluate.py", words[2], "allow=[json]", "environment.modules=[json]"]
    assert evaluate(*words[2:]) == 1
    assert f"'{folder}/best.ckpt' is" in capsys.readouterr().err


def test_what_only_training_uses_needs_no_permission_to_evaluate_but_to_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["train.py"])
    options = TrainConfig(trainer=TrainerConfig(metrics={"own": {"_target_": "json.JSONDecoder"}}))
    assert evaluate_command(Path("a.ckpt"), options) == "python evaluate.py checkpoint=a.ckpt"
    assert resume_command(Path("run"), options) == "python train.py resume=run 'allow=[json]'"
    options.model.block = {"_target_": "json.JSONDecoder"}
    assert evaluate_command(Path("a.ckpt"), options) == "python evaluate.py checkpoint=a.ckpt 'allow=[json]'"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_outside_of_training_leaves_no_running_run(
    train: Callable[..., int], runs: Runs, tmp_path: Path, number: signal.Signals
) -> None:
    before = signal.getsignal(number)
    runs.signal = number
    assert train("hydra.run.dir=here") == 128 + number
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert record.status == "interrupted"
    assert signal.getsignal(number) is before


def test_a_config_that_cannot_be_written_is_one_sentence(
    train: Callable[..., int],
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(file: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(jobs, "write_whole", full)
    assert train("hydra.run.dir=here") == 1
    assert capsys.readouterr().err.strip().endswith("config.yaml cannot be written: No space left on device")
    assert not runs.calls


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("+trainer.callbacks.x._target_=torch.nn.Identity", "x._target_=torch.nn.Identity is not a Callback"),
        ("+trainer.callbacks.x=3", "trainer.callbacks.x"),
    ],
)
def test_a_callback_that_is_none_is_named(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], argument: str, words: str
) -> None:
    assert train("hydra.run.dir=here", argument) == 2
    assert words in capsys.readouterr().err


class TestFolders:
    """A folder belongs to one process at a time, whichever came first."""

    @pytest.fixture(autouse=True)
    def stop_the_clock(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("trajectory_transformer.app.schema.time.strftime", lambda _: "2026-01-01_00-00-00")

    def test_runs_of_the_same_second_get_a_suffix(self, train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
        for seed in range(3):
            assert train(f"seed={seed}") == 0
        folders = [tmp_path / "logs/train/runs" / f"2026-01-01_00-00-00{suffix}" for suffix in ("", "-2", "-3")]
        assert [run.directory.absolute() for _, run in runs.calls] == folders
        for seed, folder in enumerate(folders):
            assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed

    def test_sweeps_of_the_same_second_get_a_suffix_too(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path
    ) -> None:
        for seed in range(2):
            assert train("-m", f"seed={seed}") == 0
        folder = tmp_path / "logs/train/multiruns"
        assert [run.directory for _, run in runs.calls] == [
            folder / "2026-01-01_00-00-00/0",
            folder / "2026-01-01_00-00-00-2/0",
        ]

    @pytest.mark.parametrize("arguments", [("hydra.run.dir=here",), ("-m", "hydra.sweep.dir=here"), ("resume=here",)])
    def test_a_folder_in_use_is_refused_in_a_sentence(
        self,
        train: Callable[..., int],
        runs: Runs,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        arguments: tuple[str, ...],
    ) -> None:
        (tmp_path / "here").mkdir()
        if arguments[0].startswith("resume"):
            (tmp_path / "here" / "config.yaml").write_text("seed: 1")
        with FolderLock(tmp_path / "here"), FolderLock(tmp_path / "here", ".sweep.lock"):
            assert train(*arguments) == 2
        (line,) = capsys.readouterr().err.strip().splitlines()
        assert f"here is in use by process {os.getpid()}" in line
        assert not runs.calls
        assert train(*arguments) == 0  # as soon as it is free

    @pytest.mark.parametrize("arguments", [("hydra.run.dir=here",), ("-m", "hydra.sweep.dir=here")])
    def test_a_run_and_a_sweep_hold_their_folders_while_they_run(
        self, train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, arguments: tuple[str, ...]
    ) -> None:
        held = []

        def run_training(config: TrainConfig, run: experiment.RunContext) -> float:
            held.append(is_in_use(run.directory))
            if arguments[0] == "-m":
                with pytest.raises(FolderInUseError):
                    FolderLock(tmp_path / "here", ".sweep.lock")
            return 0.0

        monkeypatch.setattr(experiment, "run_training", run_training)
        assert train(*arguments) == 0
        assert held == [True]
        assert not any(is_in_use(path.parent) for path in tmp_path.rglob("status.json"))

    def test_what_killed_writers_left_in_a_run_is_removed(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path
    ) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here")
        (tmp_path / "here" / ".metrics.csv.99.partial").touch()
        runs.error = None
        assert train("resume=here") == 0
        assert not list((tmp_path / "here").glob("*.partial"))


class TestRanks:
    """SLURM or torchrun start every process of a run with the same command."""

    @pytest.mark.parametrize("launcher", ["slurm", "torchrun"])
    def test_they_share_the_first_ones_folder_and_leave_it_alone(
        self, train: Callable[..., int], runs: Runs, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, launcher: str
    ) -> None:
        shared = {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"}
        if launcher == "torchrun":
            shared = {"TORCHELASTIC_RUN_ID": "abc", "WORLD_SIZE": "2"}
        rank = {"slurm": "SLURM_PROCID", "torchrun": "RANK"}[launcher]
        for name, value in shared.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(rank, "0")
        assert train() == 0
        directory = tmp_path / "logs" / "train" / "runs" / {"slurm": "slurm-4711", "torchrun": "torchrun-abc"}[launcher]
        RunRecord("running").write(directory)  # the first process is still at it
        before = {path: path.stat().st_mtime_ns for path in (directory / "config.yaml", directory / "status.json")}
        monkeypatch.setenv(rank, "1")
        assert train() == 0
        assert [run.directory.absolute() for _, run in runs.calls] == [directory, directory]
        assert {path: path.stat().st_mtime_ns for path in before} == before

    def test_a_finished_run_is_finished_for_all(
        self, train: Callable[..., int], runs: Runs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        assert train("trainer=slurm") == 0
        monkeypatch.setenv("SLURM_PROCID", "1")
        assert train("trainer=slurm") == 0
        assert len(runs.calls) == 1

    def test_torchrun_without_a_name_goes_by_its_process(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
        monkeypatch.setenv("WORLD_SIZE", "2")
        assert run_name(False) == f"torchrun-{os.getppid()}"

    def test_a_single_process_in_a_shell_goes_by_the_time(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("SLURM_JOB_ID", "4711")
        monkeypatch.setenv("SLURM_NTASKS", "2")
        monkeypatch.setenv("SLURM_STEP_ID", "0")
        monkeypatch.setenv("SLURM_JOB_NAME", "interactive")
        assert run_name(False).startswith("20")

    @pytest.mark.parametrize("step", [None, str(0xFFFFFFFB)])
    def test_a_batch_script_without_srun_goes_by_the_time(
        self, monkeypatch: pytest.MonkeyPatch, step: str | None
    ) -> None:
        """The second number is that of SLURM's own step for the script."""
        for name, value in {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "4", "SLURM_STEP_ID": step}.items():
            if value is not None:
                monkeypatch.setenv(name, value)
        assert run_name(False).startswith("20")

    @pytest.mark.parametrize("requeued", [False, True])
    def test_two_steps_of_a_slurm_job_have_folders_of_their_own(
        self, monkeypatch: pytest.MonkeyPatch, requeued: bool
    ) -> None:
        for name, value in {"SLURM_JOB_ID": "4711", "SLURM_NTASKS": "2"}.items():
            monkeypatch.setenv(name, value)
        names = []
        for step in ("0", "1", "2"):
            monkeypatch.setenv("SLURM_STEP_ID", step)
            names.append(run_name(requeued))
        assert names == ["slurm-4711", "slurm-4711.1", "slurm-4711.2"]


def test_the_environment_is_as_before_a_run(train: Callable[..., int], runs: Runs) -> None:
    set_by_the_command = {"HYDRA_FULL_ERROR": "1", "GOMP_SPINCOUNT": "0"}  # once, for the whole process
    before = dict(os.environ)
    assert train() == 0
    assert {**os.environ, **set_by_the_command} == {**before, **set_by_the_command}


@pytest.mark.parametrize("subdir", ["${hydra.job.num}", "deep/${hydra.job.num}"])
def test_a_sweep_s_job_knows_what_tells_it_apart(train: Callable[..., int], runs: Runs, subdir: str) -> None:
    varied = ["seed=0,1", "optimizer.learning_rate=1e-3,1e-4", "model=base", "logger.tags=[a,b]"]
    assert train("-m", *varied, "hydra.sweep.dir=sweep", f"hydra.sweep.subdir={subdir}") == 0
    assert [run.differs for _, run in runs.calls] == [
        f"seed={seed} optimizer.learning_rate={rate}" for seed in (0, 1) for rate in ("0.001", "0.0001")
    ]


def test_a_run_alone_differs_from_nothing(train: Callable[..., int], runs: Runs) -> None:
    assert train("seed=1") == 0
    assert runs.calls[0][1].differs is None


def test_a_search_s_trials_are_told_apart_by_their_values(train: Callable[..., int], runs: Runs) -> None:
    assert train("tune=optimizer", "hydra.run.dir=search", "tune.trials=1") == 0
    assert f"optimizer.learning_rate={runs.calls[0][0].optimizer.learning_rate}" in str(runs.calls[0][1].differs)


@pytest.mark.parametrize("text", ["hydra: 3", "[", "hydra: {overrides: {task: null}}"])
def test_a_sweep_s_file_that_says_nothing_costs_a_job_no_more_than_a_short_name(tmp_path: Path, text: str) -> None:
    (tmp_path / "multirun.yaml").write_text(text)
    assert jobs.what_differs(jobs.Job(tmp_path / "0", {"seed": "1", "model": "base"}, "sweep")) == "seed=1 model=base"


@pytest.mark.parametrize("fields", [{"parameters": None}, {"parameters": {"seed": [1]}}, {"score": "high"}])
def test_a_damaged_record_is_as_none(tmp_path: Path, fields: dict[str, object]) -> None:
    (tmp_path / "status.json").write_text(json.dumps({"status": "running", **fields}))
    assert RunRecord.read(tmp_path) is None


def test_matplotlib_does_not_report_its_font_cache() -> None:
    """With a new home directory that report would be the first line that a user sees."""
    assert not logging.getLogger("matplotlib.font_manager").isEnabledFor(logging.INFO)
