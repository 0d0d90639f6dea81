"""ReBRAC: its losses and updates by hand, and the networks that an update changes."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import Tensor
from typing_extensions import override

from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import OptimizerConfig, TrainConfig
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.data.transition_set import FollowedBatch, FollowedTransitions
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.learners.rebrac import RegularizedActorCritic
from trajectory_transformer.learners.rebrac_module import RegularizedModule
from trajectory_transformer.learners.rebrac_network import ActorCritic
from trajectory_transformer.training.fit import fit, make_module
from trajectory_transformer.training.learner import make_learner

from ..specs import box, spec_of
from ..training.small_run import Rows, small_config, small_data, small_datamodule

Weights = dict[str, np.ndarray]
OPTIONS = RegularizedActorCritic(
    hidden_layers=2, hidden_width=4, actor_penalty=0.3, critic_penalty=0.7, policy_noise=0.4, noise_clip=0.3,
    target_rate=0.25,
)  # fmt: skip
SPACES = EnvironmentSpec("Walk-v0", None, box(2, -9.0, 9.0), box(1, 1.0, 5.0))


def network(options: RegularizedActorCritic = OPTIONS) -> ActorCritic:
    """Targets differ from their networks, as they do after some updates."""
    torch.manual_seed(0)
    made = ActorCritic(SPACES, options)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made


def batch(size: int = 6) -> FollowedBatch:
    """Actions from 1 to 5; every other transition is terminal, and the last of the others has no next action."""
    generator = torch.Generator().manual_seed(1)
    return FollowedBatch(
        torch.randn(size, 2, generator=generator),
        1.0 + 4.0 * torch.rand(size, 1, generator=generator),
        torch.randn(size, generator=generator),
        torch.randn(size, 2, generator=generator),
        torch.tensor([0.0, 1.0]).repeat(size // 2),
        1.0 + 4.0 * torch.rand(size, 1, generator=generator),
        torch.tensor([1.0, 0.0, 1.0, 0.0, 0.0, 0.0]),
    )


class Reference:
    """The same in NumPy and float64, from the weights alone: forward passes written out, gradients by differences."""

    def __init__(self, made: ActorCritic) -> None:
        self.weights: Weights = {name: p.detach().double().numpy().copy() for name, p in made.named_parameters()}

    def layers(self, part: str, inputs: np.ndarray, norm: bool) -> np.ndarray:
        stride = 3 if norm else 2
        for index in range(2):
            weight, bias = (self.weights[f"{part}.{stride * index}.{kind}"] for kind in ("weight", "bias"))
            inputs = np.maximum(inputs @ weight.T + bias, 0.0)
            if norm:
                scale, shift = (self.weights[f"{part}.{stride * index + 2}.{kind}"] for kind in ("weight", "bias"))
                deviation = np.sqrt(inputs.var(axis=1, keepdims=True) + 1e-6)
                inputs = (inputs - inputs.mean(axis=1, keepdims=True)) / deviation * scale + shift
        return inputs @ self.weights[f"{part}.{2 * stride}.weight"].T + self.weights[f"{part}.{2 * stride}.bias"]

    def actor(self, part: str, observations: np.ndarray) -> np.ndarray:
        return np.tanh(self.layers(part, observations, norm=False))

    def critics(self, part: str, observations: np.ndarray, actions: np.ndarray) -> np.ndarray:
        inputs = np.concatenate([observations, actions], axis=1)
        return np.stack([self.layers(f"{part}.twins.{twin}", inputs, norm=True)[:, 0] for twin in range(2)])

    def critic_loss(self, data: FollowedBatch, noise: np.ndarray) -> float:
        observations, actions, rewards, following, terminal, next_actions, followed = (
            column.double().numpy() for column in data
        )
        acted = np.clip(self.actor("target_actor", following) + np.clip(0.4 * noise, -0.3, 0.3), -1, 1)
        distance = ((acted - (next_actions - 3) / 2) ** 2).sum(axis=1) * followed
        value = self.critics("target_critics", following, acted).min(axis=0) - 0.7 * distance
        target = rewards + 0.9 * (1 - terminal) * value
        errors = self.critics("critics", observations, (actions - 3) / 2) - target
        return float((errors[0] ** 2).mean() + (errors[1] ** 2).mean())

    def actor_loss(self, data: FollowedBatch, size: float | None = None) -> float:
        """The actor's loss; ``size`` is the mean absolute value, without gradient; None: as computed."""
        observations, actions = data.observations.double().numpy(), data.actions.double().numpy()
        acted = self.actor("actor", observations)
        distance = ((acted - (actions - 3) / 2) ** 2).sum(axis=1)
        value = self.critics("critics", observations, acted).min(axis=0)
        return float((0.3 * distance - value / (np.abs(value).mean() if size is None else size)).mean())

    def value_size(self, data: FollowedBatch) -> float:
        observations = data.observations.double().numpy()
        return float(np.abs(self.critics("critics", observations, self.actor("actor", observations)).min(0)).mean())

    def gradient(self, part: str, loss: Any) -> Weights:
        """By central differences."""
        found = {}
        for name in (name for name in self.weights if name.startswith(f"{part}.")):
            slopes = np.zeros_like(self.weights[name])
            for index in np.ndindex(slopes.shape):
                kept = self.weights[name][index]
                ends = []
                for step in (1e-6, -1e-6):
                    self.weights[name][index] = kept + step
                    ends.append(loss())
                self.weights[name][index] = kept
                slopes[index] = (ends[0] - ends[1]) / 2e-6
            found[name] = slopes
        return found


def drawn(seed: int, shape: tuple[int, ...]) -> np.ndarray:
    """The noise that follows from a seed."""
    torch.manual_seed(seed)
    return torch.randn(shape).double().numpy()


def test_losses_by_hand() -> None:
    made, data = network(), batch()
    reference, noise = Reference(made), drawn(3, (6, 1))
    torch.manual_seed(3)
    assert made.critic_loss(data, 0.9)[0].item() == pytest.approx(reference.critic_loss(data, noise), rel=1e-4)
    assert made.eval().critic_loss(data, 0.9)[0].item() == pytest.approx(
        reference.critic_loss(data, np.zeros((6, 1))), rel=1e-4
    )
    loss, distance = made.actor_loss(data)
    assert loss.item() == pytest.approx(reference.actor_loss(data), rel=1e-4)
    acted = reference.actor("actor", data.observations.double().numpy())
    assert distance.item() == pytest.approx(((acted - (data.actions.numpy() - 3) / 2) ** 2).mean(), rel=1e-4)


def module_of(made: ActorCritic, options: RegularizedActorCritic = OPTIONS) -> RegularizedModule:
    """Adam at 0.01, without decay."""
    settings = config(options)
    settings.data.discount = 0.9
    module = make_module(make_learner(settings.learner, TYPED_BY_USER), settings, small_datamodule(settings))
    assert isinstance(module, RegularizedModule)
    module.network = made
    return module


def test_two_updates_by_hand() -> None:
    """The first changes the critics, the second all networks and then the targets, by Adam as in its paper."""
    made, data = network(), batch()
    module, reference = module_of(made), Reference(made)
    first = {name: np.zeros_like(weight) for name, weight in reference.weights.items()}
    moments = {"m": first, "v": {name: np.zeros_like(weight) for name, weight in first.items()}}
    counts = dict.fromkeys(first, 0)
    groups = module.parameter_groups()
    optimizer = torch.optim.AdamW(groups, lr=0.01, betas=(0.9, 0.999), weight_decay=0.0)
    for update in range(2):
        trainer = pretended(update)
        module._trainer = trainer
        torch.manual_seed(10 + update)
        optimizer.zero_grad()
        module.losses(data)[0].backward()
        module.on_before_optimizer_step(optimizer)
        optimizer.step()
        if module.moves_policy:
            made.update_targets()

        noise, size = drawn(10 + update, (6, 1)), reference.value_size(data)
        slopes = reference.gradient("critics", lambda noise=noise: reference.critic_loss(data, noise))
        if update == 1:
            slopes |= reference.gradient("actor", lambda size=size: reference.actor_loss(data, size))
        for name, slope in slopes.items():
            counts[name] += 1
            moments["m"][name] = 0.9 * moments["m"][name] + 0.1 * slope
            moments["v"][name] = 0.999 * moments["v"][name] + 0.001 * slope**2
            mean = moments["m"][name] / (1 - 0.9 ** counts[name])
            spread = np.sqrt(moments["v"][name] / (1 - 0.999 ** counts[name]))
            reference.weights[name] = reference.weights[name] - 0.01 * mean / (spread + 1e-8)
        if update == 1:
            for name in (name for name in first if name.startswith("target_")):
                own = reference.weights[name.removeprefix("target_")]
                reference.weights[name] = 0.75 * reference.weights[name] + 0.25 * own
        for name, parameter in made.named_parameters():
            np.testing.assert_allclose(parameter.detach().numpy(), reference.weights[name], atol=2e-5, err_msg=name)


def pretended(global_step: int) -> Any:
    """A trainer that only has the number of updates made."""

    class Trainer:
        pass

    trainer: Any = Trainer()
    trainer.global_step = global_step
    return trainer


@pytest.mark.parametrize("every", [1, 3])
def test_which_networks_an_update_moves(tmp_path: Path, every: int) -> None:
    class Keep(Callback):
        @override
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
            kept.append({name: value.clone() for name, value in pl_module.state_dict().items()})

    kept: list[dict[str, Tensor]] = []
    options = config(RegularizedActorCritic(hidden_layers=1, hidden_width=8, policy_every=every), max_steps=8)
    rows = Rows()
    learner = make_learner(options.learner, TYPED_BY_USER)
    fit(learner, options, tmp_path, small_datamodule(options), [rows], [Keep()], False)
    for update, (before, after) in enumerate(pairwise(kept), start=1):
        moved = {name.split(".")[1] for name, value in before.items() if not torch.equal(value, after[name])}
        everything = {"actor", "critics", "target_actor", "target_critics"}
        assert moved == (everything if update % every == 0 else {"critics"})
    assert math.isfinite(rows.rows[6, "train/policy_loss"])
    assert math.isfinite(rows.rows[6, "val/q_loss"])


def config(options: RegularizedActorCritic, **trainer: Any) -> TrainConfig:
    made = small_config(**trainer)
    made.learner = spec_of(options)
    made.optimizer = OptimizerConfig(
        learning_rate=1e-2, beta2=0.999, weight_decay=0.0, warmup_tokens=0, final_learning_rate_fraction=1.0,
        gradient_clip_norm=None,
    )  # fmt: skip
    return made


def test_transitions_with_the_actions_that_followed() -> None:
    def episode(length: int, first: float, terminated: bool) -> Episode:
        values = first + np.arange(length + 1, dtype=np.float32)[:, None]
        return Episode(values, 10 * values[:-1], np.ones(length, dtype=np.float32), terminated)

    found = FollowedTransitions([episode(3, 0.0, False), episode(1, 5.0, True)], -7.0)
    assert len(found) == 4
    gathered = found.gather(torch.tensor([3, 0, 1, 2]))
    assert gathered.observations[:, 0].tolist() == [5, 0, 1, 2]
    assert gathered.actions[:, 0].tolist() == [50, 0, 10, 20]
    assert gathered.next_actions[:, 0].tolist() == [50, 10, 20, 20]
    assert gathered.followed.tolist() == [0, 1, 1, 0]
    assert gathered.terminal.tolist() == [1, 0, 0, 0]
    assert gathered.rewards.tolist() == [-7, 1, 1, 1]
    assert found.to(torch.device("meta")).gather(torch.tensor([0])).next_actions.shape == (1, 1)


def test_it_is_better_than_its_data(tmp_path: Path) -> None:
    """The reward is the action, in every state; the data's actions are random."""
    data = small_data(episodes=20, steps=20)
    random = np.random.default_rng(0)
    for episode in data.episodes:
        episode.actions[:] = random.uniform(-10, 10, episode.actions.shape)
        episode.observations[:] = random.normal(size=episode.observations.shape)
        episode.rewards[:] = episode.actions[:, 0]
    options = config(
        RegularizedActorCritic(hidden_layers=1, hidden_width=32, target_rate=0.05),
        max_steps=100, validate_every=100, checkpoint_every=100,
    )  # fmt: skip
    options.data.batch_size, options.data.discount = 64, 0.5
    learner = make_learner(options.learner, TYPED_BY_USER)
    report = fit(learner, options, tmp_path, small_datamodule(options, data), [], [], False)
    agent = learner.make_agent(Checkpoint.read(report.best), "cpu", {})
    agent.reset(5)
    actions = agent.act(np.linspace(-1, 1, 5, dtype=np.float32)[:, None])
    assert actions.min() > 8.0
    assert agent.settings.name == "rebrac_policy"
