"""Train, plan, write results; on Gymnasium's pendulum, with a model of a few hundred weights."""

import csv
import json
import math
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NoReturn

import gymnasium as gym
import numpy as np
import pytest
import torch
import yaml
from gymnasium.envs.classic_control.pendulum import PendulumEnv

from trajectory_transformer.app import entry_point, experiment
from trajectory_transformer.app.experiment import (
    RunContext,
    held_out_episodes,
    load_agent,
    run_evaluation,
    run_training,
)
from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint, write_checkpoint
from trajectory_transformer.configuration import (
    OBJECTIVES,
    DataConfig,
    DiscretizerConfig,
    EvaluateConfig,
    EvaluationConfig,
    LoggerConfig,
    ModelConfig,
    PlannerConfig,
    TrainConfig,
    TrainerConfig,
)
from trajectory_transformer.data.transitions import join_episodes
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation import results
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.transformer_datamodule import TrajectoryDataModule
from trajectory_transformer.training.learner import Learner
from trajectory_transformer.training.loggers import RunLabels

from ..minari_sets import random_episode, write_dataset
from ..planning.decoders import needs_compiler
from ..specs import spec_of
from .conftest import CONFIGS

DATASET = "tests/pendulum-v0"


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Minari root with random pendulum episodes whose environment ends after four steps."""
    root = tmp_path_factory.mktemp("datasets")
    with pytest.MonkeyPatch.context() as patch, gym.make("Pendulum-v1", max_episode_steps=4) as environment:
        patch.setenv("MINARI_DATASETS_PATH", str(root))
        write_dataset(DATASET, [random_episode(12, seed, action_dim=1) for seed in range(6)], env=environment)
    return root


@pytest.fixture(autouse=True)
def use_datasets(datasets: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(datasets))


def config(**evaluation: Any) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(DATASET, discretizer=DiscretizerConfig(num_bins=8), sequence_length=4, batch_size=8),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8),
        trainer=TrainerConfig(max_steps=2, validate_every=2, checkpoint_every=2, log_every=1, progress_bar=False),
        planner=PlannerConfig(horizon=2, beam_width=2, context=2),
        evaluation=EvaluationConfig(**{"episodes": 2, "num_envs": 4, **evaluation}),
        seed=7,
    )


@pytest.fixture(scope="module")
def trained(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Directory and score of a run."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(datasets))
        return directory, run_training(config(), RunContext(directory, "python train.py seed=7"))


def plan(checkpoint: Path, directory: Path, **overrides: int) -> float:
    """Evaluate one episode of seed 7000."""
    options = EvaluateConfig(str(checkpoint), episodes=1, seed=7000)
    return run_evaluation(options, RunContext(directory, "command"), load_agent(checkpoint, "cpu", overrides))


def results_of(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text())


@pytest.mark.parametrize(
    ("penalty", "last", "told"),
    [
        ("auto", None, "-100 replaces the reward of their last step (data.termination_penalty; null keeps it)"),
        ("auto", 500.0, "the reward of their last step is kept, because the data's rewards tell what an end is worth "
         "(data.termination_penalty=-100 replaces it)"),
        (-7.0, 500.0, "-7 replaces the reward of their last step (data.termination_penalty; null keeps it)"),
        (None, 500.0, ""),
    ],
)  # fmt: skip
def test_replaced_rewards_are_told(
    penalty: Any, last: float | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    episodes = [random_episode(12, seed, terminated=seed < 4) for seed in range(6)]
    for episode in episodes[:4] if last is not None else ():
        episode.rewards[-1] = last
    write_dataset("tests/falls-v0", episodes)
    options = config(episodes=0)
    options.data.dataset_id, options.data.termination_penalty = "tests/falls-v0", penalty
    run_training(options, RunContext(tmp_path / "run", "command"))
    printed = capsys.readouterr().out
    assert (f"4 of 6 episodes terminate: {told}" in printed) if told else ("episodes terminate" not in printed)
    recorded = Checkpoint.read(tmp_path / "run" / "checkpoints" / "best.ckpt").training.data.termination_penalty
    assert recorded == {"auto": -100.0 if last is None else None}.get(penalty, penalty)


def test_a_horizon_without_effect_is_told(
    trained: tuple[Path, float], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    best = trained[0] / "checkpoints" / "best.ckpt"
    for act, told in (("best", 0), ("mean", 1)):
        caplog.clear()
        options = EvaluateConfig(str(best), episodes=1)
        loaded = load_agent(best, "cpu", {"act": act, "cdf_act": None})
        run_evaluation(options, RunContext(tmp_path / act, "command"), loaded)
        assert caplog.text.count(f"planner.horizon=2 changes no action: planner.act={act} averages") == told


def test_training_leaves_what_the_contract_names(trained: tuple[Path, float]) -> None:
    directory, score = trained
    files = ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "results.json", "plots/returns.png")
    for name in (*files, "plots/training.png"):
        assert (directory / name).stat().st_size > 0, name
    results = results_of(directory)
    assert score == results["summary"]["return_mean"]
    assert results["command"] == "python train.py seed=7"
    assert results["dataset"] == DATASET
    assert results["seed"] == 7  # the run's; its episodes have their own, which no other seed of a sweep has
    assert [episode["seed"] for episode in results["episodes"]] == [7000, 7001]
    best = Checkpoint.read(directory / "checkpoints" / "best.ckpt")
    record = best.training
    facts = {
        "fingerprint": record.dataset.fingerprint,
        "validation_fraction": record.data.validation_fraction,
        "seed": 7,
        "weights": best.fingerprint(),
        "model": best.model,
        "data": {k: v for k, v in asdict(record.data).items() if k not in ("dataset_id", "source")},
    }
    assert results["trained"] == facts
    assert [episode["length"] for episode in results["episodes"]] == [4, 4]
    assert results["planner"]["horizon"] == 2
    assert results["behavior"]["episodes"] == 6


def test_without_episodes_the_score_is_the_negative_loss(tmp_path: Path) -> None:
    score = run_training(config(episodes=0), RunContext(tmp_path, ""))
    assert -10.0 < score < 0.0
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "plots" / "training.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("sweep", "name", "group"), [(None, None, DATASET), (None, "mine", "mine"), ("sweep", "mine", "sweep")]
)
def test_runs_that_belong_together_share_a_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sweep: str | None, name: str | None, group: str
) -> None:
    def stop(config: LoggerConfig, directory: Path, resolved: object, labels: RunLabels) -> NoReturn:
        assert labels.group == group
        raise UserError("enough")

    monkeypatch.setattr(experiment, "make_loggers", stop)
    options = config()
    options.experiment_name = name
    with pytest.raises(UserError, match="enough"):
        run_training(options, RunContext(tmp_path, "", sweep=sweep))


@pytest.mark.parametrize("accelerator", ["gpu", "mps"])
def test_an_accelerator_that_is_not_there_is_noticed_before_data_are_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, accelerator: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    options = config()
    options.data.dataset_id = "tests/nowhere-v0"
    options.trainer.accelerator = accelerator
    with pytest.raises(UserError, match=f"trainer.accelerator={accelerator}"):
        run_training(options, RunContext(tmp_path, ""))


def test_a_plan_past_the_end_is_noticed_before_training(tmp_path: Path) -> None:
    options = config()
    options.data.sequence_length = 8
    options.planner.horizon = 5
    with pytest.raises(UserError, match=r"planner\.horizon=5 exceeds the environment's time limit"):
        run_training(options, RunContext(tmp_path, ""))
    assert not (tmp_path / "checkpoints").exists()


@pytest.mark.parametrize("episodes", [1, 0])
def test_an_environment_is_tried_before_training_if_it_is_to_be_acted_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, episodes: int
) -> None:
    monkeypatch.setattr(PendulumEnv, "step", lambda *_: (np.zeros(3), 0.0, False, {}))
    if episodes == 0:
        run_training(config(episodes=0), RunContext(tmp_path, ""))
        return
    with pytest.raises(UserError, match=r"environment 'Pendulum-v1': step\(array.* got 4"):
        run_training(config(episodes=episodes), RunContext(tmp_path, ""))
    assert not (tmp_path / "checkpoints").exists()


def test_the_commit_is_taken_before_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = RunContext(tmp_path, "", commit="b" * 40)
    monkeypatch.setattr(results, "subprocess", None)  # nobody asks git any more
    run_training(config(), run)
    assert results_of(tmp_path)["commit"] == "b" * 40
    assert {row["commit"] for row in csv.DictReader((tmp_path / "figures.csv").read_text().splitlines())} == {"b" * 40}


def test_a_checkpoint_is_read_once(
    trained: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[Path] = []

    def counted(path: Path) -> bytes:
        if path.suffix == ".ckpt":
            reads.append(path)
        return read_bytes(path)

    read_bytes = Path.read_bytes
    monkeypatch.setattr(Path, "read_bytes", counted)
    plan(trained[0] / "checkpoints" / "best.ckpt", tmp_path)
    assert len(reads) == 1


def test_a_finished_run_that_lacks_results_is_only_evaluated(tmp_path: Path) -> None:
    run_training(config(episodes=0), RunContext(tmp_path, ""))
    before = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    score = run_training(config(), RunContext(tmp_path, "", resume=True))
    assert score == results_of(tmp_path)["summary"]["return_mean"]
    assert (tmp_path / "checkpoints" / "best.ckpt").read_bytes() == before


class TestEvaluation:
    def test_it_plans_as_the_training_run_did(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        directory, score = trained
        checkpoint = directory / "checkpoints" / "best.ckpt"
        options = EvaluateConfig(str(checkpoint), episodes=2, num_envs=1, seed=7000)
        trained_transformer = load_agent(checkpoint, "cpu", {})
        assert run_evaluation(options, RunContext(tmp_path, "command"), trained_transformer) == score
        assert results_of(tmp_path)["seed"] == 7000
        assert results_of(tmp_path)["episodes"] == results_of(directory)["episodes"]
        assert results_of(tmp_path)["planner"] == results_of(directory)["planner"]

    def test_planner_options_replace_the_recorded_ones(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        plan(trained[0] / "checkpoints" / "best.ckpt", tmp_path, horizon=3)
        planner = results_of(tmp_path)["planner"]
        assert (planner["horizon"], planner["beam_width"]) == (3, 2)

    def test_threads_hold_while_planning_and_no_longer(
        self, trained: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[int] = []
        evaluate = experiment.evaluate

        def listening(*arguments: Any) -> dict[str, Any]:
            seen.append(torch.get_num_threads())
            return evaluate(*arguments)

        monkeypatch.setattr(experiment, "evaluate", listening)
        checkpoint, before = trained[0] / "checkpoints" / "best.ckpt", torch.get_num_threads()
        options = EvaluateConfig(str(checkpoint), episodes=1, num_envs=1, threads=before + 1)
        run_evaluation(options, RunContext(tmp_path, ""), load_agent(checkpoint, "cpu", {}))
        assert (seen, torch.get_num_threads()) == ([before + 1], before)

    def test_a_plan_longer_than_the_model_sees_is_refused(self, trained: tuple[Path, float]) -> None:
        with pytest.raises(UserError, match=r"planner\.horizon=9"):
            load_agent(trained[0] / "checkpoints" / "best.ckpt", "cpu", {"horizon": 9})

    def test_an_environment_that_does_not_fit_is_refused(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        contents = read_checkpoint(trained[0] / "checkpoints" / "best.ckpt")
        specification = gym.spec("CartPole-v1").to_json()
        contents["trajectory_transformer"]["environment"] |= {"env_id": "CartPole-v1", "spec_json": specification}
        write_checkpoint(tmp_path / "other.ckpt", contents)
        with pytest.raises(UserError, match="space"):
            plan(tmp_path / "other.ckpt", tmp_path)

    def test_an_accelerator_that_is_not_there_is_refused(
        self, trained: tuple[Path, float], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with pytest.raises(UserError, match="accelerator=gpu"):
            load_agent(trained[0] / "checkpoints" / "best.ckpt", "gpu", {})


class TestAttention:
    def test_it_is_measured_on_held_out_episodes(
        self, trained: tuple[Path, float], tmp_path: Path, call: Callable[..., int]
    ) -> None:
        options = (f"checkpoint={trained[0] / 'checkpoints' / 'best.ckpt'}", "task=attention", "hydra.run.dir=run")
        assert call("evaluate", *options, "attention.transitions=3") == 0
        with (tmp_path / "run" / "figures.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        (windows,) = [row for row in rows if row["name"] == "num_windows"]
        assert (windows["value"], windows["count"]) == ("10", "1")  # of one held-out episode of twelve steps
        assert {(row["dataset"], row["env_id"], row["seed"]) for row in rows} == {(DATASET, "Pendulum-v1", "0")}
        assert all("task=attention" in row["command"] for row in rows)
        assert not (tmp_path / "run" / "results.json").exists()
        record = RunRecord.read(tmp_path / "run")
        assert record is not None
        assert (record.status, record.score) == ("finished", None)

    def test_a_repeated_sweep_skips_it_though_it_has_no_score(
        self,
        trained: tuple[Path, float],
        call: Callable[..., int],
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        checkpoint = trained[0] / "checkpoints" / "best.ckpt"
        sweep = ("-m", "hydra.sweep.dir=sweep", f"checkpoint={checkpoint}", "task=attention", "attention.windows=2,3")
        assert call("evaluate", *sweep) == 0
        monkeypatch.delattr(experiment, "evaluate_attention")  # so that calling it fails
        capsys.readouterr()
        assert call("evaluate", *sweep) == 0
        assert capsys.readouterr().out.count("is already finished") == 2

    @pytest.mark.parametrize(
        ("option", "code", "words"),
        [
            ("task=atention", 2, "did you mean 'attention'?"),
            ("attention.transitions=2", 2, "must be at least 3"),
            ("attention.transitions=5", 1, "attention.transitions=5 exceeds the 4 transitions"),
            ("attention.shown=9", 1, "only 9 windows"),
        ],
    )
    def test_a_mistake_is_one_sentence(
        self,
        trained: tuple[Path, float],
        call: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        option: str,
        code: int,
        words: str,
    ) -> None:
        options = (f"checkpoint={trained[0] / 'checkpoints' / 'best.ckpt'}", "hydra.run.dir=run")
        task = () if option.startswith("task") else ("task=attention",)
        assert call("evaluate", *options, *task, option) == code
        message = capsys.readouterr().err
        assert words in message
        assert len(message.strip().splitlines()) == 1


class TestReturnsWhileTraining:
    def playing(self, **changes: Any) -> TrainConfig:
        evaluation = EvaluationConfig(episodes=2, num_envs=4, every=1, every_episodes=3, choose="return")
        return replace(config(), evaluation=evaluation, **changes)

    @pytest.mark.parametrize(
        "learner", [None, ImplicitQLearning(), BehaviorCloning()], ids=["transformer", "iql", "bc"]
    )
    def test_the_best_of_them_is_evaluated_with_other_episodes(self, tmp_path: Path, learner: Learner | None) -> None:
        options = self.playing() if learner is None else self.playing(learner=spec_of(learner))
        run_training(options, RunContext(tmp_path, ""))
        results = results_of(tmp_path)
        choice = results["choice"]
        assert results["checkpoint"] == str(tmp_path / "checkpoints" / "best_return.ckpt")
        assert read_checkpoint(Path(results["checkpoint"]))["global_step"] == choice["best_by_return"]["step"]
        assert (choice["by"], choice["episodes"], choice["episodes_each"]) == ("return", 6, 3)
        assert choice["first_episode_seed"] == 500_007_000
        assert [episode["seed"] for episode in results["episodes"]] == [7000, 7001]
        assert choice["last"]["step"] == 2
        with (tmp_path / "metrics.csv").open(newline="") as file:
            means = {row["step"]: row["evaluation/return_mean"] for row in csv.DictReader(file)}
        for part in ("last", "best_by_loss", "best_by_return"):
            assert means[str(choice[part]["step"])] == repr(choice[part]["return_mean"])
        assert choice["best_by_return"]["return_mean"] == max(map(float, means.values()))

    def test_the_lowest_loss_is_evaluated_unless_told_otherwise(self, tmp_path: Path) -> None:
        run_training(config(every=1, every_episodes=3), RunContext(tmp_path, ""))
        assert results_of(tmp_path)["checkpoint"] == str(tmp_path / "checkpoints" / "best.ckpt")
        assert results_of(tmp_path)["choice"]["by"] == "loss"

    def test_without_there_is_no_choice_to_report(self, trained: tuple[Path, float]) -> None:
        assert "choice" not in results_of(trained[0])

    def test_its_environment_is_tried_before_training(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(PendulumEnv, "step", lambda *_: (np.zeros(3), 0.0, False, {}))
        with pytest.raises(UserError, match=r"environment 'Pendulum-v1': step\(array.* got 4"):
            run_training(config(episodes=0, every=1), RunContext(tmp_path, ""))
        assert not (tmp_path / "checkpoints").exists()


class TestOtherLearners:
    def test_a_critics_policy_acts_as_after_its_training(self, tmp_path: Path) -> None:
        score = run_training(
            replace(config(), learner=spec_of(ImplicitQLearning())), RunContext(tmp_path / "run", "command")
        )
        checkpoint = tmp_path / "run" / "checkpoints" / "best.ckpt"
        plan(checkpoint, tmp_path / "again")
        first, again = results_of(tmp_path / "run"), results_of(tmp_path / "again")
        assert first["summary"]["return_mean"] == score
        assert first["planner"] == {"name": "iql_policy", "horizon": 1, "beam_width": 1, "deadline_ms": None}
        assert again["episodes"] == first["episodes"][:1]
        assert again["planner"] == first["planner"]
        pictures = {path.name for path in (tmp_path / "run" / "plots").iterdir()}
        assert pictures == {"returns.png", "training.png"}  # a policy predicts nothing that could be drawn
        with pytest.raises(
            UserError, match=r"holds a policy of learner=iql, .*leave out planner and planner\.horizon$"
        ):
            load_agent(checkpoint, "cpu", {"horizon": 3})

    def test_an_ensemble_does_not_act(self, tmp_path: Path) -> None:
        score = run_training(replace(config(), learner=spec_of(EnsembleLearner())), RunContext(tmp_path, "command"))
        assert math.isfinite(score)
        assert not (tmp_path / "results.json").exists()
        with pytest.raises(
            UserError, match=r"holds an ensemble of dynamics models, .* predict\.ensemble=.*best\.ckpt$"
        ):
            load_agent(tmp_path / "checkpoints" / "best.ckpt", "cpu", {})


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Calls an entry point within this process and an empty working directory; returns the exit code."""
    monkeypatch.chdir(tmp_path)

    def entry(name: str, *arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        try:
            entry_point(name, Path(__file__).parents[2] / "configs")
        except SystemExit as exit:
            return int(exit.code or 0)
        return 0

    return entry


def flip(data: bytes) -> bytes:
    """``data`` with one bit of its middle changed."""
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGES = [
    (lambda data: b"", "is empty"),
    (lambda data: data[: len(data) // 2], "cut short"),
    (flip, "damaged"),
    (lambda data: pickle.dumps({"weights": 1}), "not a checkpoint of this project"),
]


class TestCommands:
    def test_planner_options_may_be_set_to_nothing(
        self, trained: tuple[Path, float], tmp_path: Path, call: Callable[..., int]
    ) -> None:
        best = trained[0] / "checkpoints" / "best.ckpt"
        assert results_of(trained[0])["planner"]["cdf_act"] == 0.6
        options = (f"checkpoint={best}", "episodes=1", "planner.cdf_act=null", "planner.k_obs=null")
        assert call("evaluate", *options, "hydra.run.dir=run") == 0
        planner = results_of(tmp_path / "run")["planner"]
        assert (planner["cdf_act"], planner["k_obs"]) == (None, None)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["planner.top_share=0.5"], "planner.top_share has no effect with planner.act=best"),
            (["planner.act=auto", "planner.temperature=0.9"], "planner.act=auto, which chose mean for this model"),
        ],
    )
    def test_planner_options_without_effect_on_the_checkpoint_s_others_are_refused(
        self,
        trained: tuple[Path, float],
        tmp_path: Path,
        call: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        options: list[str],
        message: str,
    ) -> None:
        best = trained[0] / "checkpoints" / "best.ckpt"
        assert call("evaluate", f"checkpoint={best}", *options, "hydra.run.dir=run") == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
        assert not (tmp_path / "run" / "results.json").exists()

    @pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=["empty", "truncated", "bit", "pickle"])
    def test_a_damaged_checkpoint_is_one_sentence(
        self,
        trained: tuple[Path, float],
        tmp_path: Path,
        call: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        damage: Callable[[bytes], bytes],
        words: str,
    ) -> None:
        data = (trained[0] / "checkpoints" / "best.ckpt").read_bytes()
        (tmp_path / "bad.ckpt").write_bytes(damage(data))
        assert call("evaluate", "checkpoint=bad.ckpt", "hydra.run.dir=run") == 1
        message = capsys.readouterr().err
        assert "bad.ckpt" in message
        assert words in message
        assert len(message.strip().splitlines()) == 1
        record = RunRecord.read(tmp_path / "run")
        assert record is not None
        assert record.status == "failed"

    @pytest.mark.parametrize(("damage", "words"), DAMAGES, ids=["empty", "truncated", "bit", "pickle"])
    def test_a_damaged_last_checkpoint_is_not_resumed(
        self,
        trained: tuple[Path, float],
        tmp_path: Path,
        call: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        damage: Callable[[bytes], bytes],
        words: str,
    ) -> None:
        data = (trained[0] / "checkpoints" / "last.ckpt").read_bytes()
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        (tmp_path / "run" / "checkpoints" / "last.ckpt").write_bytes(damage(data))
        (tmp_path / "run" / "config.yaml").write_text(yaml.safe_dump(asdict(config())))
        assert call("train", "resume=run") == 1
        message = capsys.readouterr().err
        assert "last.ckpt" in message
        assert words in message
        assert "Traceback" not in message
        assert (tmp_path / "run" / "checkpoints" / "last.ckpt").read_bytes() == damage(data)

    def test_predict_continues_held_out_episodes(
        self, trained: tuple[Path, float], tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        options = (f"checkpoint={trained[0] / 'checkpoints' / 'best.ckpt'}", "task=predict", "predict.samples=10")
        assert call("evaluate", *options, "predict.horizon=12", "episodes=1", "seed=3", "hydra.run.dir=run") == 0
        with (tmp_path / "run" / "figures.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert {(row["dataset"], row["env_id"], row["seed"], row["count"]) for row in rows} == {
            (DATASET, "Pendulum-v1", "3", "1")
        }
        (mean,) = (r for r in rows if (r["method"], r["name"]) == ("transformer", "log_likelihood_mean"))
        record = RunRecord.read(tmp_path / "run")
        assert record is not None
        assert record.score == pytest.approx(float(mean["value"]), rel=1e-5)
        assert not (tmp_path / "run" / "results.json").exists()
        assert call("evaluate", *options, "predict.horizon=13", "hydra.run.dir=longer") == 1
        assert "predict.horizon=13: no held-out episode" in capsys.readouterr().err
        assert call("evaluate", *options, "predict.ensemble=none.ckpt", "hydra.run.dir=missing") == 2
        assert "none.ckpt" in capsys.readouterr().err

    @pytest.mark.slow
    def test_an_ensemble_is_compared_where_it_was_trained_on_the_same_data(
        self, trained: tuple[Path, float], tmp_path: Path, call: Callable[..., int], capsys: pytest.CaptureFixture[str]
    ) -> None:
        small = ("trainer.max_steps=2", "trainer.validate_every=2", "trainer.progress_bar=false")
        masked = ("seed=7", "data.observation_indices=[0,2]")
        less = ("seed=7", "data.validation_fraction=0.3")
        for name, more in (("same", ("seed=7",)), ("masked", masked), ("seen", ("seed=1",)), ("less", less)):
            data = ("data=minari", f"data.dataset_id={DATASET}", "data.batch_size=8", "learner.hidden_width=8")
            assert call("train", "learner=ensemble", *data, *small, *more, f"hydra.run.dir={name}") == 0
        best = trained[0] / "checkpoints" / "best.ckpt"
        options = (f"checkpoint={best}", "task=predict", "predict.samples=5", "predict.horizon=3", "episodes=1")
        assert call("evaluate", *options, "predict.ensemble=same/checkpoints/best.ckpt", "hydra.run.dir=run") == 0
        assert "\nensemble,log_likelihood_step_3," in (tmp_path / "run" / "figures.csv").read_text()
        capsys.readouterr()
        assert call("evaluate", *options, "predict.ensemble=masked/checkpoints/best.ckpt", "hydra.run.dir=no") == 1
        assert "predict.ensemble has 2 observation dimensions" in capsys.readouterr().err
        assert call("evaluate", *options, "predict.ensemble=seen/checkpoints/best.ckpt", "hydra.run.dir=never") == 1
        assert "predict.ensemble was trained with seed=1, the checkpoint's model with 7" in capsys.readouterr().err
        assert call("evaluate", *options, "predict.ensemble=less/checkpoints/best.ckpt", "hydra.run.dir=nor") == 1
        assert "predict.ensemble was trained with data.validation_fraction=0.3, the" in capsys.readouterr().err
        assert call("evaluate", *options, f"predict.ensemble={best}", "hydra.run.dir=neither") == 1
        assert "trained with learner=transformer, and one of learner=ensemble is needed" in capsys.readouterr().err

    def test_an_evaluations_config_holds_the_planner_that_it_used(
        self, trained: tuple[Path, float], tmp_path: Path, call: Callable[..., int]
    ) -> None:
        checkpoint = trained[0] / "checkpoints" / "best.ckpt"
        options = (f"checkpoint={checkpoint}", "episodes=1", "num_envs=1", "planner.beam_width=3", "hydra.run.dir=run")
        assert call("evaluate", *options) == 0
        saved = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())
        assert saved["planner"] == results_of(tmp_path / "run")["planner"]
        assert (saved["planner"]["horizon"], saved["planner"]["beam_width"]) == (2, 3)
        assert saved["planner"]["discount"] == config().data.discount

    def test_a_directory_is_used_again_only_after_a_failure(
        self,
        trained: tuple[Path, float],
        tmp_path: Path,
        call: Callable[..., int],
        capsys: pytest.CaptureFixture[str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        def fail(*_: object) -> float:
            raise UserError("no display")

        options = (f"checkpoint={trained[0] / 'checkpoints' / 'best.ckpt'}", "episodes=1", "hydra.run.dir=run")
        with monkeypatch.context() as patch:
            patch.setattr(experiment, "evaluate", fail)
            assert call("evaluate", *options) == 1
        assert (tmp_path / "run" / "config.yaml").exists()
        assert call("evaluate", *options, "seed=1") == 0
        capsys.readouterr()
        assert call("evaluate", *options) == 2
        message = capsys.readouterr().err
        assert "already holds a run" in message
        assert "resume=" not in message
        assert results_of(tmp_path / "run")["seed"] == 1

    def test_sigterm_while_planning_after_training_leaves_no_running_run(
        self, tmp_path: Path, call: Callable[..., int], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def stopped(*_: object) -> None:
            signal.raise_signal(signal.SIGTERM)

        monkeypatch.setattr(experiment, "evaluate", stopped)
        options = ("data=minari", f"data.dataset_id={DATASET}", "data.sequence_length=4", "planner.context=2")
        small = ("trainer.max_steps=2", "trainer.validate_every=2", "trainer.progress_bar=false", "planner.horizon=2")
        assert call("train", "hydra.run.dir=run", *options, *small) == 143
        record = RunRecord.read(tmp_path / "run")
        assert record is not None
        assert record.status == "interrupted"

    @pytest.mark.slow
    @needs_compiler
    @pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
    def test_a_signal_ends_the_command_in_the_middle_of_a_plan(self, tmp_path: Path, number: signal.Signals) -> None:
        """The plan takes long, in the kernel."""
        options = config(episodes=0)
        options.model = ModelConfig(n_layer=4, n_head=2, n_embd=128)
        run_training(options, RunContext(tmp_path / "run", ""))
        program = [
            "import pathlib",
            "from trajectory_transformer.app import entry_point",
            "from trajectory_transformer.planning.native.decoder import NativeDecoder",
            "search = NativeDecoder.search",
            "def told(self, what):",
            "    print('planning' * (what.width == 1600), flush=True)",
            "    search(self, what)",
            "    print('planned' * (what.width == 1600), flush=True)",
            "NativeDecoder.search = told",
            f"entry_point('evaluate', pathlib.Path({str(CONFIGS)!r}))",
        ]
        plan = ("episodes=1", "planner.beam_width=1600", "planner.n_expand=40", "planner.horizon=3")
        words = ("checkpoint=run/checkpoints/last.ckpt", "hydra.run.dir=here", *plan)
        process = subprocess.Popen(
            [sys.executable, "-c", "\n".join(program), *words], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
            stderr=subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == "planning":
                break
        process.send_signal(number)
        output, errors = process.communicate(timeout=120)
        assert process.returncode == 128 + number, errors
        assert "planned" not in output
        assert "Traceback" not in errors
        record = RunRecord.read(tmp_path / "here")
        assert record is not None
        assert record.status == "interrupted"

    @pytest.mark.slow
    def test_a_sweeps_wandb_runs_share_its_group(
        self, tmp_path: Path, call: Callable[..., int], monkeypatch: pytest.MonkeyPatch, datasets: Path
    ) -> None:
        monkeypatch.delenv("WANDB_API_KEY", raising=False)
        monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
        options = ("data=minari", f"data.dataset_id={DATASET}", "data.sequence_length=4", "data.batch_size=8")
        small = ("trainer.max_steps=2", "trainer.validate_every=2", "trainer.progress_bar=false", "trainer.log_every=1")
        plans = ("evaluation.episodes=1", "planner.horizon=2", "planner.beam_width=2", "planner.context=2")
        sweep = ("-m", "hydra.sweep.dir=mysweep", "logger=wandb", "logger.project=tests", "seed=0,1")
        assert call("train", *sweep, *options, *small, *plans) == 0
        for job in "01":
            (file,) = (tmp_path / "mysweep" / job).glob("wandb/offline-run-*/run-*.wandb")
            inspect = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json"]
            read = [
                subprocess.run([*inspect, *more, str(file)], capture_output=True, text=True).stdout
                for more in ((), ("--summary",))
            ]
            summary = json.loads(read[1])
            assert '"run_group":"mysweep"' in read[0]
            assert '"job_type":"train"' in read[0]
            assert summary["config"]["seed"] == int(job)
            returns = results_of(tmp_path / "mysweep" / job)["summary"]
            assert summary["summary"]["evaluation/return_mean"] == returns["return_mean"]
            assert summary["summary"]["val/loss"]["min"] > 0.0
            assert f'"ref":"{(datasets / DATASET).as_uri()}/data/' in read[0]
            assert f"model-{(tmp_path / 'mysweep' / job / 'wandb' / 'run_id.txt').read_text()}" in read[0]
            assert summary["summary"]["plots/returns"]["_type"] == "image-file"
        (table,) = (tmp_path / "mysweep").glob("wandb/offline-run-*/files/media/table/sweep/*.json")
        assert [row[:2] for row in json.loads(table.read_text())["data"]] == [[0, "finished"], [1, "finished"]]


def test_held_out_episodes_are_those_that_training_validated_on(trained: tuple[Path, float]) -> None:
    datamodule = TrajectoryDataModule(config().data, seed=7)
    datamodule.setup()
    (episode,) = held_out_episodes(Checkpoint.read(trained[0] / "checkpoints" / "best.ckpt"))
    table = join_episodes([episode], config().data.resolve_penalty(ends_have_rewards=False))
    assert (table.values == datamodule.validation_table.values).all()


def test_held_out_episodes_of_other_data_are_refused(trained: tuple[Path, float]) -> None:
    contents = read_checkpoint(trained[0] / "checkpoints" / "best.ckpt")
    contents[SECTION]["dataset"]["fingerprint"] = "0"
    with pytest.raises(UserError, match="differs from the one that"):
        held_out_episodes(Checkpoint.from_contents(contents))


def test_an_objective_of_ones_own_plans_after_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class named on the command line is trusted in that run; its name in the checkpoint is not."""
    (tmp_path / "own_package.py").write_text(
        "from trajectory_transformer.planning.objectives import Return\n\n\nclass Own(Return):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    planner = PlannerConfig(horizon=2, beam_width=2, context=2, objective={"_target_": "own_package.Own"})
    run_training(replace(config(episodes=1), planner=planner), RunContext(tmp_path / "run", ""))
    recorded = results_of(tmp_path / "run")["planner"]
    assert (recorded["name"], recorded["objective"]) == ("Own", {"_target_": "own_package.Own"})
    with pytest.raises(UserError, match=r"add allow=\[own_package\]"):
        load_agent(tmp_path / "run" / "checkpoints" / "best.ckpt", "cpu", {})


def test_a_mistake_in_an_objective_is_told_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_mistake.py").write_text(
        "from trajectory_transformer.planning.objectives import Return\n\n\nclass Own(Return):\n"
        "    def __call__(self, candidates):\n        return candidates.rewards\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    planner = PlannerConfig(horizon=2, beam_width=2, context=2, objective={"_target_": "own_mistake.Own"})
    message = r"own_mistake\.Own returns scores of shape \(2, 4, 1\) \(.*own_mistake.py:5\); .* \(2, 4\)"
    with pytest.raises(UserError, match=message):
        run_training(replace(config(), planner=planner), RunContext(tmp_path / "run", ""))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("error", [UserError("no"), RuntimeError("no")])
def test_an_evaluation_that_fails_tells_that_the_model_is_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    """Its last line is the command that evaluates the checkpoint."""

    def fail(*_: object) -> NoReturn:
        raise error

    monkeypatch.setattr(experiment, "evaluate", fail)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(type(error)) as caught:
        run_training(config(), RunContext(tmp_path / "run", ""))
    lines = traceback.format_exception_only(caught.value)
    assert lines[-1].strip() == (
        "the model is trained and saved; evaluate it with: python evaluate.py checkpoint=run/checkpoints/best.ckpt"
    )
    assert not isinstance(error, UserError) or error.told.endswith("run/checkpoints/best.ckpt")
    assert (tmp_path / "run" / "checkpoints" / "best.ckpt").exists()


def test_a_critic_that_cannot_be_had_is_refused_before_training(tmp_path: Path) -> None:
    objective = {"_target_": OBJECTIVES["critic"], "critic": "none.ckpt"}
    options = replace(config(), planner=PlannerConfig(horizon=2, beam_width=2, context=2, objective=objective))
    with pytest.raises(UserError, match=r"checkpoint 'none\.ckpt' does not exist"):
        run_training(options, RunContext(tmp_path, ""))
    assert not (tmp_path / "checkpoints").exists()
