"""ReBRAC (Tarasov, Kurenkov, Nikulin, Kolesnikov 2023): TD3+BC with penalties of their own for actor and critics."""

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
    """Linear layers, each hidden one with ReLU and, with ``norm``, a LayerNorm after it.

    Weights are uniform in ±1/√inputs with biases of 0.1, those of the output uniform in ±``last``, as in the original.
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
    """Two networks of the value of an observation (n, O) and an action (n, A) in [−1, 1]."""

    def __init__(self, inputs: int, options: "RegularizedActorCritic") -> None:
        super().__init__()
        self.twins = nn.ModuleList(make_layers(inputs, options, 1, 3e-3, norm=True) for _ in range(2))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """(2, n) values."""
        inputs = torch.cat([observations, actions], dim=-1)
        return torch.stack([twin(inputs).squeeze(-1) for twin in self.twins])


class ActorCritic(nn.Module):
    """A deterministic actor, twin critics and slowly following targets of all; UserError without finite action bounds.

    They see actions scaled to [−1, 1]; below, O and A are the dimensions of observations and actions.
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
        """(n, A) actions at observations (n, O), within the action space's bounds and in its units."""
        return self.action_middle + self.action_half_range * self.actor(observations).tanh()

    def critic_loss(self, batch: FollowedBatch, discount: float) -> tuple[Tensor, Tensor]:
        """Squared error of both critics together, and their mean value; in training with noise on the target's actions.

        The target is what TD3 has, less the penalty on the distance of the next action from the data's.
        """
        options = self.options
        with torch.no_grad():
            following = self.target_actor(batch.next_observations).tanh()
            if self.training:
                noise = options.policy_noise * torch.randn_like(following)
                following = (following + noise.clamp(-options.noise_clip, options.noise_clip)).clamp(-1.0, 1.0)
            # Differs from the original: it leaves out the last step of an episode that a time limit ended, as no next
            # action is known; here it is trained on without the penalty.
            distance = (following - self._scaled(batch.next_actions)).square().sum(dim=-1) * batch.followed
            value = self.target_critics(batch.next_observations, following).amin(dim=0)
            value = value - options.critic_penalty * distance
            target = batch.rewards + discount * (1.0 - batch.terminal) * value
        predicted = self.critics(batch.observations, self._scaled(batch.actions))
        return (predicted - target).square().mean(dim=-1).sum(), predicted.mean()

    def actor_loss(self, batch: FollowedBatch) -> tuple[Tensor, Tensor]:
        """The actor's loss, which moves nothing but the actor, and its mean squared distance from the data's actions.

        The lesser value counts in units of its own mean size, so that the penalty means the same on all data.
        """
        actions = self.actor(batch.observations).tanh()
        distance = (actions - self._scaled(batch.actions)).square().sum(dim=-1)
        fixed = {name: parameter.detach() for name, parameter in self.critics.named_parameters()}
        value = functional_call(self.critics, fixed, (batch.observations, actions)).amin(dim=0)
        loss = (self.options.actor_penalty * distance - value / value.abs().mean().detach()).mean()
        return loss, distance.mean()

    @torch.no_grad()
    def update_targets(self) -> None:
        """Move the targets a little towards their own networks (Polyak averaging)."""
        for target, source in ((self.target_actor, self.actor), (self.target_critics, self.critics)):
            for old, new in zip(target.parameters(), source.parameters(), strict=True):
                old.lerp_(new, self.options.target_rate)

    def _scaled(self, actions: Tensor) -> Tensor:
        return (actions - self.action_middle) / self.action_half_range
