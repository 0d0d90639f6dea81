"""tune=… as one job: its trials, going on, and folders that are not its own."""

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from trajectory_transformer.app.run_record import RunRecord
from trajectory_transformer.app.search import with_values
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.errors import UserError

from .conftest import Runs

SEARCH = ("tune=optimizer", "hydra.run.dir=search", "seed=3")


def test_each_trial_is_a_run_with_its_values(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train(*SEARCH, "tune.trials=2") == 0
    directory = tmp_path / "search"
    assert [run.directory.absolute() for _, run in runs.calls] == [directory / "0", directory / "1"]
    assert runs.calls[0][0].optimizer.learning_rate != runs.calls[1][0].optimizer.learning_rate
    for number, (options, run) in enumerate(runs.calls):
        assert (options.tune, run.sweep) == (None, "search")
        saved = yaml.safe_load((directory / str(number) / "config.yaml").read_text())
        assert saved["optimizer"]["learning_rate"] == options.optimizer.learning_rate
        record = RunRecord.read(directory / str(number))
        assert record is not None
        assert record.parameters["optimizer.learning_rate"] == str(options.optimizer.learning_rate)
    whole = RunRecord.read(directory)
    assert whole is not None
    assert (whole.status, whole.score) == ("finished", 3.0)


def test_it_goes_on_in_its_folder(train: Callable[..., int], runs: Runs) -> None:
    assert train(*SEARCH, "tune.trials=2") == 0
    assert train(*SEARCH, "tune.trials=3") == 0
    assert [run.directory.name for _, run in runs.calls] == ["0", "1", "2"]
    assert train("resume=search") == 0
    assert len(runs.calls) == 3


def test_an_interrupted_trial_is_done_again(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    runs.error = SystemExit(143)
    assert train(*SEARCH, "tune.trials=1") == 143
    assert [RunRecord.read(folder).status for folder in (tmp_path / "search", tmp_path / "search" / "0")] == [  # pyright: ignore[reportOptionalMemberAccess]
        "interrupted",
        "interrupted",
    ]
    runs.error = None
    assert train("resume=search") == 0
    first, second = runs.calls
    assert first[0] == second[0]


def test_a_failed_trial_is_not_the_end(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    runs.error = UserError("broken")
    assert train(*SEARCH, "tune.trials=2") == 1
    assert len(runs.calls) == 2
    assert "none of the 2 trials" in capsys.readouterr().err


def test_another_runs_folder_is_refused_and_left_alone(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert train("hydra.run.dir=search") == 0
    before = {name: (tmp_path / "search" / name).read_text() for name in ("config.yaml", "status.json")}
    assert train(*SEARCH) == 1
    assert "holds a run that is no search" in capsys.readouterr().err
    assert {name: (tmp_path / "search" / name).read_text() for name in before} == before
    assert len(runs.calls) == 1


def test_values_replace_nested_options() -> None:
    options = with_values(TrainConfig(), {"seed": 4, "data.discretizer.num_bins": 7})
    assert (options.seed, options.data.discretizer.num_bins) == (4, 7)
    assert with_values(options, {"seed": 0, "data.discretizer.num_bins": 100}) == TrainConfig()
    with pytest.raises(UserError, match=r"model\.n_embd"):
        with_values(TrainConfig(), {"model.n_embd": 33, "model.n_head": 2})
