"""Networks and losses of ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3+BC with two separate penalties."""

import copy
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ..data.transition_set import FollowedBatch
from ..environments.spec import EnvironmentSpec

if TYPE_CHECKING:
    from .rebrac import RegularizedActorCritic


def make_layers(inputs: int, options: "RegularizedActorCritic", outputs: int, last: float, norm: bool) -> nn.Sequential:
    """Make linear layers; each hidden one is followed by ReLU and, with ``norm``, by a LayerNorm.

    As in the original, hidden weights are uniform in ±1/√inputs, hidden biases 0.1, and weights and biases of the
    output uniform in ±``last``.
    """
    widths = [inputs, *[options.hidden_width] * options.hidden_layers]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        linear = nn.Linear(before, after)
        nn.init.uniform_(linear.weight, -(before**-0.5), before**-0.5)
        nn.init.constant_(linear.bias, 0.1)
        layers += [linear, nn.ReLU(), *([nn.LayerNorm(after, eps=1e-6)] if norm else [])]
    output = nn.Linear(widths[-1], outputs)
    for parameter in output.parameters():
        nn.init.uniform_(parameter, -last, last)
    return nn.Sequential(*layers, output)


class TwinCritics(nn.Module):
    """Two Q networks, of observations (n, O) and actions (n, A) in [−1, 1]."""

    def __init__(self, inputs: int, options: "RegularizedActorCritic") -> None:
        super().__init__()
        self.twins = nn.ModuleList(make_layers(inputs, options, 1, 3e-3, norm=True) for _ in range(2))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """Values (2, n) of both networks."""
        inputs = torch.cat([observations, actions], dim=-1)
        return torch.stack([twin(inputs).squeeze(-1) for twin in self.twins])


class ActorCritic(nn.Module):
    """A deterministic actor, twin critics and target networks; UserError unless actions have finite bounds.

    Actions are scaled to [−1, 1]; below, O and A are the dimensions of observations and actions.
    """

    action_middle: Tensor
    action_half_range: Tensor

    def __init__(self, environment: EnvironmentSpec, options: "RegularizedActorCritic") -> None:
        super().__init__()
        low, high = (torch.tensor(bound) for bound in environment.finite_action_bounds(options.kind))
        inputs, outputs = environment.observation_dim, len(low)
        self.options = options
        self.register_buffer("action_middle", (low + high) / 2)
        self.register_buffer("action_half_range", (high - low) / 2)
        self.actor = make_layers(inputs, options, outputs, 1e-3, norm=False)
        self.critics = TwinCritics(inputs + outputs, options)
        self.target_actor, self.target_critics = (
            copy.deepcopy(part).requires_grad_(False) for part in (self.actor, self.critics)
        )

    def policy(self, observations: Tensor) -> Tensor:
        """Actions (n, A) for observations (n, O), within the action space's bounds and in its units."""
        return self.action_middle + self.action_half_range * self.actor(observations).tanh()

    def critic_loss(self, batch: FollowedBatch, discount: float) -> tuple[Tensor, Tensor]:
        """Sum of both critics' mean squared errors, and their mean value.

        The target is TD3's minus a penalty on the squared distance between the target actor's and the data's next
        actions; in training, noise is added to the target actor's actions.
        """
        options = self.options
        with torch.no_grad():
            following = self.target_actor(batch.next_observations).tanh()
            if self.training:
                noise = options.policy_noise * torch.randn_like(following)
                following = (following + noise.clamp(-options.noise_clip, options.noise_clip)).clamp(-1.0, 1.0)
            # Differs from the original, which leaves out the last step of an episode truncated by a time limit, because
            # it has no next action: here the step is used without the penalty.
            distance = (following - self._scaled(batch.next_actions)).square().sum(dim=-1) * batch.followed
            value = self.target_critics(batch.next_observations, following).amin(dim=0)
            value = value - options.critic_penalty * distance
            target = batch.rewards + discount * (1.0 - batch.terminal) * value
        predicted = self.critics(batch.observations, self._scaled(batch.actions))
        return (predicted - target).square().mean(dim=-1).sum(), predicted.mean()

    def actor_loss(self, batch: FollowedBatch) -> tuple[Tensor, Tensor]:
        """Loss with gradients for the actor only, and the mean squared distance between its and the data's actions.

        The smaller critic's value is divided by its mean absolute value, so that the penalty is relative to it. With
        ``trainer.accumulate`` or several processes, that mean is of each part of the batch.
        """
        actions = self.actor(batch.observations).tanh()
        distance = (actions - self._scaled(batch.actions)).square().sum(dim=-1)
        fixed = {name: parameter.detach() for name, parameter in self.critics.named_parameters()}
        value = functional_call(self.critics, fixed, (batch.observations, actions)).amin(dim=0)
        loss = (self.options.actor_penalty * distance - value / value.abs().mean().detach()).mean()
        return loss, distance.mean()

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move each target network a little towards its source (Polyak averaging)."""
        for target, source in ((self.target_actor, self.actor), (self.target_critics, self.critics)):
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.lerp_(new, self.options.target_rate)

    def _scaled(self, actions: Tensor) -> Tensor:
        return (actions - self.action_middle) / self.action_half_range
