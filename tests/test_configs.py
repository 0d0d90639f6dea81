"""Every option of every config group composes into valid typed options."""

from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig
from omegaconf.errors import MissingMandatoryValue

from trajectory_transformer.app import schema
from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.configuration import DataConfig, EvaluateConfig, TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.training.learner import make_learner

CONFIGS = Path(__file__).parent.parent / "configs"
CHOICES = [(file.parent.name, file.stem) for file in sorted(CONFIGS.glob("*/*.yaml"))]
NEEDED = {  # what an option leaves to the user, or needs beside it
    ("data", "minari"): ["data.dataset_id=[one/v0,two/v0]"],
    ("data", "npz"): ["data.source.path=episodes", "data.source.env_id=Hopper-v5"],
    ("planner", "goal"): ["model.goal_conditioned=true"],
    ("planner", "critic"): ["planner.objective.critic=critic.ckpt"],
    **{
        ("data", f"goal_{maze}"): ["model.goal_conditioned=true", "planner=goal"]
        for maze in ("fourrooms", "umaze", "medium", "large")
    },
}

LOGGERS = {  # choice -> logger.name and the names in logger.extra
    "csv": ("csv", []),
    "wandb": ("wandb", []),
    **{name: ("csv", [name]) for name in ("tensorboard", "mlflow", "trackio")},
}


def composed(command: str, *overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose(command, list(overrides))


@pytest.mark.parametrize(("group", "option"), CHOICES)
def test_every_option_of_train_composes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, group: str, option: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("critic.ckpt").touch()
    config = schema.typed_train(composed("train", f"{group}={option}", *NEEDED.get((group, option), [])))
    assert isinstance(config, TrainConfig)
    if group == "experiment":
        assert config.experiment_name == option
    if group == "planner":
        assert config.planner.name == option
    if group == "logger":
        assert (config.logger.name, list(config.logger.extra)) == LOGGERS[option]


@pytest.mark.parametrize(("group", "option"), [choice for choice in CHOICES if choice[0] in ("planner", "logger")])
def test_every_option_of_evaluate_composes(group: str, option: str) -> None:
    overrides = [
        "checkpoint=best.ckpt",
        f"{group}={option}",
        *(["planner.objective.critic=c.ckpt"] if option == "critic" else []),
    ]
    config = schema.typed_evaluate(composed("evaluate", *overrides), overrides, group == "planner")
    assert isinstance(config, EvaluateConfig)
    if group == "planner":
        assert config.planner.name == option
    else:
        assert (config.logger.name, list(config.logger.extra)) == LOGGERS[option]


@pytest.mark.parametrize("choices", ["csv,wandb,tensorboard", "tensorboard,wandb,csv", "wandb,tensorboard"])
def test_several_loggers_at_once(choices: str) -> None:
    overrides = ["checkpoint=best.ckpt", f"logger=[{choices}]", "logger.tags=[mine]"]
    for config in (
        schema.typed_train(composed("train", *overrides[1:])),
        schema.typed_evaluate(composed("evaluate", *overrides), overrides, False),
    ):
        assert (config.logger.name, list(config.logger.extra)) == ("wandb", ["tensorboard"])
        assert config.logger.tags == ["mine"]


def test_the_options_that_the_contract_names_exist() -> None:
    named = {
        *(("model", name) for name in ("tiny", "base", "large")),
        *(("trainer", name) for name in ("cpu", "gpu", "ddp", "slurm")),
        *(("logger", name) for name in ("csv", "wandb")),
    }
    assert named <= set(CHOICES)


def test_base_is_the_papers_model() -> None:
    config = schema.typed_train(composed("train", "model=base"))
    assert (config.model.n_layer, config.model.n_head, config.model.n_embd) == (4, 4, 128)
    assert config.data.discretizer.num_bins == 100
    assert config.model.attn_pdrop == config.model.embd_pdrop == config.model.resid_pdrop == 0.1


def test_the_default_needs_no_accelerator_no_account_and_no_download() -> None:
    config = schema.typed_train(composed("train"))
    assert config.trainer.accelerator == "cpu"
    assert config.logger.name == "csv"
    assert config.data.dataset_ids[0].startswith("embedded/")


@pytest.mark.parametrize(("body", "dimensions", "num_kept"), [("hopper", 11, 6), ("halfcheetah", 17, 9)])
def test_masked_experiments_keep_the_dimensions_that_their_comments_derive(
    body: str, dimensions: int, num_kept: int
) -> None:
    config = schema.typed_train(composed("train", f"experiment=predict_{body}_masked"))
    kept = np.random.default_rng(0).permutation(dimensions)[:num_kept]
    assert config.data.observation_indices == sorted(kept.tolist())
    assert config.data.dataset_ids[0].startswith(f"embedded/{body}/")
    seen = schema.typed_train(composed("train", f"experiment=predict_{body}"))
    seen.data.observation_indices, seen.experiment_name = config.data.observation_indices, config.experiment_name
    assert config == seen


def test_a_mask_that_hides_everything_is_refused() -> None:
    with pytest.raises(UserError, match=r"observation_indices=\[\] hides every dimension"):
        DataConfig(observation_indices=[])


def test_several_data_sets_can_be_joined() -> None:
    config = schema.typed_train(composed("train", "data=minari", "data.dataset_id=[one/v0,two/v0]"))
    assert config.data.dataset_ids == ["one/v0", "two/v0"]


def test_each_yaml_begins_with_a_comment_that_says_what_it_is() -> None:
    for file in CONFIGS.rglob("*.yaml"):
        lines = file.read_text().splitlines()
        assert lines[0].startswith("# @package") or lines[0].startswith("# "), file
        assert len(lines) <= 40, file


def test_a_slurm_run_is_named_after_its_job(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_ID", "4711")
    assert schema.run_name(True) == "slurm-4711"
    assert "4711" not in schema.run_name(False)


def test_only_the_named_planner_options_replace_the_checkpoints() -> None:
    planner = {"horizon": 7, "beam_width": 32, "name": "return"}
    overrides = ["checkpoint=a", "planner.horizon=7"]
    assert schema.planner_overrides(overrides, planner, planner_chosen=False) == {"horizon": 7}
    assert schema.planner_overrides(["planner=return"], planner, planner_chosen=True) == planner


def test_critics_have_their_papers_settings() -> None:
    """Kostrikov, Nair and Levine (2021), table of hyper-parameters: locomotion and AntMaze."""
    for name, expected in {
        "iql_hopper": (0.7, 3.0, "scaled"),
        "iql_antmaze": (0.9, 10.0, "minus_one"),
        "iql_pointmaze_medium": (0.9, 10.0, "minus_one"),
    }.items():
        config = schema.typed_train(composed("train", f"experiment={name}"))
        learner = make_learner(config.learner, TYPED_BY_USER)
        assert isinstance(learner, ImplicitQLearning)
        assert (learner.expectile, learner.inverse_temperature, learner.rewards) == expected
        assert (learner.hidden_layers, learner.hidden_width, learner.target_rate) == (2, 256, 0.005)
        assert (config.data.batch_size, config.data.discount, config.data.termination_penalty) == (256, 0.99, None)
        optimizer = config.optimizer
        assert (optimizer.learning_rate, optimizer.beta1, optimizer.beta2) == (3e-4, 0.9, 0.999)
        assert (optimizer.weight_decay, optimizer.gradient_clip_norm) == (0.0, None)


def test_several_callbacks_at_once() -> None:
    config = schema.typed_train(composed("train", "callbacks=[early_stopping,gradient_norm]"))
    assert list(config.trainer.callbacks) == ["early_stopping", "gradient_norm"]
    both = composed("train", "callbacks=learning_rate", "trainer.callbacks.learning_rate.log_momentum=false")
    assert schema.typed_train(both).trainer.callbacks["learning_rate"]["log_momentum"] is False


def test_baselines_have_their_papers_settings() -> None:
    """Chen et al. (2021) and Tarasov et al. (2023), tables of hyper-parameters for Hopper."""
    config = schema.typed_train(composed("train", "experiment=dt_hopper"))
    assert make_learner(config.learner, TYPED_BY_USER) == ReturnConditioned(
        context=20, n_layer=3, n_head=1, n_embd=128, dropout=0.1, return_scale=1000.0
    )
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.gradient_clip_norm) == (1e-4, 1e-4, 0.25)
    assert (optimizer.final_learning_rate_fraction, config.data.batch_size) == (1.0, 64)
    config = schema.typed_train(composed("train", "experiment=rebrac_hopper"))
    assert make_learner(config.learner, TYPED_BY_USER) == RegularizedActorCritic(
        hidden_layers=3, hidden_width=256, actor_penalty=0.05, critic_penalty=0.5, policy_noise=0.2, noise_clip=0.5,
        policy_every=2, target_rate=0.005,
    )  # fmt: skip
    optimizer = config.optimizer
    assert (optimizer.learning_rate, optimizer.weight_decay, optimizer.gradient_clip_norm) == (1e-3, 0.0, None)
    assert (optimizer.final_learning_rate_fraction, optimizer.warmup_tokens) == (1.0, 0)
    assert (config.data.batch_size, config.data.discount, config.data.termination_penalty) == (1024, 0.99, None)


def test_all_six_antmaze_sets() -> None:
    names = [file.stem for file in sorted((CONFIGS / "data").glob("antmaze_*.yaml"))]
    sets = [schema.typed_train(composed("train", f"data={name}")).data.dataset_id for name in names]
    kinds = ("large-diverse", "large-play", "medium-diverse", "medium-play", "umaze", "umaze-diverse")
    assert sets == [f"D4RL/antmaze/{kind}-v1" for kind in kinds]


@pytest.mark.parametrize("command", [("train",), ("evaluate", "checkpoint=best.ckpt")])
def test_a_critic_is_asked_for_before_anything_is_loaded(command: tuple[str, ...]) -> None:
    overrides = [*command[1:], "planner=critic"]
    config = composed(command[0], *overrides)
    with pytest.raises(MissingMandatoryValue, match=r"planner\.objective\.critic"):
        schema.typed_train(config) if command[0] == "train" else schema.typed_evaluate(config, overrides, True)


@pytest.mark.parametrize(("data", "penalty"), [("pointmaze_medium", None), ("hopper_medium", -100.0)])
def test_weights_by_advantage_keep_the_rewards_of_the_data(data: str, penalty: float | None) -> None:
    """Where reaching a goal terminates the episode, a penalty would teach to avoid it."""
    config = composed("train", "method=awr", f"data={data}")
    assert config.data.termination_penalty == penalty
