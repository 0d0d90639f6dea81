"""The behaviour policy of an embedded set as a learner: its actions are not changed by training."""

from dataclasses import replace
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch

from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.behavior import DeterministicBehavior, latest_behavior
from trajectory_transformer.simulation import REGISTRY
from trajectory_transformer.simulation.policies import PolicyBehavior
from trajectory_transformer.training import datamodule as datamodule_file
from trajectory_transformer.training.fit import fit

from ..specs import box, spec_of
from ..training.small_run import small_config, small_data


@pytest.mark.parametrize("name", ["hopper", "walker2d"])  # of soft actor-critic, and of proximal policy optimisation
def test_it_acts_as_the_behaviour_without_noise(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset_id = f"embedded/{name}/expert-v0"
    observation_dim, action_dim = {"hopper": (11, 3), "walker2d": (17, 6)}[name]
    random = np.random.default_rng(0)

    def data(_: object) -> OfflineData:
        made = small_data(dataset_id=dataset_id)
        episodes = [
            replace(
                episode,
                observations=random.normal(size=(len(episode) + 1, observation_dim)).astype(np.float32),
                actions=random.uniform(-1, 1, (len(episode), action_dim)).astype(np.float32),
            )
            for episode in made.episodes
        ]
        spaces = replace(made.environment, observation=box(observation_dim), action=box(action_dim, -2.0, 2.0))
        return replace(made, episodes=episodes, environment=spaces)

    monkeypatch.setattr(datamodule_file, "load_offline_data", data)
    config = small_config(max_steps=3)
    config.learner = spec_of(DeterministicBehavior())
    config.data.dataset_id = dataset_id
    learner = DeterministicBehavior()
    learner.check(config)
    checkpoint = Checkpoint.read(fit(learner, config, tmp_path, learner.make_datamodule(config), [], [], False).last)
    agent = learner.make_agent(checkpoint, "cpu", {})
    agent.reset(4)
    observations = random.normal(size=(4, observation_dim)).astype(np.float32)

    class Acted:
        action_space = gym.spaces.Box(-2.0, 2.0, (action_dim,))

    behavior = replace(latest_behavior([dataset_id]), temperature=0.0)
    controller = behavior.controller(Acted(), np.random.default_rng(0))  # pyright: ignore[reportArgumentType]
    expected = [controller(observation) for observation in observations]
    np.testing.assert_allclose(agent.act(observations), expected, atol=1e-5)
    assert agent.settings.name == "behavior_policy"
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 3


def test_of_several_policies_the_latest() -> None:
    names = ["embedded/hopper/medium-v0", "embedded/hopper/expert-v0", "embedded/hopper/medium-replay-v0"]
    latest = [latest_behavior([name]).snapshot for name in names]
    assert latest == ["step_0150000", "step_0180000", "step_0150000"]
    assert latest_behavior(names).snapshot == "step_0180000"
    known = [name for name, recipe in REGISTRY.items() if isinstance(recipe.behaviors[-1], PolicyBehavior)]
    assert len(known) == 10


def test_what_it_is_not_for() -> None:
    config = TrainConfig()
    for names in (["embedded/hopper/expert-v0", "D4RL/door/human-v2"], [], ["embedded/goal/umaze-v0"]):
        with pytest.raises(
            UserError, match=r"^learner=behavior has no policy for data set .*; it has one for embedded/"
        ):
            latest_behavior(names)
    config.data.observation_indices = [0, 1]
    with pytest.raises(UserError, match=r"^learner=behavior needs the whole observation: leave out data\.obs"):
        DeterministicBehavior().check(config)
