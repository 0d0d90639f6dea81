"""A run's directory, record, exit code and environment."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trajectory_transformer.errors import UserError
from trajectory_transformer.run_record import RunRecord

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
    assert RunRecord.read(tmp_path / "here") == RunRecord("finished", {"seed": "3", "model": "base"}, 3.0)


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
    assert RunRecord.read(tmp_path / "here") == RunRecord("failed", {}, None, "the data set is not there")


@pytest.mark.parametrize("code", [130, 143])
def test_an_interruption_keeps_its_exit_code(train: Callable[..., int], runs: Runs, tmp_path: Path, code: int) -> None:
    runs.error = SystemExit(code)
    assert train("hydra.run.dir=here") == code
    record = RunRecord.read(tmp_path / "here")
    assert record is not None
    assert record.status == "interrupted"


def test_the_environment_is_as_before_a_run(train: Callable[..., int], runs: Runs) -> None:
    before = dict(os.environ)
    assert train() == 0
    assert {**os.environ, "HYDRA_FULL_ERROR": "1"} == {**before, "HYDRA_FULL_ERROR": "1"}
