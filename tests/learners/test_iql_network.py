"""Implicit Q-learning: its losses by hand, its values against dynamic programming."""

import math

import numpy as np
import pytest
import torch

from trajectory_transformer.data.transition_set import TransitionBatch
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.iql import ImplicitQLearning
from trajectory_transformer.learners.iql_network import ImplicitQ, advantage_weights, expectile_loss, reward_transform

from ..specs import box

SMALL = {"hidden_layers": 1, "hidden_width": 4}


def batch(size: int = 6, seed: int = 0) -> TransitionBatch:
    """Random transitions of two observation dimensions and one action dimension in [1, 5]."""
    generator = torch.Generator().manual_seed(seed)
    return TransitionBatch(
        torch.randn(size, 2, generator=generator),
        1.0 + 4.0 * torch.rand(size, 1, generator=generator),
        torch.randn(size, generator=generator),
        torch.randn(size, 2, generator=generator),
        torch.tensor([0.0, 1.0]).repeat(size // 2),
    )


def network(**options: float) -> ImplicitQ:
    torch.manual_seed(0)
    learner = ImplicitQLearning(**(SMALL | options))  # pyright: ignore[reportArgumentType]
    return ImplicitQ(EnvironmentSpec("", None, box(2), box(1, 1.0, 5.0)), learner)


def test_expectile_loss_by_hand() -> None:
    difference = torch.tensor([2.0, -1.0, 0.0, -3.0])
    assert expectile_loss(difference, 0.9).item() == pytest.approx((0.9 * 4 + 0.1 * 1 + 0.1 * 9) / 4)
    assert expectile_loss(difference, 0.5).item() == pytest.approx(difference.square().mean().item() / 2)


@pytest.mark.parametrize("expectile", [0.5, 0.7, 0.9])
def test_its_minimum_is_the_expectile(expectile: float) -> None:
    """The expectile e solves τ E[(x − e)⁺] = (1 − τ) E[(e − x)⁺]; found here by bisection in float64."""
    outcomes, odds = np.array([0.0, 1.0, 5.0]), np.array([5, 3, 2])

    def excess(e: float) -> float:
        weight = np.where(outcomes > e, expectile, 1.0 - expectile)
        return float((odds * weight * (outcomes - e)).sum())

    low, high = 0.0, 5.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    value = torch.zeros((), requires_grad=True)
    samples = torch.from_numpy(np.repeat(outcomes, odds)).float()
    optimizer = torch.optim.LBFGS([value], max_iter=100)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = expectile_loss(samples - value, expectile)
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    assert value.item() == pytest.approx(low, abs=1e-3)


def test_advantage_weights_by_hand() -> None:
    weights = advantage_weights(torch.tensor([-1.0, 0.0, 0.5, 2.0]), inverse_temperature=3.0, max_weight=100.0)
    assert weights.tolist() == pytest.approx([math.exp(-3), 1.0, math.exp(1.5), 100.0])


def test_q_is_the_lesser_target() -> None:
    net, data = network(), batch()
    for index, bias in enumerate((3.0, -2.0)):
        for parameter in net.targets[index].parameters():
            torch.nn.init.zeros_(parameter)
        last = list(net.targets[index].parameters())[-1]
        torch.nn.init.constant_(last, bias)
    assert net.q(data.observations, data.actions).tolist() == [-2.0] * 6
    torch.nn.init.constant_(list(net.targets[0].parameters())[-1], -5.0)
    assert net.q(data.observations, data.actions).tolist() == [-5.0] * 6


def test_targets_follow_slowly_and_are_not_trained() -> None:
    net = network(target_rate=0.25)
    before = [p.clone() for p in net.targets.parameters()]
    for parameter in net.twins.parameters():
        parameter.data += 1.0
    net.update_targets()
    for target, old, new in zip(net.targets.parameters(), before, net.twins.parameters(), strict=True):
        assert not target.requires_grad
        torch.testing.assert_close(target.data, 0.75 * old + 0.25 * new.data)


def test_losses_by_hand() -> None:
    """Equations 5 to 7 in NumPy, from the networks' outputs; terminal transitions end at their reward."""
    net, data = network(expectile=0.8, inverse_temperature=2.0, max_weight=1.5), batch()
    with torch.no_grad():
        for target in net.targets.parameters():  # so that they are not the twins
            target += 0.1 * torch.randn(target.shape, generator=torch.Generator().manual_seed(1))
        net.policy_log_std.fill_(-0.7)
        losses = net.losses(data, discount=0.9)
        scaled = (data.actions.numpy() - 3.0) / 2.0  # [1, 5] to [−1, 1]
        inputs = torch.cat([data.observations, torch.from_numpy(scaled)], dim=1)
        value, following = (net.value(x).squeeze(1).numpy() for x in (data.observations, data.next_observations))
        twins, targets = (np.stack([q(inputs).squeeze(1).numpy() for q in nets]) for nets in (net.twins, net.targets))
        mean = np.tanh(net.policy(data.observations).numpy())
    advantage = targets.min(0) - value
    expected_v = (np.where(advantage < 0, 0.2, 0.8) * advantage**2).mean()
    returns = data.rewards.numpy() + 0.9 * following * np.array([1, 0, 1, 0, 1, 0])
    expected_q = ((twins[0] - returns) ** 2).mean() + ((twins[1] - returns) ** 2).mean()
    density = -0.5 * ((scaled - mean) / np.exp(-0.7)) ** 2 + 0.7 - 0.5 * np.log(2 * np.pi)
    expected_policy = -(np.minimum(np.exp(2.0 * advantage), 1.5) * density[:, 0]).mean()
    assert losses.value.item() == pytest.approx(expected_v, rel=1e-5)
    assert losses.q.item() == pytest.approx(expected_q, rel=1e-5)
    assert losses.policy.item() == pytest.approx(expected_policy, rel=1e-5)
    assert losses.mean_value.item() == pytest.approx(value.mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("loss", "moved"), [("value", {"value"}), ("q", {"twins"}), ("policy", {"policy", "policy_log_std"})]
)
def test_each_loss_moves_its_own_networks_only(loss: str, moved: set[str]) -> None:
    net = network()
    getattr(net.losses(batch(), 0.9), loss).backward()
    assert {name.split(".")[0] for name, p in net.named_parameters() if p.grad is not None} == moved


def test_policy_stays_within_the_bounds() -> None:
    bounds = SpaceSpec((SpaceLeaf((), "box", (2,), (-2.0, 0.0), (2.0, 0.1)),))
    net = ImplicitQ(EnvironmentSpec("", None, box(1), bounds), ImplicitQLearning(hidden_layers=1, hidden_width=4))
    mean = net.policy_mean(torch.linspace(-1e3, 1e3, 101)[:, None])
    assert mean.shape == (101, 2)
    assert bool(((mean >= torch.tensor([-2.0, 0.0])) & (mean <= torch.tensor([2.0, 0.1]) + 1e-7)).all())


def chain(length: int = 4) -> tuple[TransitionBatch, np.ndarray]:
    """A corridor, one-hot; actions −1 and 1 step left and right, a step costs 1, stepping off its right end pays 5.

    Stepping left at the left end stays there, and is where a time limit cut the episode: nothing ended, so that its
    value counts. Returns all transitions, and Q* (state, action) for the discount 0.9 by value iteration.
    """
    states = np.repeat(np.arange(length), 2)
    actions = np.tile([-1, 1], length)
    terminal = (states == length - 1) & (actions == 1)
    following = np.clip(states + actions, 0, length - 1)
    rewards = np.where(terminal, 5.0, -1.0)
    optimal = np.zeros((length, 2))
    for _ in range(200):
        optimal = (rewards + 0.9 * np.where(terminal, 0.0, optimal.max(1)[following])).reshape(length, 2)
    one_hot = np.eye(length, dtype=np.float32)
    columns = (one_hot[states], actions[:, None], rewards, one_hot[following], terminal)
    return TransitionBatch(*(torch.from_numpy(np.asarray(x, dtype=np.float32)) for x in columns)), optimal


def test_values_of_a_corridor_are_those_of_dynamic_programming() -> None:
    data, optimal = chain()
    torch.manual_seed(0)
    learner = ImplicitQLearning(1, 32, expectile=0.99, target_rate=0.1, inverse_temperature=3.0)
    net = ImplicitQ(EnvironmentSpec("", None, box(4), box(1)), learner)
    optimizer = torch.optim.Adam([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(600):
        losses = net.losses(data, 0.9)
        optimizer.zero_grad()
        (losses.value + losses.q + losses.policy).backward()
        optimizer.step()
        net.update_targets()
    with torch.no_grad():
        q = net.q(data.observations, data.actions).numpy().reshape(4, 2)
        v = net.v(torch.eye(4)).numpy()
        policy = net.policy_mean(torch.eye(4)).numpy()
    np.testing.assert_allclose(q, optimal, atol=0.1)
    np.testing.assert_allclose(v, optimal.max(1), atol=0.15)
    assert (policy[:, 0] > 0.5).all()  # right is best everywhere


def test_reward_transforms() -> None:
    assert reward_transform("scaled", -50.0, 350.0) == (2.5, 0.0)  # 1000 / (best − worst)
    assert reward_transform("minus_one", 0.0, 1.0) == (1.0, -1.0)
    assert reward_transform("raw", 0.0, 1.0) == (1.0, 0.0)
    with pytest.raises(UserError, match=r"^all episodes have the return 3, .*learner\.rewards=minus_one or raw$"):
        reward_transform("scaled", 3.0, 3.0)


@pytest.mark.parametrize(
    "leaf", [SpaceLeaf((), "box", (1,), (-np.inf,), (1.0,)), SpaceLeaf((), "discrete", (), (0.0,), (3.0,))]
)
def test_actions_without_finite_bounds_are_refused(leaf: SpaceLeaf) -> None:
    environment = EnvironmentSpec("Walk-v0", None, box(1), SpaceSpec((leaf,)))
    with pytest.raises(UserError, match=r"^learner=iql needs actions from a Box with finite bounds.*'Walk-v0'"):
        ImplicitQ(environment, ImplicitQLearning())
