"""The table of a sweep, and sweeps through the command line with training replaced or real."""

import csv
import json
import math
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from hydra.core.plugins import Plugins

from tests.evaluation.test_results import make_results
from trajectory_transformer.app import entry_point, experiment
from trajectory_transformer.app.jobs import RunRecord, claim
from trajectory_transformer.app.sweep import SweepJob, confidence, group_by_settings, read_jobs, report
from trajectory_transformer.configuration import LoggerConfig, TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import plots
from trajectory_transformer.evaluation.plots import TradeoffPoint
from trajectory_transformer.evaluation.results import write_results
from trajectory_transformer.files import FolderLock
from trajectory_transformer.training import loggers

ROOT = Path(__file__).parents[2]
QUICK = (
    "experiment=hopper_quick",
    "trainer.max_steps=2",
    "trainer.validate_every=2",
    "trainer.progress_bar=false",
    "evaluation.episodes=1",
    "planner.beam_width=2",
)


def rows(directory: Path) -> list[dict[str, str]]:
    with (directory / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize(
    ("degrees", "expected"), [(1, 12.7062), (2, 4.3027), (4, 2.7764), (5, 2.5706), (9, 2.2622), (30, 2.0423)]
)
def test_half_widths_follow_the_published_quantiles_of_student_s_t(degrees: int, expected: float) -> None:
    scores = [1.0, *[0.0] * degrees]  # variance 1 / (degrees + 1), so a standard error of 1 / (degrees + 1)
    mean, half_width = confidence(scores)
    assert mean == pytest.approx(1 / (degrees + 1))
    assert half_width == pytest.approx(expected / (degrees + 1), abs=5e-5)


def test_the_interval_of_three_scores_worked_out_by_hand() -> None:
    mean, half_width = confidence([1.0, 2.0, 3.0])  # standard deviation 1, so 4.3027 / sqrt(3)
    assert mean == 2.0
    assert half_width == pytest.approx(4.30265 / 3**0.5, abs=1e-5)
    assert confidence([5.0]) == (5.0, None)
    assert confidence([]) == (None, None)


def test_jobs_that_differ_only_in_the_seed_belong_together() -> None:
    jobs = [
        SweepJob("0", RunRecord("finished", {"model": "tiny", "seed": "0"}, 1.0)),
        SweepJob("1", RunRecord("finished", {"model": "base", "seed": "0"}, 9.0)),
        SweepJob("2", RunRecord("finished", {"model": "tiny", "seed": "1"}, 3.0)),
        SweepJob("3", RunRecord("failed", {"model": "tiny", "seed": "2"}, None, "no")),
    ]
    tiny, base = group_by_settings(jobs)
    assert [job.name for job in tiny.jobs] == ["0", "2", "3"]
    assert (tiny.mean, tiny.seeds) == (2.0, 2)
    assert tiny.half_width == pytest.approx(12.7062, abs=1e-4)  # standard deviation √2, by √2
    assert (base.mean, base.half_width) == (9.0, None)


def test_the_table_names_every_job_and_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(11):
        (tmp_path / str(number)).mkdir()
        RunRecord("finished", {"seed": str(number), "model": "tiny"}, float(number)).write(tmp_path / str(number))
    RunRecord("failed", {"seed": "3", "model": "tiny"}, None, "[disk] full").write(tmp_path / "3")
    (tmp_path / "5" / "status.json").write_text("{half")
    report(tmp_path)
    printed = capsys.readouterr().out
    assert "job 3 failed: [disk] full" in printed
    assert "job 5 failed: it left no record" in printed
    table = rows(tmp_path)
    assert {row["job"] for row in table} == {str(number) for number in range(11)}
    assert next(row for row in table if row["job"] == "10")["score"] == "10"


def test_a_sweep_over_planners_shows_what_their_time_buys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters: dict[str, str] = {}
    for number, (horizon, width) in enumerate([(1, 4), (1, 16), (5, 4)]):
        folder = tmp_path / str(number)
        folder.mkdir()
        parameters = {"checkpoint": "c", "planner.horizon": str(horizon), "planner.beam_width": str(width)}
        RunRecord("finished", parameters, 10.0 * number).write(folder)
        results = make_results()
        results["summary"] |= {"return_mean": 10.0 * number, "return_ci95": [10.0 * number - 3, 10.0 * number + 1]}
        results["summary"]["plan_latency_ms"] = {"p50": 2.0 + number, "p95": 9.0}
        results["episodes"] *= 3 if number else 1  # the first has too few for an interval
        write_results(results, folder / "results.json")
    RunRecord("finished", parameters | {"planner.horizon": "7"}, 1.0).write(_made(tmp_path / "3"))
    (tmp_path / "3" / "results.json").write_text("{half")  # has no place in the picture, and breaks nothing
    seen: list[TradeoffPoint] = []
    plot = plots.plot_tradeoff
    monkeypatch.setattr(plots, "plot_tradeoff", lambda points, *rest: (seen.extend(points), plot(points, *rest)))
    report(tmp_path)
    assert seen == [
        TradeoffPoint("horizon=1", "4", 2.0, (0.0, math.nan, math.nan)),
        TradeoffPoint("horizon=1", "16", 3.0, (10.0, 7.0, 11.0)),
        TradeoffPoint("horizon=5", "4", 4.0, (20.0, 17.0, 21.0)),
    ]
    assert (tmp_path / "tradeoff.png").read_bytes().startswith(b"\x89PNG")
    assert [row["ms per plan"] for row in rows(tmp_path)] == ["2", "3", "4", ""]


def test_the_score_has_the_name_of_what_it_is(tmp_path: Path) -> None:
    """The mean return if every job acted; a job without episodes has minus its validation loss."""
    write_results(make_results(), _made(tmp_path / "0") / "results.json")
    RunRecord("finished", {"seed": "0"}, 5.0).write(tmp_path / "0")
    RunRecord("failed", {"seed": "1"}).write(_made(tmp_path / "1"))
    report(tmp_path)
    assert [row["return_mean"] for row in rows(tmp_path)] == ["5", ""]
    RunRecord("finished", {"seed": "1"}, -0.7).write(tmp_path / "1")
    report(tmp_path)
    assert [row["score"] for row in rows(tmp_path)] == ["5", "-0.7"]


def _made(folder: Path) -> Path:
    folder.mkdir()
    return folder


def test_a_claim_never_takes_another_runs_folder(tmp_path: Path) -> None:
    assert claim(tmp_path / "new", "a: 1", go_on=True) == "start"
    (tmp_path / "config.yaml").write_text("a: 1")
    with pytest.raises(UserError, match="already holds a run"):
        claim(tmp_path, "a: 1", go_on=False)
    with pytest.raises(UserError, match="other options"):
        claim(tmp_path, "a: 2", go_on=True)
    assert claim(tmp_path, "a: 1", go_on=True) == "start"
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert claim(tmp_path, "a: 1", go_on=True) == "continue"
    RunRecord("finished", {}, 1.0).write(tmp_path)
    assert claim(tmp_path, "a: 1", go_on=True) == "skip"


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Calls train.py -m within this process; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["train.py", "-m", "hydra.sweep.dir=sweep", *arguments])
        try:
            entry_point("train", ROOT / "configs")
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return call


@pytest.mark.parametrize("error", [UserError("broken"), RuntimeError("broken"), SystemExit(1)])
def test_whatever_ends_a_job_the_next_one_runs(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: BaseException
) -> None:
    def run_training(config: TrainConfig, run: experiment.RunContext) -> float:
        if config.seed == 0:
            raise error
        return 1.0

    monkeypatch.setattr(experiment, "run_training", run_training)
    assert sweep("seed=0,1") == 1
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["failed", "finished"]


def test_one_failing_job_loses_nothing_of_the_others(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    trained: list[tuple[int, int]] = []
    broken = True

    def run_training(config: TrainConfig, run: experiment.RunContext) -> float:
        trained.append((config.model.n_layer, config.seed))
        if config.seed == 1 and broken:
            raise UserError("broken")
        return float(config.model.n_layer + config.seed)

    monkeypatch.setattr(experiment, "run_training", run_training)
    assert sweep("model=tiny,base", "seed=0,1,2") == 1
    assert trained == [(layers, seed) for layers in (2, 4) for seed in range(3)]
    table = {(row["model"], row["seed"]): row for row in rows(tmp_path / "sweep")}
    assert [table["tiny", seed]["status"] for seed in "012"] == ["finished", "failed", "finished"]
    assert table["base", "2"]["score"] == "6"
    assert table["base", "2"]["mean over seeds"] == "5"
    assert table["base", "2"]["seeds"] == "2"
    assert table["base", "1"]["reason"] == "broken"

    broken = False
    trained.clear()
    assert sweep("model=tiny,base", "seed=0,1,2") == 0  # only what failed is done again
    assert trained == [(2, 1), (4, 1)]
    assert {row["status"] for row in rows(tmp_path / "sweep")} == {"finished"}


def test_a_sweep_in_the_folder_of_another_is_refused_and_changes_nothing(
    sweep: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    assert sweep("seed=1,2") == 0
    before = {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()}
    for other in (["seed=2,3"], ["seed=1,2", "model=base"], ["model=base,tiny"]):
        capsys.readouterr()
        assert sweep(*other) == 2
        message = capsys.readouterr().err
        assert "holds another sweep: its job 0 has seed=1, and this one's " in message
        assert "choose another folder with hydra.sweep.dir=DIR" in message
    assert {path: path.read_bytes() for path in (tmp_path / "sweep").rglob("*") if path.is_file()} == before
    assert sweep("seed=1,2,3") == 0  # more seeds
    assert [row["score"] for row in rows(tmp_path / "sweep")] == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("words", "groups"),
    [
        (["logger=wandb"], [["mine"]]),
        (["logger=wandb", "logger.run_name=${hydra:job.num}"], [[], ["mine"]]),  # the first, unless a job left its own
        (["logger=csv", "logger.run_name=${hydra:job.num}"], [[]]),
    ],
)
def test_labels_that_refer_to_other_options_do_not_cost_the_table(
    sweep: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    words: list[str],
    groups: list[list[str]],
) -> None:
    logged: list[LoggerConfig] = []
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    monkeypatch.setattr(loggers, "log_sweep", lambda config, directory, table: logged.append(config))
    assert sweep("experiment_name=mine", "seed=1,2", "logger.group=${experiment_name}", *words) == 0
    assert [row["score"] for row in rows(tmp_path / "sweep")] == ["1", "2"]
    assert [config.group for config in logged] in groups


def test_a_table_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "sweep.csv").mkdir()
    with pytest.raises(UserError, match=r"the table of the sweep cannot be written to .*sweep\.csv"):
        report(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_a_job_whose_defaults_have_changed_is_refused_its_folder(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    assert sweep("seed=1,2") == 0
    config = tmp_path / "sweep" / "0" / "config.yaml"
    config.write_text(changed := config.read_text().replace("seed: 1", "seed: 7"))
    record = (tmp_path / "sweep" / "0" / "status.json").read_text()
    assert sweep("seed=1,2") == 1
    assert config.read_text() == changed
    assert (tmp_path / "sweep" / "0" / "status.json").read_text() == record
    refused, kept = rows(tmp_path / "sweep")
    assert (refused["status"], refused["score"]) == ("failed", "")
    assert "other options" in refused["reason"]
    assert (kept["status"], kept["score"]) == ("finished", "2")


def test_a_job_with_a_value_out_of_range_is_reported(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: 1.0)
    assert sweep("model.n_embd=32,33") == 1
    good, bad = rows(tmp_path / "sweep")
    assert good["status"] == "finished"
    assert "model.n_embd=33" in bad["reason"]


@pytest.mark.parametrize(
    ("words", "failed"),
    [
        (["learner=bc,transformer", "planner.horizon=2"], ()),  # which one of them takes notice of
        (["method=bc,tt", "planner.horizon=2", "data=hopper_medium"], ()),
        (["learner=bc,transformer", "planner.horizon=2,3"], (0, 1)),
        (["learner=bc", "planner.horizon=2", "seed=0,1"], (0, 1)),
    ],
)
def test_an_option_without_effect_is_reported(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], failed: tuple[int]
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: 1.0)
    assert sweep(*words) == bool(failed)
    for number, row in enumerate(rows(tmp_path / "sweep")):
        assert row["status"] == ("failed" if number in failed else "finished")
        assert ("planner.horizon has no effect on learner=bc" in row["reason"]) == (number in failed)


def test_an_interruption_ends_the_sweep(sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    def run_training(config: TrainConfig, run: experiment.RunContext) -> float:
        raise SystemExit(143)

    monkeypatch.setattr(experiment, "run_training", run_training)
    assert sweep("seed=0,1") == 143
    assert [job.status for job in read_jobs(Path("sweep"))] == ["interrupted"]


NAMED = "hydra.sweep.subdir=${hydra.job.override_dirname}"


@pytest.mark.parametrize("subdir", [NAMED, "hydra.sweep.subdir=of/${seed}/${model.n_embd}"])
def test_jobs_are_found_in_folders_of_any_name(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, subdir: str
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    assert sweep("seed=10,9", "model.n_embd=32,33", subdir) == 1
    table = rows(tmp_path / "sweep")
    assert [(row["seed"], row["model.n_embd"], row["status"], row["score"]) for row in table] == [
        ("10", "32", "finished", "10"),
        ("9", "32", "finished", "9"),
        ("10", "33", "failed", ""),
        ("9", "33", "failed", ""),
    ]
    folders = {path.parent.relative_to(tmp_path / "sweep").as_posix() for path in tmp_path.rglob("status.json")}
    assert {row["job"] for row in table} == folders
    assert sweep("seed=10,9", "model.n_embd=32", subdir) == (1 if subdir == NAMED else 0)  # the others lie there too


def test_jobs_that_would_share_a_folder_are_all_in_the_table(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    assert sweep("seed=1,2", "hydra.sweep.subdir=one") == 1
    assert [(row["seed"], row["status"]) for row in rows(tmp_path / "sweep")] == [("1", "finished"), ("2", "failed")]


def test_a_single_job_may_have_the_sweep_s_folder(
    sweep: Callable[..., int], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(experiment, "run_training", lambda config, run: float(config.seed))
    assert sweep("seed=1", "hydra.sweep.subdir=.") == 0
    assert [(row["job"], row["status"]) for row in rows(tmp_path / "sweep")] == [(".", "finished")]


def test_a_launcher_that_breaks_off_leaves_a_table_of_all_jobs(
    sweep: Callable[..., int],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As joblib does when a worker is killed: jobs of other workers end, and the rest never begin."""

    def launch(batch: list[list[str]], initial_job_idx: int) -> None:
        done, killed, unrecorded = (tmp_path / "sweep" / name for name in ("0", "1", "2"))
        RunRecord("finished", {"seed": "0"}, 3.0).write(_made(done))
        RunRecord("running", {"seed": "1"}).write(_made(killed))
        (_made(unrecorded) / ".hydra").mkdir()
        (unrecorded / ".hydra" / "overrides.yaml").write_text("- seed=2")
        raise RuntimeError("a worker was\nterminated")

    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_, **__: SimpleNamespace(launch=launch))
    assert sweep("seed=0,1,2,3") == 1
    assert [(row["seed"], row["status"], row["reason"]) for row in rows(tmp_path / "sweep")] == [
        ("0", "finished", ""),
        ("1", "failed", "its process ended unexpectedly: it was killed, or ran out of memory"),
        ("2", "failed", "it left no record"),
        ("3", "failed", "it did not start"),
    ]
    message = capsys.readouterr().err
    assert "error: the sweep stopped: RuntimeError: a worker was terminated\n" in message
    assert "continue with the same command and hydra.sweep.dir=sweep" in message


def test_a_job_that_another_process_works_at_is_running(tmp_path: Path) -> None:
    RunRecord("running", {"seed": "1"}).write(_made(tmp_path / "0"))
    with FolderLock(tmp_path / "0"):
        assert [job.status for job in read_jobs(tmp_path)] == ["running"]
    assert [job.status for job in read_jobs(tmp_path)] == ["failed"]


KILLER = """
import os, signal
from lightning.pytorch.callbacks import Callback

class KillSeedOne(Callback):
    def on_train_batch_end(self, trainer, module, *_):
        if module.plan.seed == 1:
            os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.slow
def test_a_real_sweep_with_a_killed_worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "killer.py").write_text(KILLER)
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "+trainer.callbacks.x._target_=killer.KillSeedOne")
    options = ("-m", *QUICK, *launcher, f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1,2")
    done = subprocess.run([sys.executable, "train.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    statuses = {row["seed"]: row["status"] for row in rows(tmp_path / "sweep")}
    assert (set(statuses), statuses["1"]) == ({"0", "1", "2"}, "failed")  # the others were done, or ended with it


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [(), ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2")])
def test_a_real_sweep_with_a_failing_job(tmp_path: Path, launcher: tuple[str, ...]) -> None:
    options = ("-m", *QUICK, *launcher, f"hydra.sweep.dir={tmp_path}/sweep", "model.n_embd=32,33", "seed=0,1")
    done = subprocess.run([sys.executable, "train.py", *options], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stderr
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["finished", "finished", "failed", "failed"]
    results = json.loads((tmp_path / "sweep" / "0" / "results.json").read_text())
    score = float(rows(tmp_path / "sweep")[0]["return_mean"])
    assert score == pytest.approx(results["summary"]["return_mean"], rel=1e-5)


@pytest.mark.slow
def test_a_real_sweep_over_two_processes_each(tmp_path: Path) -> None:
    options = ("-m", *QUICK, "trainer=ddp", "trainer.accelerator=cpu", f"hydra.sweep.dir={tmp_path}/sweep", "seed=0,1")
    done = subprocess.run([sys.executable, "train.py", *options], cwd=ROOT, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["sweep"]
    assert [row["status"] for row in rows(tmp_path / "sweep")] == ["finished", "finished"]
