"""ReBRAC for Lightning: its module and data module."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from ..data.episodes import Episode
from ..data.transition_set import FollowedBatch, FollowedTransitions
from ..training.datamodule import OfflineDataModule
from .rebrac_network import ActorCritic
from .transition_module import TransitionModule


class FollowedDataModule(OfflineDataModule[FollowedBatch]):
    """Transitions of both parts with their next actions; rewards are those recorded, with the termination penalty."""

    transitions: dict[str, FollowedTransitions]  # "train" and "validation", on the CPU

    @override
    def prepare(self, train: Sequence[Episode], validation: Sequence[Episode]) -> None:
        parts, penalty = {"train": train, "validation": validation}, self.config.termination_penalty
        self.transitions = {part: FollowedTransitions(episodes, penalty) for part, episodes in parts.items()}

    @override
    def make_examples(self, part: str) -> FollowedTransitions:
        return self.transitions[part].to(self.device)


class RegularizedModule(TransitionModule):
    """Trains the critics at each update; every ``policy_every`` updates also the actor and the target networks."""

    best_is_latest = True
    logged = ("loss", "q_loss", "policy_loss", "q", "action_distance")
    network: ActorCritic

    @property
    def moves_policy(self) -> bool:
        """True if the next or running update also trains the actor."""
        return (self.global_step + 1) % self.network.options.policy_every == 0

    @override
    def losses(self, batch: FollowedBatch) -> tuple[Tensor, dict[str, Tensor]]:
        q_loss, mean = self.network.critic_loss(batch, self.record.data.discount)
        if self.training and not self.moves_policy:
            # Gradients of 0, so that processes can average them; on_before_optimizer_step drops them.
            return q_loss + 0.0 * sum(p.sum() for p in self.network.actor.parameters()), {"q_loss": q_loss, "q": mean}
        # Differs from the original: the actor is trained with the critics before this update, not after it.
        policy_loss, distance = self.network.actor_loss(batch)
        total = q_loss + policy_loss
        named = {"q_loss": q_loss, "policy_loss": policy_loss, "q": mean, "action_distance": distance}
        return total, {"loss": total, **named}

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if not self.moves_policy:
            for parameter in self.network.actor.parameters():
                parameter.grad = None

    @override
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        if self.moves_policy:
            self.network.update_targets()  # not in on_train_batch_end, which runs after a checkpoint is written
