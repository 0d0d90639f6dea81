"""tune=… as one job: its trials, resuming, and folders of other searches."""

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

import optuna
import pytest
import yaml
from omegaconf import OmegaConf
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.app.tune import with_values
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.files import FolderLock

from .conftest import CONFIGS, Runs

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


@pytest.mark.slow
def test_a_trial_that_another_process_works_at_is_left_to_it(train: Callable[..., int], runs: Runs) -> None:
    runs.error = SystemExit(143)
    assert train(*SEARCH, "tune.trials=1") == 143
    runs.error = None
    with FolderLock(Path("search/0")):
        assert train(*SEARCH, "tune.trials=2") == 0
    assert [run.directory.name for _, run in runs.calls] == ["0", "1"]
    assert train(*SEARCH, "tune.trials=2") == 0  # the other one was stopped
    assert [run.directory.name for _, run in runs.calls] == ["0", "1", "0"]


@pytest.mark.parametrize(
    ("name", "choices"), [("learner", ["{_target_: os.system, command: x}"]), ("optimizer.beta1", [0.7])]
)
def test_a_journal_of_other_values_is_refused(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], name: str, choices: list[Any]
) -> None:
    """It may come with another person's folder, of which only the configuration is checked."""
    runs.error = SystemExit(143)
    assert train(*SEARCH, "tune.trials=1") == 143
    runs.error = None
    journal = Path("search/study.journal")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.load_study(study_name="search", storage=storage)
    study.tell(0, 1.0)
    study.ask().suggest_categorical(name, choices)
    calls = len(runs.calls)
    assert train("resume=search") != 0
    assert f"study.journal holds a trial with {name}=" in capsys.readouterr().err
    assert len(runs.calls) == calls


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
    assert "holds a run that is not a search" in capsys.readouterr().err
    assert {name: (tmp_path / "search" / name).read_text() for name in before} == before
    assert len(runs.calls) == 1


class TestOptionsOfClasses:
    """Groups whose options are those of the class under ``_target_``."""

    CASES: ClassVar[dict[str, tuple[list[str], str, list[Any]]]] = {  # options beside, name, values
        "learner": (["learner=iql"], "learner.expectile", [0.8, 0.9]),
        "objective": (
            ["planner=critic", "planner.objective.critic=c.ckpt", "planner.horizon=2"],
            "planner.objective.score",
            ["v", "q"],
        ),
        "source": (
            ["data=npz", "data.source.path=one", "data.source.env_id=null", "evaluation.episodes=0"],
            "data.source.path",
            ["one", "two"],
        ),
        "block": (["+model.block={_target_:swiglu_block.SwiGluBlock}"], "model.block.expansion", [1.5, 3.0]),
    }

    @pytest.fixture(autouse=True)
    def places(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Two folders of episodes and a critic, of which only the names are read; and the example block, importable."""
        (tmp_path / "c.ckpt").touch()
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            (tmp_path / name / "episode.npz").touch()
        monkeypatch.syspath_prepend(CONFIGS.parent / "examples")

    @staticmethod
    def search(folder: Path, options: list[str], name: str, choices: list[Any]) -> list[str]:
        """The command line of a search over one option."""
        (folder / "own" / "tune").mkdir(parents=True, exist_ok=True)
        tune = {"trials": 8, "parameters": {name: {"choices": choices}}}
        (folder / "own" / "tune" / "own.yaml").write_text(yaml.safe_dump(tune))
        return ["--config-dir", "own", "tune=own", "hydra.run.dir=search", *options]

    @pytest.mark.parametrize("kind", CASES)
    def test_they_are_searched(self, train: Callable[..., int], runs: Runs, tmp_path: Path, kind: str) -> None:
        options, name, choices = self.CASES[kind]
        assert train(*self.search(tmp_path, options, name, choices)) == 0
        tried = [OmegaConf.select(OmegaConf.create(asdict(options)), name) for options, _ in runs.calls]
        assert len(tried) == 8
        assert set(tried) == set(choices)

    @pytest.mark.parametrize(
        ("kind", "name", "value", "words"),
        [
            ("learner", "learner.expectil", 0.8, "did you mean 'learner.expectile'?"),
            ("learner", "learner.expectile", "high", "learner.expectile: value 'high'"),
            ("learner", "learner.expectile", 1.5, "learner.expectile=1.5 must lie in (0, 1)"),
            ("objective", "planner.objective.scor", "v", "did you mean 'planner.objective.score'?"),
            ("objective", "planner.objective.score", "w", "planner.objective.score='w'"),
            ("source", "data.source.paths", "one", "did you mean 'data.source.path'?"),
            ("source", "data.source.path", {"a": 1}, "data.source.path"),
            ("block", "model.block.expansoin", 2.0, "did you mean 'model.block.expansion'?"),
            ("learner", "iql.expectile", 0.8, "it is now 'learner.expectile'"),
            ("learner", "learner._target_", "os.system", "a search varies options, not classes"),
        ],
    )
    def test_a_mistake_is_named_before_the_first_trial(
        self,
        train: Callable[..., int],
        runs: Runs,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        kind: str,
        name: str,
        value: object,
        words: str,
    ) -> None:
        assert train(*self.search(tmp_path, self.CASES[kind][0], name, [value])) == 2
        message = capsys.readouterr().err
        assert message.startswith("error: tune.parameters")
        assert words in message
        assert not runs.calls

    def test_options_of_no_class_are_refused(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        assert train(*self.search(tmp_path, [], "model.block.expansion", [2.0])) == 2
        assert "model.block={'expansion': 2.0} is not a mapping with a _target_" in capsys.readouterr().err
        assert not runs.calls


def test_values_replace_nested_options() -> None:
    options = with_values(TrainConfig(), {"seed": 4, "data.discretizer.num_bins": 7})
    assert (options.seed, options.data.discretizer.num_bins) == (4, 7)
    assert with_values(options, {"seed": 0, "data.discretizer.num_bins": 100}) == TrainConfig()
    with pytest.raises(UserError, match=r"model\.n_embd"):
        with_values(TrainConfig(), {"model.n_embd": 33, "model.n_head": 2})
