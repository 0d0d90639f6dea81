"""resume=DIR and requeued jobs."""

import logging
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import yaml

from trajectory_transformer.app import checks, experiment
from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.app.main import read_config
from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import OBJECTIVES, TrainConfig
from trajectory_transformer.errors import UserError

from .conftest import CONFIGS, Runs


class TestResume:
    def test_it_goes_on_in_the_same_folder_with_the_same_options(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path
    ) -> None:
        runs.error = SystemExit(143)
        assert train("seed=5", "hydra.run.dir=here") == 143
        (tmp_path / "here" / "checkpoints").mkdir()
        (tmp_path / "here" / "checkpoints" / "last.ckpt").touch()
        runs.error = None
        assert train("resume=here") == 0
        first, second = runs.calls
        assert second[0] == first[0]
        assert second[1].resume
        assert not (tmp_path / "logs").exists()
        command = "python train.py seed=5 hydra.run.dir=here"
        assert first[1].command == second[1].command == command
        assert RunRecord.read(tmp_path / "here") == RunRecord("finished", {"seed": "5"}, 5.0, command=command)

    def test_its_messages_are_added_to_those_of_the_run(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here")
        file = tmp_path / "here" / "train.log"
        file.write_text("before\n")
        handlers: list[logging.Handler] = []  # another process has none of the first command's
        monkeypatch.setattr(logging.root, "handlers", handlers)
        monkeypatch.setattr(experiment, "run_training", lambda *_: logging.getLogger("its").warning("careful") or 1.0)
        assert train("resume=here") == 0
        assert re.fullmatch(r"before\n\[.*\]\[its\]\[WARNING\] - careful\n", file.read_text())
        assert handlers == []

    def test_a_misspelt_folder_gets_the_nearest_else_the_latest_run(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        for number, name in enumerate(("stopped", "whole", "another")):
            assert train(f"hydra.run.dir=runs/{name}") == 0
            os.utime(tmp_path / "runs" / name / "config.yaml", (0, 10 * (5 - number)))
        assert train("resume=runs/stoped") == 2
        assert capsys.readouterr().err.rstrip().endswith("no run to continue; did you mean runs/stopped?")
        os.utime(tmp_path / "runs" / "whole" / "config.yaml", (0, 1000))
        assert train("resume=runs/xyz") == 2
        assert capsys.readouterr().err.rstrip().endswith("the latest run beside it is runs/whole")

    def test_it_starts_anew_where_nothing_was_saved(self, train: Callable[..., int], runs: Runs) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here")
        runs.error = None
        assert train("resume=here") == 0
        assert not runs.calls[1][1].resume

    def test_a_finished_run_is_left_alone(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        train("hydra.run.dir=here")
        (tmp_path / "here" / "results.json").touch()
        assert train("resume=here") == 0
        assert "finished; nothing to do" in (told := capsys.readouterr().out)
        assert "delete its results.json to evaluate it again with the options of its config.yaml" in told
        assert len(runs.calls) == 1

    def test_any_path_and_locale_will_do(self, tmp_path: Path) -> None:
        folder = tmp_path / "Läufe, mit=b"
        folder.mkdir()
        (folder / "config.yaml").write_text("experiment_name: Übung\nevaluation: {episodes: 0}\n", encoding="utf-8")
        RunRecord("finished", {"experiment": "Übung"}).write(folder)
        variables = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
        call = [sys.executable, str(CONFIGS.parent / "train.py"), f"resume={folder.name}"]
        done = subprocess.run(call, cwd=tmp_path, env=os.environ | variables, capture_output=True)
        assert done.returncode == 0, done.stderr
        assert f"{folder.name} is finished; nothing to do" in done.stdout.decode()

    def test_a_missing_evaluation_is_made_up_for(self, train: Callable[..., int], runs: Runs) -> None:
        train("hydra.run.dir=here")
        assert train("resume=here") == 0
        assert len(runs.calls) == 2

    @pytest.mark.parametrize(
        ("bomb", "message"),
        [
            ("a: &a [1, 1]\nb: &b [*a, *a]\nc: [*b, *b]", "line 2 is an alias, *a, which this program never writes"),
            ("seed: " + "9" * 5000, "4300 digits"),
            ("a: " + "[" * 1500 + "]" * 1500, "cannot be read"),
            ("a: !!timestamp 1", "cannot be read: AttributeError"),
            ("a: !!bool maybe", "cannot be read: KeyError"),
            ("data: {source: {_target_: '" + "9" * 5000 + "'}}", "9…"),
        ],
    )
    def test_a_run_folder_of_hostile_yaml_is_one_sentence(
        self, bomb: str, message: str, train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "config.yaml").write_text(bomb)
        assert train("resume=here") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line

    def test_a_run_folder_names_only_classes_of_packages_that_are_allowed(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs.error = SystemExit(143)
        assert train("hydra.run.dir=here", "+logger.extra.mine._target_=lightning.pytorch.loggers.CSVLogger") == 143
        runs.error = None
        assert train("resume=here") == 2
        assert "a file must not choose what is imported; if you trust that package, add allow=[lightning]" in (
            capsys.readouterr().err
        )
        assert train("resume=here", "allow=[lightning]") == 0

    def test_a_file_does_not_choose_what_is_imported_for_its_data(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here")
        config = tmp_path / "here" / "config.yaml"
        config.write_text(config.read_text().replace("source: null", "source: {_target_: antigravity.Source}"))
        assert train("resume=here") == 2
        assert "names the class antigravity.Source" in capsys.readouterr().err
        assert "antigravity" not in sys.modules
        assert len(runs.calls) == 1

    @pytest.mark.parametrize("plus", ["+", "++"])
    def test_it_is_obeyed_however_it_is_given(self, train: Callable[..., int], runs: Runs, plus: str) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here", "seed=5")
        runs.error = None
        assert train(f"{plus}resume='here'", f"{plus}allow=[lightning]") == 0
        assert [config.seed for config, _ in runs.calls] == [5, 5]

    @pytest.mark.usefixtures("runs")
    @pytest.mark.parametrize("word", ["resume=", "resume=''", "+resume=", '++resume=""', "resume= "])
    def test_no_run_to_go_on_with_is_refused(
        self, train: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path, word: str
    ) -> None:
        assert train(word, "seed=1") == 2
        assert "names no run: give resume=DIR" in capsys.readouterr().err
        assert list(tmp_path.iterdir()) == []

    def test_null_is_no_run_to_go_on_with(self, train: Callable[..., int], runs: Runs) -> None:
        assert train("resume=null") == 0
        assert not runs.calls[0][1].resume

    def test_a_file_that_sets_it_is_refused(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        (tmp_path / "own" / "experiment").mkdir(parents=True)
        (tmp_path / "own" / "experiment" / "mine.yaml").write_text("# @package _global_\nresume: somewhere\n")
        assert train("--config-dir", "own", "experiment=mine") == 2
        assert "resume=somewhere has an effect only on the command line" in capsys.readouterr().err
        train("hydra.run.dir=here")
        config = tmp_path / "here" / "config.yaml"
        config.write_text(config.read_text().replace("resume: null", "resume: there"))
        assert train("resume=here") == 2
        assert "resume=there has an effect only on the command line" in capsys.readouterr().err
        assert len(runs.calls) == 1

    def test_a_tracker_that_is_not_installed_is_refused_under_its_own_name(
        self,
        train: Callable[..., int],
        runs: Runs,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
    ) -> None:
        runs.error = SystemExit(143)
        train("hydra.run.dir=here", "logger=tensorboard")
        config = tmp_path / "here" / "config.yaml"
        config.write_text(config.read_text().replace("    tensorboard:\n", "    board:\n"))
        capsys.readouterr()
        monkeypatch.setattr(checks, "TRACKERS", {"TensorBoardRun": "no_such_package"})
        assert train("resume=here") == 2
        assert "logger.extra.board needs the package no_such_package" in (message := capsys.readouterr().err)
        assert message.endswith("pip install 'trajectory-transformer[no_such_package]'\n")
        assert len(runs.calls) == 1

    @pytest.mark.parametrize("other", ["seed=1", "hydra.run.dir=there", "-m", "resume=there"])
    def test_it_refuses_other_options_by_name(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], other: str
    ) -> None:
        train("hydra.run.dir=here")
        assert train("resume=here", other) == 2
        assert other in capsys.readouterr().err
        assert len(runs.calls) == 1

    @pytest.mark.usefixtures("runs")
    @pytest.mark.parametrize(
        ("content", "words"),
        [
            (None, "no here/config.yaml"),
            ("seed: [", "cannot be read"),
            ("just text", "not the config"),
            ("checkpoint: a.ckpt", "not the config"),
            ("model: {n_layr: 3}", "'model.n_layer'"),
            ("model: {n_head: 3}", "divisible"),
            ("trainer: {compile: 2}", "trainer.compile must be true or false, got 2"),
            ("trainer: {callbacks: {x: {_target_: os.system}}}", "os.system"),
            ("planner: {objective: {_target_: my_package.Own}}", "add allow=[my_package]"),
        ],
    )
    def test_a_config_that_is_no_good_is_refused(
        self,
        train: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        tmp_path: Path,
        content: str | None,
        words: str,
    ) -> None:
        (tmp_path / "here").mkdir()
        if content is not None:
            (tmp_path / "here" / "config.yaml").write_text(content)
        assert train("resume=here") == 2
        assert words in capsys.readouterr().err
        assert not (tmp_path / "here" / "status.json").exists()

    def test_a_run_of_before_objectives_had_options_goes_on(
        self, train: Callable[..., int], runs: Runs, tmp_path: Path
    ) -> None:
        (tmp_path / "here").mkdir()
        (tmp_path / "here" / "config.yaml").write_text("planner: {name: critic, critic: c.ckpt, critic_score: q}")
        assert train("resume=here") == 0
        planner = runs.calls[0][0].planner
        assert planner.name == "critic"
        assert planner.objective == {"_target_": OBJECTIVES["critic"], "critic": "c.ckpt", "score": "q"}

    def test_a_checkpoint_in_place_of_the_run_s_folder(
        self, train: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "here" / "checkpoints").mkdir(parents=True)
        (tmp_path / "here" / "config.yaml").touch()
        for place in ("here/checkpoints/last.ckpt", "here/checkpoints"):
            assert train(f"resume={place}") == 2
            assert "so no run to continue; give the run's folder, resume=here" in capsys.readouterr().err

    def test_a_sweeps_job_that_fails_again_in_the_same_way_is_a_failure(
        self, train: Callable[..., int], runs: Runs
    ) -> None:
        runs.error = UserError("broken")
        assert train("-m", "seed=0,1", "hydra.sweep.dir=sweep") == 1
        assert train("resume=sweep/0") == 1
        runs.error = None
        assert train("resume=sweep/0") == 0


class TestExtend:
    @pytest.fixture
    def finished(self, train: Callable[..., int], runs: Runs, tmp_path: Path) -> Path:
        """The folder of a finished run of 20 updates."""
        assert train("hydra.run.dir=here", "trainer.max_steps=20") == 0
        section = {"trajectory_transformer": {"format": 1}}
        write_checkpoint(tmp_path / "here" / "checkpoints" / "last.ckpt", {**section, "global_step": 20})
        (tmp_path / "here" / "results.json").touch()
        runs.calls.clear()
        return tmp_path / "here"

    def test_a_finished_run_is_trained_further_and_says_so(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], finished: Path
    ) -> None:
        runs.error = SystemExit(143)
        assert train("resume=here", "trainer.max_steps=30", "extend=true") == 143
        assert "from update 20 to 30" in capsys.readouterr().out
        runs.error = None
        assert train("resume=here") == 0  # the interrupted extension, as any run
        for options, run in runs.calls:
            assert (options.trainer.max_steps, options.extended, run.resume) == (30, [20], True)
            assert run.command == (
                "python train.py hydra.run.dir=here trainer.max_steps=20 && "
                "python train.py resume=here trainer.max_steps=30 extend=true"
            )
        stored = yaml.safe_load((finished / "config.yaml").read_text())
        assert (stored["trainer"]["max_steps"], stored["extended"], stored["extend"]) == (30, [20], False)

    def test_a_run_that_died_without_a_word_is_told_of(
        self, train: Callable[..., int], capsys: pytest.CaptureFixture[str], finished: Path
    ) -> None:
        """Its status is running, but no process holds its folder, as after os._exit in an environment."""
        RunRecord("running").write(finished)
        assert train("resume=here", "trainer.max_steps=30", "extend=true") == 2
        assert "here is not finished (its process was killed)" in capsys.readouterr().err
        assert train("resume=here") == 0
        assert "here: the last process to run there was killed" in capsys.readouterr().out

    @pytest.mark.parametrize("stopped_by_a_callback", [False, True])
    def test_an_edited_number_of_updates_is_obeyed_and_recorded(
        self, train: Callable[..., int], runs: Runs, finished: Path, stopped_by_a_callback: bool
    ) -> None:
        config = yaml.safe_load((finished / "config.yaml").read_text())
        config["trainer"]["max_steps"] = 30
        if stopped_by_a_callback:
            spec = {"_target_": "lightning.pytorch.callbacks.EarlyStopping", "monitor": "val/loss"}
            config["trainer"]["callbacks"] = {"stop": spec}
        (finished / "config.yaml").write_text(yaml.safe_dump(config))
        assert train("resume=here", "allow=[lightning]") == 0
        assert [options.extended for options, _ in runs.calls] == ([] if stopped_by_a_callback else [[20]])

    @pytest.mark.usefixtures("finished")
    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["trainer.max_steps=30"], "give trainer.max_steps=N extend=true to train a finished run further"),
            (["extend=true"], "needs trainer.max_steps=N"),
            (["extend=true", "trainer.max_steps=many"], "needs trainer.max_steps=N"),
            (["extend=true", "trainer.max_steps=" + "9" * 5000], "needs trainer.max_steps=N"),
            (["extend=true", "trainer.max_steps=20"], "has already made 20 updates"),
            (["extend=true", "trainer.max_steps=30", "seed=1"], "accepts no option but allow=[PACKAGE]; remove seed=1"),
        ],
    )
    def test_what_it_does_not_take(
        self,
        train: Callable[..., int],
        runs: Runs,
        capsys: pytest.CaptureFixture[str],
        arguments: list[str],
        words: str,
    ) -> None:
        assert train("resume=here", *arguments) == 2
        assert words in capsys.readouterr().err
        assert not runs.calls

    def test_a_checkpoint_that_does_not_say_how_far_it_is_is_refused(
        self, train: Callable[..., int], capsys: pytest.CaptureFixture[str], finished: Path
    ) -> None:
        write_checkpoint(finished / "checkpoints" / "last.ckpt", {"trajectory_transformer": {"format": 1}})
        assert train("resume=here", "trainer.max_steps=30", "extend=true") == 2
        assert "last.ckpt' do not fit together" in capsys.readouterr().err

    def test_a_run_that_is_not_finished_is_not_extended(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str]
    ) -> None:
        runs.error = SystemExit(143)
        assert train("hydra.run.dir=here") == 143
        assert train("resume=here", "trainer.max_steps=30000", "extend=true") == 2
        assert "is not finished (interrupted); continue it with resume=here" in capsys.readouterr().err

    @pytest.mark.parametrize(
        ("option", "words"), [("extend=true", "goes with resume=RUN"), ("extended=[5]", "do not set it")]
    )
    def test_a_new_run_does_not_take_it(
        self, train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], option: str, words: str
    ) -> None:
        assert train(option) == 2
        assert words in capsys.readouterr().err
        assert not runs.calls


@pytest.mark.usefixtures("runs")
def test_weights_to_start_from_that_are_not_there_are_refused_at_once(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train("init_from=gone.ckpt") == 2
    assert "checkpoint 'gone.ckpt' does not exist" in capsys.readouterr().err


def test_a_requeued_slurm_job_goes_on_by_itself(
    train: Callable[..., int], runs: Runs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    runs.error = SystemExit(128 + signal.SIGUSR1)  # as SignalWatch.stop ends it
    assert train("trainer=slurm") == 138
    record = RunRecord.read(tmp_path / "logs" / "train" / "runs" / "slurm-4711")
    assert record is not None
    assert record.status == "interrupted"
    directory = tmp_path / "logs" / "train" / "runs" / "slurm-4711"
    (directory / "checkpoints").mkdir()
    (directory / "checkpoints" / "last.ckpt").touch()
    runs.error = None
    assert train("trainer=slurm") == 0
    assert [(run.directory.absolute(), run.resume) for _, run in runs.calls] == [(directory, False), (directory, True)]


def nested(levels: int) -> list[object]:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("planner.top_share", "???", r"planner\.top_share=\?\?\? is no value"),
        ("evaluation", "???", r"evaluation=\?\?\? is no value"),
        ("planner.act", "a\nb", r"planner\.act='a\\nb' is not one of auto, best, conditioned"),
        ("evaluation.every", ["x"] * 100, r"evaluation\.every must be a whole number or null: value '\['x'.*…$"),
        ("trainer.callbacks", {"a": ["x"] * 100}, r"trainer\.callbacks\.a=\['x'.*… is not a mapping with a _target_"),
        ("planner.elite_share", "${nothing}", r"planner\.elite_share: interpolation key 'nothing' not found"),
        ("environment.modules", nested(90), "must be a list|nested too deeply"),
    ],
)
def test_values_that_a_run_s_config_cannot_hold_are_refused_in_a_short_sentence(
    tmp_path: Path, place: str, value: object, message: str
) -> None:
    options = asdict(TrainConfig())
    group, _, name = place.partition(".")
    (options[group] if name else options)[name or group] = value
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(options))
    with pytest.raises(UserError, match=message) as refused:
        read_config(tmp_path, [])
    assert len(str(refused.value).replace(str(tmp_path), "")) < 300
    assert "\n" not in str(refused.value)
