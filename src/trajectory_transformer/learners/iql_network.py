"""Networks and losses of implicit Q-learning (Kostrikov, Nair, Levine 2021)."""

import copy
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn

from ..data.transition_set import TransitionBatch
from ..environments.spec import EnvironmentSpec
from ..errors import UserError
from .mlp import make_mlp

if TYPE_CHECKING:
    from .iql import ImplicitQLearning

RETURN_SPAN = 1000.0  # difference between the best and the worst scaled return of the data
LOG_STD_RANGE = (-5.0, 2.0)  # of the policy, clipped as by its authors


class ImplicitLosses(NamedTuple):
    """Scalar losses, each with gradients for its own networks only, and the mean of V."""

    value: Tensor
    q: Tensor  # of both Q networks together
    policy: Tensor
    mean_value: Tensor


def expectile_loss(difference: Tensor, expectile: float) -> Tensor:
    """Mean of |expectile − 1(difference < 0)| · difference² (equation 5), minimal at the expectile, in (0, 1).

    ``difference`` is target minus prediction, of any shape.
    """
    weight = torch.where(difference < 0, 1.0 - expectile, expectile)
    return (weight * difference.square()).mean()


def advantage_weights(advantage: Tensor, inverse_temperature: float, max_weight: float) -> Tensor:
    """Weights exp(inverse_temperature · advantage) of the policy's loss, at most ``max_weight`` (equation 7)."""
    return (inverse_temperature * advantage).exp().clamp(max=max_weight)


def reward_transform(rewards: str, worst_return: float, best_return: float) -> tuple[float, float]:
    """Scale and shift of rewards, as in the paper; UserError if all returns are equal, so that they define no scale.

    "scaled": the data's returns span 1000; "minus_one": 1 is subtracted from every reward; "raw": unchanged.
    """
    if rewards == "scaled":
        if best_return <= worst_return:
            raise UserError(
                f"all episodes have the return {best_return:g}, so learner.rewards=scaled is not possible; choose "
                "learner.rewards=minus_one or raw"
            )
        return RETURN_SPAN / (best_return - worst_return), 0.0
    return 1.0, -1.0 if rewards == "minus_one" else 0.0


class ImplicitQ(nn.Module):
    """The networks: V(s), twin Q(s, a) with target networks, and a Gaussian policy; UserError without finite bounds.

    Actions are scaled from their bounds (A,) to [−1, 1]; below, O is the observation's dimension.
    """

    action_middle: Tensor
    action_half_range: Tensor

    def __init__(self, environment: EnvironmentSpec, options: "ImplicitQLearning") -> None:
        super().__init__()
        low, high = (torch.tensor(bound) for bound in environment.finite_action_bounds(options.kind))
        self.options = options
        self.register_buffer("action_middle", (low + high) / 2)
        self.register_buffer("action_half_range", (high - low) / 2)
        observation_dim, sizes = environment.observation_dim, (options.hidden_layers, options.hidden_width)
        self.value = make_mlp(observation_dim, *sizes, 1)
        self.twins = nn.ModuleList(make_mlp(observation_dim + len(low), *sizes, 1) for _ in range(2))
        self.targets = copy.deepcopy(self.twins).requires_grad_(False)
        self.policy = make_mlp(observation_dim, *sizes, len(low))
        self.policy_log_std = nn.Parameter(torch.zeros(len(low)))

    def q(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The smaller target Q (n,) of observations (n, O) and actions (n, A) in their own units; of scaled rewards."""
        return self._twins(self.targets, observations, actions).amin(dim=0)

    def v(self, observations: Tensor) -> Tensor:
        """Values V (n,) of observations (n, O); of scaled rewards."""
        return self.value(observations).squeeze(-1)

    def policy_mean(self, observations: Tensor) -> Tensor:
        """Most likely actions (n, A) for observations (n, O), within the action space's bounds and in its units."""
        return self.action_middle + self.action_half_range * self.policy(observations).tanh()

    def losses(self, batch: TransitionBatch, discount: float) -> ImplicitLosses:
        """Losses of one update (equations 5 to 7); ``batch`` has scaled rewards."""
        observations, actions = batch.observations, batch.actions
        # Differs from the original, which updates V before Q and the policy: here all three use the same V.
        value = self.v(observations)
        advantage = self.q(observations, actions) - value
        with torch.no_grad():
            following = self.v(batch.next_observations) * (1.0 - batch.terminal)
            weights = advantage_weights(advantage, self.options.inverse_temperature, self.options.max_weight)
        returns = batch.rewards + discount * following
        predicted = self._twins(self.twins, observations, actions)
        return ImplicitLosses(
            expectile_loss(advantage, self.options.expectile),
            (predicted - returns).square().mean(dim=-1).sum(),
            -(weights * self.log_probability(observations, actions)).mean(),
            value.mean(),
        )

    def log_probability(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Log-density (n,) of actions (n, A) under the policy, in units of actions scaled to [−1, 1]."""
        deviation = self.policy_log_std.clamp(*LOG_STD_RANGE).exp()
        policy = torch.distributions.Normal(self.policy(observations).tanh(), deviation, validate_args=False)
        return policy.log_prob(self._scaled(actions)).sum(dim=-1)

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move each target network a little towards its source (Polyak averaging)."""
        for target, source in zip(self.targets.parameters(), self.twins.parameters(), strict=True):
            target.lerp_(source, self.options.target_rate)

    def _twins(self, networks: nn.ModuleList, observations: Tensor, actions: Tensor) -> Tensor:
        inputs = torch.cat([observations, self._scaled(actions)], dim=-1)
        return torch.stack([network(inputs).squeeze(-1) for network in networks])

    def _scaled(self, actions: Tensor) -> Tensor:
        return (actions - self.action_middle) / self.action_half_range
