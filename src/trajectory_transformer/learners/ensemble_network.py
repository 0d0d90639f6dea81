"""Networks of a probabilistic ensemble of dynamics models (PETS: Chua, Calandra, McAllister, Levine 2018)."""

import math
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoint import Checkpoint, fitting_parts
from ..data.transition_set import TransitionBatch
from .ensemble import EnsembleLearner

ALL_MEMBERS = slice(None)
SMALLEST_DEVIATION = 1e-6  # a dimension with a smaller deviation is not divided by it


def gaussian_nats(targets: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Negative log-likelihood in nats of each target under its own Gaussian; all arguments have the same shape."""
    return 0.5 * ((targets - mean).square() * (-log_variance).exp() + log_variance + math.log(2.0 * math.pi))


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble, computed as one batched product.

    Weights (members, inputs, outputs) are drawn as in PETS, from a normal distribution of standard deviation
    1 / (2 √inputs), truncated at twice that; biases (members, 1, outputs) are zero.
    """

    def __init__(self, num_members: int, input_dim: int, output_dim: int) -> None:
        super().__init__()
        deviation = 0.5 / math.sqrt(input_dim)
        self.weight = nn.Parameter(torch.empty(num_members, input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, output_dim))
        nn.init.trunc_normal_(self.weight, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)

    def forward(self, inputs: Tensor, members: slice) -> Tensor:
        """Outputs (chosen members, batch, outputs) for inputs (chosen members, batch, inputs)."""
        return torch.baddbmm(self.bias[members], inputs, self.weight[members])


class DynamicsEnsemble(nn.Module):
    """All dynamics models; each predicts a Gaussian of the change of an observation (O,) by an action (A,)."""

    input_mean: Tensor  # (O + A,) of observations and actions in the training data
    input_deviation: Tensor
    change_mean: Tensor  # (O,) of the change of the observation
    change_deviation: Tensor

    def __init__(self, observation_dim: int, action_dim: int, options: EnsembleLearner) -> None:
        super().__init__()
        self.options = options
        inputs, outputs = observation_dim + action_dim, 2 * observation_dim
        widths = [inputs, *[options.hidden_width] * options.hidden_layers, outputs]
        self.layers = nn.ModuleList(MemberLinear(options.num_members, *sizes) for sizes in pairwise(widths))
        # (O,) learnt soft bounds, in units of the normalised change
        self.log_variance_low = nn.Parameter(torch.full((observation_dim,), -10.0))
        self.log_variance_high = nn.Parameter(torch.full((observation_dim,), 0.5))
        for name, size in (("input", inputs), ("change", observation_dim)):
            self.register_buffer(f"{name}_mean", torch.zeros(size))
            self.register_buffer(f"{name}_deviation", torch.ones(size))

    @property
    def num_members(self) -> int:
        return self.options.num_members

    @torch.no_grad()
    def normalize_like(self, transitions: TransitionBatch) -> None:
        """Set the normalisation to means and deviations of training transitions (n, …)."""
        inputs = torch.cat([transitions.observations, transitions.actions], dim=-1).double()
        # Differs from the original: the change is normalised too, so that all dimensions have the same weight.
        change = transitions.next_observations.double() - transitions.observations.double()
        for name, values in (("input", inputs), ("change", change)):
            deviation = values.std(dim=0, unbiased=False)
            getattr(self, f"{name}_mean").copy_(values.mean(dim=0))
            getattr(self, f"{name}_deviation").copy_(torch.where(deviation > SMALLEST_DEVIATION, deviation, 1.0))

    def forward(self, observations: Tensor, actions: Tensor, members: slice = ALL_MEMBERS) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of the normalised change, each (chosen members, batch, O) like the inputs."""
        hidden = (torch.cat([observations, actions], dim=-1) - self.input_mean) / self.input_deviation
        for layer in self.layers[:-1]:
            hidden = F.silu(layer(hidden, members))
        mean, log_variance = self.layers[-1](hidden, members).chunk(2, dim=-1)
        log_variance = self.log_variance_high - F.softplus(self.log_variance_high - log_variance)
        return mean, self.log_variance_low + F.softplus(log_variance - self.log_variance_low)

    def nats(self, batch: TransitionBatch) -> Tensor:
        """Mean negative log-likelihood (members,) per dimension of the normalised change, for (members, n, …)."""
        mean, log_variance = self(batch.observations, batch.actions)
        change = batch.next_observations - batch.observations
        targets = (change - self.change_mean) / self.change_deviation
        return gaussian_nats(targets, mean, log_variance).mean(dim=(1, 2))

    def loss(self, nats: Tensor) -> Tensor:
        """Training loss: the sum of the members' :meth:`nats`, plus a penalty on the width of the variance bounds."""
        return nats.sum() + self.options.bound_weight * (self.log_variance_high - self.log_variance_low).sum()

    def distribution(self, observations: Tensor, actions: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and deviation of the next observation, each (n, O), in real units, by the members (n,) given."""
        mean, deviation = torch.empty_like(observations), torch.empty_like(observations)
        for member in range(self.num_members):
            rows = (members == member).nonzero().squeeze(1)
            if len(rows):
                change, log_variance = self(observations[rows][None], actions[rows][None], slice(member, member + 1))
                mean[rows] = observations[rows] + self.change_mean + self.change_deviation * change[0]
                deviation[rows] = self.change_deviation * (0.5 * log_variance[0]).exp()
        return mean, deviation


def read_ensemble(checkpoint: Checkpoint) -> DynamicsEnsemble:
    """Load a checkpoint's ensemble for evaluation, without gradients; UserError if it is of another kind or damaged."""
    checkpoint.require_kind("ensemble")
    environment = checkpoint.training.environment
    with fitting_parts(checkpoint.name):
        options = EnsembleLearner(**checkpoint.model)
    sizes = environment.observation_dim, environment.action_dim, options
    network = checkpoint.build("network", partial(DynamicsEnsemble, *sizes))
    return network.eval().requires_grad_(False)
