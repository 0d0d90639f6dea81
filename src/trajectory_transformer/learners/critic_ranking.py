"""TT(+Q): a critic scores the leaves of the search in place of the predicted return-to-go (paper §4.2)."""

import torch
from torch import Tensor

from ..configuration import PlannerConfig, require
from ..data.discretizer import Discretizer
from ..layout import TransitionLayout
from .critic import Critic


# Differs from the paper: it leaves open what exactly is ranked; three readings are here.
class CriticRanking:
    """A :data:`~.beam_search.Ranking` by the critic's value of the last action planned, or of the state it is taken in.

    The paper leaves open what exactly is ranked. ``critic_score=return`` ranks by the rewards expected before that
    action, as the critic knows them, plus the action's discounted value Q(s_t, a_t); ``v`` by the same rewards plus the
    state's value V(s_t), so that the last action does not matter; ``q`` by Q(s_t, a_t) alone.

    Args:
        critic: trained on as many observation and action dimensions.
        discretizer: decodes tokens into what the critic values: bin centres.
        layout: of a transition.
        settings: with ``critic_score``. Rewards and values are discounted as the critic's were.

    Raises:
        UserError: the critic was trained on other dimensions.
    """

    def __init__(
        self, critic: Critic, discretizer: Discretizer, layout: TransitionLayout, settings: PlannerConfig
    ) -> None:
        known = (critic.environment.observation_dim, critic.environment.action_dim)
        given = (layout.observation_dim, layout.action_dim)
        require(
            known == given,
            f"planner.critic was trained on {known[0]} observation and {known[1]} action dimensions, the model on "
            f"{given[0]} and {given[1]}",
        )
        self._critic, self._discretizer, self._layout = critic, discretizer, layout
        self._score = settings.critic_score

    def __call__(self, returns: Tensor, t: int, tokens: Tensor) -> Tensor:
        critic, layout = self._critic, self._layout
        decoded = self._discretizer.decode(tokens, slice(0, layout.reward)).flatten(0, 1)
        state, action = decoded[:, layout.observation], decoded[:, layout.action]
        network = critic.network
        value = (network.v(state) if self._score == "v" else network.q(state, action)).view(tokens.shape[:2])
        if self._score == "q":
            return value
        rewards = critic.reward_scale * returns[:, :, :t] + critic.reward_shift
        discounts = critic.discount ** torch.arange(t + 1, device=value.device)
        return (rewards * discounts[:t]).sum(dim=-1) + discounts[t] * value
