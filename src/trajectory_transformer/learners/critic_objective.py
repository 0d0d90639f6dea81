"""TT(+Q): an objective in which a critic's value replaces the predicted return-to-go (paper §4.2)."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..configuration import PlannerConfig, one_of, require, validate
from ..files import require_file
from ..planning.objectives import Candidates, Objective, PlanningContext

if TYPE_CHECKING:
    from torch import Tensor


# Differs from the paper: it does not define the score exactly; three interpretations are implemented.
@dataclass
class CriticValue(Objective):
    """The rewards of a plan plus a critic's value of its last action, or of the state before that action.

    ``score=return`` ranks by the estimated rewards before the last action, in the critic's units, plus that action's
    discounted value Q(s_t, a_t); ``v`` by the same rewards plus the state's value V(s_t), independently of the last
    action; ``q`` by Q(s_t, a_t) alone; any other is a UserError. The discount is the critic's; observations and actions
    are bin centres.
    """

    critic: str
    """Checkpoint of experiment=iql_… that was trained on the model's data."""
    score: str = one_of("return", ("return", "v", "q"))
    """Score of a plan: return is the rewards before the last action plus Q of that action; v is the same rewards plus
    the value of the state before that action; q is Q of that action alone."""

    def __post_init__(self) -> None:
        validate("planner.objective.", self)

    def check(self, settings: PlannerConfig) -> None:
        require(
            self.score != "v" or (settings.plan_freq < settings.horizon and settings.deadline_ms is None),
            "planner.objective.score=v does not depend on a plan's last action, which must therefore not be used: set "
            "planner.horizon above planner.plan_freq, and no planner.deadline_ms, which shortens plans",
        )
        require_file(self.critic, "planner.objective.critic: ")

    def prepare(self, context: PlanningContext) -> None:
        """Read the critic; UserError if the file is invalid, or the critic was trained on other data or dimensions."""
        import torch  # here, so that options are checked before torch is loaded

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
        # One tensor for each length: the last bit of a power depends on how many are computed at once.
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
