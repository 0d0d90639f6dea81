"""Ensembles of dynamics models, against single networks and against systems that are known."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from trajectory_transformer.data.transition_set import TransitionBatch
from trajectory_transformer.learners.ensemble import EnsembleLearner
from trajectory_transformer.learners.ensemble_network import DynamicsEnsemble, gaussian_nats


def shared(batch: TransitionBatch, members: int) -> TransitionBatch:
    """The same transitions for each member."""
    return TransitionBatch(*(column.expand(members, *column.shape) for column in batch))


def transitions(observations: Tensor, actions: Tensor, next_observations: Tensor) -> TransitionBatch:
    zeros = torch.zeros(len(observations))
    return TransitionBatch(observations, actions, zeros, next_observations, zeros)


def random_transitions(count: int, seed: int = 0) -> TransitionBatch:
    generator = torch.Generator().manual_seed(seed)
    observations = 3.0 + 10.0 * torch.randn(count, 2, generator=generator)
    change = 0.1 * torch.randn(count, 2, generator=generator)
    return transitions(observations, torch.randn(count, 1, generator=generator), observations + change)


def test_nats_of_a_gaussian_by_hand() -> None:
    nats = gaussian_nats(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]), torch.tensor([0.0, math.log(4.0)]))
    expected = [0.5 * math.log(2 * math.pi), 0.5 * (4 / 4 + math.log(4) + math.log(2 * math.pi))]
    assert nats.tolist() == pytest.approx(expected)
    reference = -torch.distributions.Normal(1.0, 2.0).log_prob(torch.tensor(3.0))
    assert nats[1].item() == pytest.approx(reference.item())


def test_normalisation_is_that_of_the_data() -> None:
    batch = random_transitions(50)
    ensemble = DynamicsEnsemble(2, 1, EnsembleLearner())
    ensemble.normalize_like(batch)
    inputs = torch.cat([batch.observations, batch.actions], dim=1).numpy()
    change = (batch.next_observations - batch.observations).numpy()
    np.testing.assert_allclose(ensemble.input_mean, inputs.mean(0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.input_deviation, inputs.std(0), rtol=1e-5)
    np.testing.assert_allclose(ensemble.change_mean, change.mean(0), rtol=1e-3)
    np.testing.assert_allclose(ensemble.change_deviation, change.std(0), rtol=1e-3)
    batch.next_observations[:, 1] = batch.observations[:, 1]
    ensemble.normalize_like(batch)
    assert ensemble.change_deviation[1] == 1.0  # what never changes is not divided by zero


def single(ensemble: DynamicsEnsemble, member: int) -> nn.Sequential:
    """The member as a network of its own."""
    layers: list[nn.Module] = []
    for layer in ensemble.layers:
        weight, bias = layer.weight[member], layer.bias[member, 0]  # pyright: ignore
        linear = nn.Linear(*weight.shape)  # pyright: ignore
        linear.weight.data, linear.bias.data = weight.data.T, bias.data  # pyright: ignore
        layers += [linear, nn.SiLU()]
    return nn.Sequential(*layers[:-1])


def test_members_are_separate_networks_and_differ() -> None:
    """A plain network for each member, its log-variance bounded by hand, predicts what the batched one does."""
    torch.manual_seed(0)
    batch, count, low = random_transitions(12), 12, np.array([-1.0, -2.0])
    ensemble = DynamicsEnsemble(2, 1, EnsembleLearner(num_members=3, hidden_layers=2, hidden_width=8))
    ensemble.normalize_like(batch)
    with torch.no_grad():
        for layer in ensemble.layers:
            nn.init.normal_(layer.bias)  # pyright: ignore
        ensemble.log_variance_low.copy_(torch.from_numpy(low))
        members = torch.arange(count) % 3
        mean, deviation = ensemble.distribution(batch.observations, batch.actions, members)
        normalised = (
            torch.cat([batch.observations, batch.actions], 1) - ensemble.input_mean
        ) / ensemble.input_deviation
        for row in range(count):
            change, raw = single(ensemble, int(members[row]))(normalised[row]).double().numpy().reshape(2, 2)
            bounded = 0.5 - np.logaddexp(0.0, 0.5 - raw)
            bounded = low + np.logaddexp(0.0, bounded - low)
            scale, shift = ensemble.change_deviation.numpy(), ensemble.change_mean.numpy()
            np.testing.assert_allclose(mean[row], batch.observations[row].numpy() + shift + scale * change, rtol=1e-5)
            np.testing.assert_allclose(deviation[row], scale * np.exp(0.5 * bounded), rtol=1e-5)
        first = ensemble.distribution(batch.observations, batch.actions, torch.zeros(count, dtype=torch.int64))[0]
        second = ensemble.distribution(batch.observations, batch.actions, torch.ones(count, dtype=torch.int64))[0]
    assert not torch.allclose(first, second)


def test_loss_adds_members_and_the_spread_of_the_bounds() -> None:
    ensemble = DynamicsEnsemble(2, 1, EnsembleLearner(num_members=2, hidden_width=4, bound_weight=0.1))
    assert ensemble.loss(torch.tensor([1.0, 2.5])).item() == pytest.approx(3.5 + 0.1 * 2 * (0.5 + 10.0))
    nats = ensemble.nats(shared(random_transitions(5), 2))
    nats[0].backward()
    for layer in ensemble.layers:
        assert layer.weight.grad[0].abs().sum() > 0  # pyright: ignore
        assert layer.weight.grad[1].abs().sum() == 0  # pyright: ignore


def test_learns_a_linear_system_with_noise() -> None:
    """x' = x + A x + B a + noise whose deviation grows with the action; both are recovered."""
    generator = torch.Generator().manual_seed(0)
    observations = 5.0 * torch.randn(2000, 2, generator=generator)
    actions = 2.0 * torch.rand(2000, 1, generator=generator) - 1.0
    drift = torch.tensor([[-0.1, 0.05], [0.0, -0.2]])

    def mean_of(x: Tensor, a: Tensor) -> Tensor:
        return x + x @ drift.T + a * torch.tensor([0.5, -1.0])

    def deviation_of(a: Tensor) -> Tensor:
        return 0.2 * a.exp() * torch.tensor([1.0, 0.5])

    noise = deviation_of(actions) * torch.randn(2000, 2, generator=generator)
    batch = transitions(observations, actions, mean_of(observations, actions) + noise)
    torch.manual_seed(0)
    ensemble = DynamicsEnsemble(2, 1, EnsembleLearner(num_members=2, hidden_layers=2, hidden_width=32))
    ensemble.normalize_like(batch)
    optimizer = torch.optim.Adam(ensemble.parameters(), lr=3e-3)
    everything = shared(batch, 2)
    for step in range(400):
        chosen = torch.arange(256) + 250 * step
        part = TransitionBatch(*(column[:, chosen % 2000] for column in everything))
        optimizer.zero_grad()
        ensemble.loss(ensemble.nats(part)).backward()
        optimizer.step()
    tried = torch.tensor([[4.0, -3.0], [-2.0, 5.0], [0.0, 0.0], [3.0, 3.0]])
    acted = torch.tensor([[0.6], [-0.6], [0.5], [-0.4]])
    for member in range(2):
        with torch.no_grad():
            mean, deviation = ensemble.distribution(tried, acted, torch.full((4,), member))
        np.testing.assert_allclose(mean, mean_of(tried, acted), atol=0.15)
        np.testing.assert_allclose(deviation, deviation_of(acted), rtol=0.25)
