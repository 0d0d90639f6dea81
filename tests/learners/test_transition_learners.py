"""Learners other than the transformer under Lightning: their data, exact resume, checkpoints, processes."""

import math
import subprocess
import sys
from pathlib import Path
from typing import cast

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torchmetrics import MetricCollection
from typing_extensions import override

from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint, write_checkpoint
from trajectory_transformer.configuration import OptimizerConfig, TrainConfig
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.critic import Critic
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.ensemble_network import read_ensemble
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.learners.transition_module import TransitionModule
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.trained_transformer import TrainedTransformer
from trajectory_transformer.training.datamodule import split_episodes
from trajectory_transformer.training.fit import FitReport, fit
from trajectory_transformer.training.learner import Learner, make_learner

from ..specs import spec_of
from ..training.small_run import Rows, small_config, small_data, small_datamodule, small_fit, weights

LEARNERS: dict[str, Learner] = {
    "iql": ImplicitQLearning(hidden_layers=1, hidden_width=8),
    "ensemble": EnsembleLearner(num_members=2, hidden_layers=1, hidden_width=8),
    "bc": BehaviorCloning(hidden_layers=1, hidden_width=8, best_fraction=0.5),
    "awr": BehaviorCloning(hidden_layers=1, hidden_width=8, inverse_temperature=3.0),
    "dt": ReturnConditioned(context=3, n_layer=1, n_embd=8),  # with dropout
    "rebrac": RegularizedActorCritic(hidden_layers=1, hidden_width=8),
}


def config(learner: str, **trainer: object) -> TrainConfig:
    """Batches of 9 of about 88 transitions; a validation every 6 updates, a save every 5."""
    options = small_config(**trainer)
    options.learner = spec_of(LEARNERS[learner])
    options.optimizer = OptimizerConfig(learning_rate=1e-2, gradient_clip_norm=None, final_learning_rate_fraction=0.0)
    return options


def run(directory: Path, options: TrainConfig, *callbacks: Callback, resume: bool = False) -> FitReport:
    learner = make_learner(options.learner, TYPED_BY_USER)
    return fit(learner, options, directory, small_datamodule(options), [], callbacks, resume)


class StopAt(Callback):
    """Ends the process's training as an exception would, without a save."""

    def __init__(self, step: int) -> None:
        self.step = step

    @override
    def on_train_batch_start(self, trainer: L.Trainer, *_: object, **__: object) -> None:
        if trainer.global_step == self.step:
            raise KeyError("stopped")


def test_the_split_is_the_transformers() -> None:
    options = config("iql")
    train, validation = split_episodes(small_data(), options.data.validation_fraction, options.seed)
    module = small_datamodule(options)
    for part, episodes in ((module.train_set, train), (module.validation_set, validation)):
        expected = torch.cat([torch.from_numpy(episode.observations[:-1]) for episode in episodes])
        assert torch.equal(part.all.observations, expected)
    assert (module.num_train, module.num_validation) == (len(module.train_set), len(module.validation_set))


def test_bootstrap_samples_are_drawn_with_replacement_once_for_each_member() -> None:
    module = small_datamodule(config("ensemble"))
    everything = torch.arange(module.num_train)
    first, second = module.train_examples.gather(everything).observations[..., 0]
    assert not torch.equal(first, second)
    share = len(torch.unique(first)) / len(torch.unique(module.train_set.all.observations))
    assert 0.45 < share < 0.8  # 1 − 1/e of the transitions are expected in a sample
    again = small_datamodule(config("ensemble")).train_examples.gather(everything)
    assert torch.equal(again.observations[0, :, 0], first)
    same = module.validation_examples.gather(torch.arange(3)).observations
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], module.validation_set.all.observations[:3])


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize("step", [12, 17])
def test_resume_gives_identical_weights(tmp_path: Path, learner: str, step: int) -> None:
    run(tmp_path / "whole", config(learner))
    with pytest.raises(KeyError, match="stopped"):
        run(tmp_path / "parts", config(learner), StopAt(step))
    report = run(tmp_path / "parts", config(learner), resume=True)
    assert report.steps == 24
    for name in ("last", "best"):
        whole, parts = (weights(tmp_path / part / "checkpoints" / f"{name}.ckpt") for part in ("whole", "parts"))
        assert whole.keys() == parts.keys()
        assert all(torch.equal(value, parts[key]) for key, value in whole.items())


@pytest.mark.slow
@pytest.mark.parametrize("learner", ["awr", "dt", "rebrac"])
def test_two_processes(tmp_path: Path, learner: str) -> None:
    """Both have the same weights; without random draws or averages per process, also those of a single process."""
    call = [sys.executable, "-m", "tests.learners.two_processes"]
    for processes in ("1", "2"):
        (tmp_path / processes).mkdir()
        done = subprocess.run([*call, str(tmp_path / processes), learner, processes], cwd=Path(__file__).parents[2])
        assert done.returncode == 0
    alone, saved = (weights(tmp_path / processes / "checkpoints" / "last.ckpt") for processes in ("1", "2"))
    for name, value in saved.items():
        for rank in range(2):
            assert torch.equal(torch.load(tmp_path / "2" / f"rank{rank}.pt", weights_only=True)["weights"][name], value)
        if learner in ("awr", "dt"):
            torch.testing.assert_close(value, alone[name], rtol=1e-3, atol=1e-4)


def test_best_is_the_latest_critic_but_the_likeliest_ensemble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation losses are made to fall, then to rise."""
    losses = iter([3.0, 1.0, 2.0, 4.0] * len(LEARNERS))
    compute = MetricCollection.compute
    monkeypatch.setattr(MetricCollection, "compute", lambda self: compute(self) | {"loss": torch.tensor(next(losses))})
    reports = {learner: run(tmp_path / learner, config(learner)) for learner in LEARNERS}
    steps = {learner: read_checkpoint(report.best)["global_step"] for learner, report in reports.items()}
    assert steps == {"iql": 24, "ensemble": 12, "bc": 12, "awr": 12, "dt": 12, "rebrac": 24}
    assert (reports["iql"].validation_loss, reports["ensemble"].validation_loss) == (4.0, 1.0)


def test_rates_decay_and_metrics_of_a_critic(tmp_path: Path) -> None:
    class Rates(Callback):
        @override
        def on_train_batch_end(self, trainer: L.Trainer, *_: object, **__: object) -> None:
            groups.append([(group["lr"], group["weight_decay"]) for group in trainer.optimizers[0].param_groups])

    groups: list[list[tuple[float, float]]] = []
    options = config("iql")
    options.optimizer.warmup_tokens = 0
    rows = Rows()
    fit(LEARNERS["iql"], options, tmp_path, small_datamodule(options), [rows], [Rates()], False)
    for step, row in enumerate(groups, start=1):
        cosine = 1e-2 * 0.5 * (1.0 + math.cos(math.pi * step / 24))
        assert [rate for rate, _ in row] == pytest.approx(
            [cosine, cosine, 1e-2, 1e-2]
        )  # the policy's, then V's and Q's
        assert [decay for _, decay in row] == [0.1, 0.0, 0.1, 0.0]
    assert rows.rows[24, "train/loss"] == pytest.approx(
        sum(rows.rows[24, f"train/{part}_loss"] for part in ("v", "q", "policy")), rel=1e-5
    )
    assert rows.rows[24, "train/transitions_per_second"] > 0
    assert math.isfinite(rows.rows[24, "val/q_loss"])


def test_a_critic_is_what_was_trained(tmp_path: Path) -> None:
    class Keep(Callback):
        @override
        def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            network = cast(TransitionModule, pl_module).network
            with torch.no_grad():
                kept.append((network.q(*pair), network.v(pair[0]), network.policy_mean(pair[0])))  # pyright: ignore

    kept: list[tuple[torch.Tensor, ...]] = []
    pair = torch.tensor([[0.5], [-2.0]]), torch.tensor([[1.0], [-1.0]])
    report = run(tmp_path, config("iql"), Keep())
    critic = Critic.load(report.best)
    outputs = critic.network.q(*pair), critic.network.v(pair[0]), critic.network.policy_mean(pair[0])
    for output, expected in zip(outputs, kept[0], strict=True):
        assert torch.equal(output, expected)
    penalized = [e.rewards.sum() if not e.terminated else e.rewards[:-1].sum() - 100 for e in split_training()]
    assert critic.reward_scale == pytest.approx(1000 / (max(penalized) - min(penalized)), rel=1e-5)
    assert (critic.reward_shift, critic.discount) == (0.0, 0.99)
    assert critic.environment == small_data().environment
    assert not any(parameter.requires_grad for parameter in critic.network.parameters())
    contents = torch.load(report.best, weights_only=True)
    assert contents[SECTION]["kind"] == "iql"


def split_training() -> list:
    options = config("iql")
    return split_episodes(small_data(), options.data.validation_fraction, options.seed)[0]


def test_an_ensemble_is_what_was_trained(tmp_path: Path) -> None:
    report = run(tmp_path, config("ensemble"))
    checkpoint = Checkpoint.read(report.best)
    network = read_ensemble(checkpoint)
    assert network.num_members == 2
    assert checkpoint.training.environment == small_data().environment
    assert (checkpoint.training.dataset.ids, checkpoint.training.dataset.fingerprint) == (("small/walk-v0",), "0" * 64)
    assert torch.load(report.best, weights_only=True)[SECTION]["kind"] == "ensemble"
    module = small_datamodule(config("ensemble"))
    batch = module.validation_examples.gather(torch.arange(module.num_validation))
    nats = network.nats(batch).mean().item()
    assert report.validation_loss == pytest.approx(nats, rel=1e-5)


def test_checkpoints_of_another_kind(tmp_path: Path) -> None:
    paths = {learner: run(tmp_path / learner, config(learner, max_steps=1)).best for learner in LEARNERS}
    transformer = small_fit(tmp_path / "transformer", small_config(max_steps=1)).best
    assert read_checkpoint(transformer)[SECTION].pop("kind") == "transformer"
    older = read_checkpoint(transformer)
    del older[SECTION]["kind"]
    write_checkpoint(tmp_path / "older.ckpt", older)
    for path in (transformer, tmp_path / "older.ckpt"):
        Agent.from_checkpoint(path)
        with pytest.raises(UserError, match=r"ckpt' was trained with learner=transformer, and one of learner=iql is"):
            Critic.load(path)
        with pytest.raises(UserError, match=r"ckpt' was trained with learner=transformer, and one of learner=ensemble"):
            read_ensemble(Checkpoint.read(path))
    with pytest.raises(
        UserError, match=r"ckpt' was trained with learner=ensemble, and one of learner=iql is needed here$"
    ):
        Critic.load(paths["ensemble"])
    for learner, path in paths.items():
        for load in (Agent.of, TrainedTransformer.of):
            with pytest.raises(UserError, match=rf"learner={LEARNERS[learner].kind}, and one of learner=transf"):
                load(Checkpoint.read(path))
    unknown = read_checkpoint(transformer)
    unknown[SECTION]["kind"] = "oracle"
    del unknown[SECTION]["learner"]
    with pytest.raises(UserError, match=r"'oracle', which this version does not know"):
        Checkpoint.from_contents(unknown)


@pytest.mark.parametrize("learner", ["iql", "bc", "dt", "rebrac"])
def test_a_checkpoint_whose_weights_do_not_fit(tmp_path: Path, learner: str) -> None:
    contents = read_checkpoint(run(tmp_path, config(learner, max_steps=1)).best)
    contents["state_dict"] = {name: torch.zeros(3) for name in contents["state_dict"]}
    with pytest.raises(UserError, match=r"^the contents of checkpoint 'bad\.ckpt' do not fit together: "):
        LEARNERS[learner].make_agent(Checkpoint.from_contents(contents, "bad.ckpt"), "cpu", {})


def test_a_checkpoint_of_earlier_versions_names_its_learner_by_kind(tmp_path: Path) -> None:
    for learner in ("iql", "ensemble"):
        contents = read_checkpoint(run(tmp_path / learner, config(learner, max_steps=1)).best)
        del contents[SECTION]["learner"]
        assert type(make_learner(Checkpoint.from_contents(contents).training.learner, ())) is type(LEARNERS[learner])


def test_resume_with_another_learner_or_other_options(tmp_path: Path) -> None:
    run(tmp_path, config("iql", max_steps=2))
    with pytest.raises(UserError, match=r"last\.ckpt' was trained with learner=iql, and one of learner=ensemble"):
        run(tmp_path, config("ensemble"), resume=True)
    other = config("iql")
    other.learner["expectile"] = 0.9
    with pytest.raises(
        UserError, match=r"last\.ckpt' has learner.expectile=0\.7, but now it would be 0\.9; resume with"
    ):
        run(tmp_path, other, resume=True)


def test_options_that_make_no_sense() -> None:
    with pytest.raises(UserError, match=r"^trainer\.compile=true is for learner=transformer, not iql$"):
        LEARNERS["iql"].check(small_config(compile=True))
    for learner, message in {
        ImplicitQLearning: r"^learner\.expectile=1\.0 must lie in \(0, 1\)$",
        EnsembleLearner: r"^learner\.num_members=0 must be at least 1$",
        BehaviorCloning: r"^learner\.best_fraction=0\.0 must lie in \(0, 1\]$",
    }.items():
        name, value = {ImplicitQLearning: ("expectile", 1.0), EnsembleLearner: ("num_members", 0)}.get(
            learner, ("best_fraction", 0.0)
        )
        with pytest.raises(UserError, match=message):
            learner(**{name: value})


class TestCloning:
    def test_clones_the_best_episodes(self) -> None:
        options = config("bc")
        train, _ = split_episodes(small_data(), options.data.validation_fraction, options.seed)
        module = small_datamodule(options)
        best = sorted((float(episode.rewards.sum()) for episode in train), reverse=True)[: round(len(train) / 2)]
        assert module.num_train == 8 * len(best)
        assert float(module.rows["train"][:, 2].sum()) == pytest.approx(
            sum(best) + sum(-100 - e.rewards[-1] for e in train if e.rewards.sum() >= best[-1] - 1e-6 and e.terminated),
            rel=1e-5,
        )

    def test_a_linear_policy_is_recovered(self, tmp_path: Path) -> None:
        """Actions are tanh(x / 2) of the observation: the clone's actions are within 0.05 of them."""
        data = small_data(episodes=20)
        for episode in data.episodes:
            episode.actions[:] = 10.0 * np.tanh(episode.observations[:-1] / 2)
        options = config("bc", max_steps=1500, validate_every=500, checkpoint_every=500)
        options.learner = spec_of(BehaviorCloning(hidden_layers=1, hidden_width=64))
        options.data.batch_size = 64
        learner = make_learner(options.learner, TYPED_BY_USER)
        report = fit(learner, options, tmp_path, small_datamodule(options, data), [], [], False)
        agent = learner.make_agent(Checkpoint.read(report.best), "cpu", {})
        observations = np.linspace(-3, 3, 13, dtype=np.float32)[:, None]
        agent.reset(13)
        np.testing.assert_allclose(agent.act(observations), 10.0 * np.tanh(observations / 2), atol=0.5)
        assert agent.settings.name == "bc_policy"

    def test_weights_by_advantage_move_the_action_to_the_better_one(self, tmp_path: Path) -> None:
        """All observations are alike, half of the actions 5 with reward 1, half -5 with 0.

        So the advantages are 0.5 and -0.5, their deviation is 0.5, and weights are e and 1/e.
        """
        data = small_data(episodes=20)
        for episode in data.episodes:
            episode.observations[:] = 0.0
            episode.actions[:, 0] = [5.0, -5.0] * 4
            episode.rewards[:] = [1.0, 0.0] * 4
        acted = {}
        for beta in (0.0, 1.0):
            options = config("bc", max_steps=600, validate_every=200, checkpoint_every=200)
            options.learner = spec_of(BehaviorCloning(hidden_layers=1, hidden_width=8, inverse_temperature=beta))
            options.data.termination_penalty, options.data.discount = None, 1e-6
            options.data.batch_size = 144  # all 18 training episodes
            learner = make_learner(options.learner, TYPED_BY_USER)
            report = fit(learner, options, tmp_path / str(beta), small_datamodule(options, data), [], [], False)
            agent = learner.make_agent(Checkpoint.read(report.best), "cpu", {})
            agent.reset(1)
            acted[beta] = float(agent.act(np.zeros((1, 1), dtype=np.float32))[0, 0])
        assert acted[0.0] == pytest.approx(0.0, abs=0.02)
        assert acted[1.0] == pytest.approx(5.0 * math.tanh(1.0), abs=0.02)

    def test_initial_weights_are_refused_because_they_skip_the_first_phase(self) -> None:
        options = config("awr")
        options.init_from = "best.ckpt"
        with pytest.raises(UserError, match=r"^init_from skips the first phase, in which learner\.inverse_temperature"):
            LEARNERS["awr"].check(options)
        LEARNERS["bc"].check(options)

    def test_equal_returns_are_refused(self, tmp_path: Path) -> None:
        options, data = config("awr"), small_data()
        options.data.termination_penalty, options.data.discount = None, 1e-6
        for episode in data.episodes:
            episode.rewards[:] = 3.0
        datamodule = small_datamodule(options, data)
        with pytest.raises(UserError, match=r"^all steps have a return of 3, so learner\.inverse_temperature has no"):
            fit(LEARNERS["awr"], options, tmp_path, datamodule, [], [], resume=False)

    def test_returns_include_the_rows_own_reward(self) -> None:
        options = config("awr")
        options.data.discount, options.data.termination_penalty = 0.5, None
        data = small_data(episodes=2)
        for episode in data.episodes:
            episode.rewards[:] = [1.0, 2.0, 4.0, 0.0, 0.0, 0.0, 0.0, 8.0]
        module = small_datamodule(options, data)
        expected = [3.0625, 4.125, 4.25, 0.5, 1.0, 2.0, 4.0, 8.0]
        assert module.returns(module.rows["train"]).tolist() == expected
