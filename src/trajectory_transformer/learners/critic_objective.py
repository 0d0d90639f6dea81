"""TT(+Q): a critic scores the leaves of the search in place of the predicted return-to-go (paper §4.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..configuration import PlannerConfig, one_of, require, validate
from ..planning.objectives import Candidates, Objective, PlanningContext

if TYPE_CHECKING:
    from torch import Tensor


# Differs from the paper: it leaves open what exactly is ranked; three readings are here.
@dataclass
class CriticValue(Objective):
    """A critic's value of the last action planned, or of the state it is taken in, with the rewards on the way.

    ``score=return`` ranks by the rewards expected before that action, as the critic knows them, plus the action's
    discounted value Q(s_t, a_t); ``v`` by the same rewards plus the state's value V(s_t), so that the last action does
    not matter; ``q`` by Q(s_t, a_t) alone; any other is a UserError. Rewards and values are discounted as the critic's
    were; observations and actions are bin centres.
    """

    critic: str
    """Checkpoint of experiment=iql_… that was trained on the model's data."""
    score: str = one_of("return", ("return", "v", "q"))
    """Score of a plan: return is the rewards before the last action plus its Q, v the same plus the value of the state
    that it is taken in, q its Q alone."""

    def __post_init__(self) -> None:
        validate("planner.objective.", self)

    def check(self, settings: PlannerConfig) -> None:
        require(
            self.score != "v" or (settings.plan_freq < settings.horizon and settings.deadline_ms is None),
            "planner.objective.score=v ranks by states that actions lead to, so that a plan's last action is any one: "
            "it needs planner.horizon above planner.plan_freq, and no planner.deadline_ms, which shortens plans",
        )

    def prepare(self, context: PlanningContext) -> None:
        """Read the critic; UserError if the file is no good, or the critic was trained on other data or dimensions."""
        import torch  # here, so that the check of options need not wait for it

        from ..checkpoint import Checkpoint
        from .critic import Critic

        checkpoint = Checkpoint.read(self.critic)
        critic = Critic.of(checkpoint, str(context.device))
        known, given = ((space.observation_dim, space.action_dim) for space in (critic.environment, context.layout))
        require(
            known == given,
            f"planner.objective.critic was trained on {known[0]} observation and {known[1]} action dimensions, the "
            f"model on {given[0]} and {given[1]}; train both on one data set",
        )
        if context.environment is not None and context.fingerprint is not None:
            checkpoint.require_same_data("planner.objective.critic", context.environment, context.fingerprint)
        self._critic = critic
        # One for each length: a power's last bit depends on how many are computed at once.
        lengths = range(1, context.settings.horizon + 1)
        self._discounts = [critic.discount ** torch.arange(length, device=context.device) for length in lengths]

    def __call__(self, candidates: Candidates) -> "Tensor":
        critic, t, shape = self._critic, candidates.t, candidates.tokens.shape[:2]
        state, action = candidates.observations.flatten(0, 1), candidates.actions.flatten(0, 1)
        value = (critic.network.v(state) if self.score == "v" else critic.network.q(state, action)).view(shape)
        if self.score == "q":
            return value
        rewards, discounts = critic.reward_scale * candidates.rewards[:, :, :t], self._discounts[t]
        return ((rewards + critic.reward_shift) * discounts[:t]).sum(dim=-1) + discounts[t] * value
