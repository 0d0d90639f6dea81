"""Train, plan, write results; on Gymnasium's pendulum, with a model of a few hundred weights."""

import json
from pathlib import Path

import gymnasium as gym
import pytest
import torch

from trajectory_transformer.checkpoint import read_checkpoint, write_checkpoint
from trajectory_transformer.configuration import (
    DataConfig,
    DiscretizerConfig,
    EvaluateConfig,
    EvaluationConfig,
    ModelConfig,
    PlannerConfig,
    TrainConfig,
    TrainerConfig,
)
from trajectory_transformer.errors import UserError
from trajectory_transformer.experiment import RunContext, run_evaluation, run_training

from .minari_sets import random_episode, write_dataset

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


def config(**evaluation: int) -> TrainConfig:
    return TrainConfig(
        data=DataConfig(DATASET, discretizer=DiscretizerConfig(num_bins=8), sequence_length=4, batch_size=8),
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8),
        trainer=TrainerConfig(max_steps=2, validate_every=2, checkpoint_every=2, log_every=1, progress_bar=False),
        planner=PlannerConfig(horizon=2, beam_width=2, context=2),
        evaluation=EvaluationConfig(**({"episodes": 2, "num_envs": 4} | evaluation)),
        seed=7,
    )


@pytest.fixture(scope="module")
def trained(datasets: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, float]:
    """Directory and score of a run."""
    directory = tmp_path_factory.mktemp("run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINARI_DATASETS_PATH", str(datasets))
        return directory, run_training(config(), RunContext(directory, "python train.py seed=7"))


def results_of(directory: Path) -> dict:
    return json.loads((directory / "results.json").read_text())


def test_training_leaves_what_the_contract_names(trained: tuple[Path, float]) -> None:
    directory, score = trained
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", "metrics.csv", "results.json", "plots/returns.png"):
        assert (directory / name).stat().st_size > 0, name
    results = results_of(directory)
    assert score == results["summary"]["return_mean"]
    assert results["command"] == "python train.py seed=7"
    assert results["dataset"] == DATASET
    assert [episode["seed"] for episode in results["episodes"]] == [7000, 7001]
    assert [episode["length"] for episode in results["episodes"]] == [4, 4]
    assert results["planner"]["horizon"] == 2
    assert results["behavior"]["episodes"] == 6


def test_without_episodes_the_score_is_the_negative_loss(tmp_path: Path) -> None:
    score = run_training(config(episodes=0), RunContext(tmp_path, ""))
    assert -10.0 < score < 0.0
    assert not (tmp_path / "results.json").exists()


def test_a_finished_run_that_lacks_results_is_only_evaluated(tmp_path: Path) -> None:
    run_training(config(episodes=0), RunContext(tmp_path, ""))
    before = (tmp_path / "checkpoints" / "best.ckpt").read_bytes()
    score = run_training(config(), RunContext(tmp_path, "", resume=True))
    assert score == results_of(tmp_path)["summary"]["return_mean"]
    assert (tmp_path / "checkpoints" / "best.ckpt").read_bytes() == before


class TestEvaluation:
    def test_it_plans_as_the_training_run_did(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        directory, score = trained
        options = EvaluateConfig(str(directory / "checkpoints" / "best.ckpt"), episodes=2, num_envs=1, seed=7000)
        assert run_evaluation(options, RunContext(tmp_path, "command"), {}) == score
        assert results_of(tmp_path)["episodes"] == results_of(directory)["episodes"]
        assert results_of(tmp_path)["planner"] == results_of(directory)["planner"]

    def test_planner_options_replace_the_recorded_ones(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        options = EvaluateConfig(str(trained[0] / "checkpoints" / "best.ckpt"), episodes=1)
        run_evaluation(options, RunContext(tmp_path, ""), {"horizon": 3})
        planner = results_of(tmp_path)["planner"]
        assert (planner["horizon"], planner["beam_width"]) == (3, 2)

    def test_a_plan_longer_than_the_model_sees_is_refused(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        options = EvaluateConfig(str(trained[0] / "checkpoints" / "best.ckpt"), episodes=1)
        with pytest.raises(UserError, match=r"planner\.horizon=9"):
            run_evaluation(options, RunContext(tmp_path, ""), {"horizon": 9})

    def test_a_missing_checkpoint_starts_no_logger(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"nowhere\.ckpt"):
            run_evaluation(EvaluateConfig(str(tmp_path / "nowhere.ckpt")), RunContext(tmp_path / "run", ""), {})
        assert not (tmp_path / "run").exists()

    def test_an_environment_that_does_not_fit_is_refused(self, trained: tuple[Path, float], tmp_path: Path) -> None:
        contents = read_checkpoint(trained[0] / "checkpoints" / "best.ckpt")
        specification = gym.spec("CartPole-v1").to_json()
        contents["trajectory_transformer"]["environment"] |= {"env_id": "CartPole-v1", "spec_json": specification}
        write_checkpoint(tmp_path / "other.ckpt", contents)
        with pytest.raises(UserError, match="space"):
            run_evaluation(EvaluateConfig(str(tmp_path / "other.ckpt")), RunContext(tmp_path, ""), {})

    def test_an_accelerator_that_is_not_there_is_refused(
        self, trained: tuple[Path, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        options = EvaluateConfig(str(trained[0] / "checkpoints" / "best.ckpt"), accelerator="gpu")
        with pytest.raises(UserError, match="no GPU"):
            run_evaluation(options, RunContext(tmp_path, ""), {})
