"""A network that corrects planned actions towards those that turned out better than expected."""

import torch
from torch import Tensor, nn

WIDTH = 256  # units of both hidden layers


class ActionImprovement(nn.Module):
    """Difference between the mean action of the steps that turned out well and that of all steps, given the state.

    One network predicts both means from the observation. Steps that turned out well are weighted by their advantage
    (advantage-weighted regression, AWR: Peng et al. 2019), so the difference is a step of policy improvement, and 0
    where the return does not depend on the action. It is added to planned actions, ``planner.improvement`` times.

    Differs from the paper, which has no such correction, and from AWR, which executes the weighted mean itself.

    Args:
        inputs: size of an observation.
        outputs: size of an action.
    """

    observation_mean: Tensor  # (inputs,) buffers, as the following ones: of the training data
    observation_deviation: Tensor
    action_mean: Tensor  # (outputs,)
    action_deviation: Tensor
    fitted: Tensor  # () 1 once trained; before that, the differences are those of random weights

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        first, second, last = nn.Linear(inputs, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * outputs)
        self.layers = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last).requires_grad_(False)
        for kind, size in (("observation", inputs), ("action", outputs)):
            self.register_buffer(f"{kind}_mean", torch.zeros(size))
            self.register_buffer(f"{kind}_deviation", torch.ones(size))
        self.register_buffer("fitted", torch.zeros(()))

    @torch.no_grad()
    def standardize_like(self, observations: Tensor, actions: Tensor) -> None:
        """Set means and deviations to those of observations (n, inputs) and actions (n, outputs)."""
        for kind, values in (("observation", observations), ("action", actions)):
            deviation, mean = torch.std_mean(values, dim=0, correction=0)
            getattr(self, f"{kind}_mean").copy_(mean)
            getattr(self, f"{kind}_deviation").copy_(deviation.clamp_min(1e-6))

    def normalized(self, observations: Tensor) -> Tensor:
        """Observations (…, inputs) minus their mean, in standard deviations."""
        return (observations - self.observation_mean) / self.observation_deviation

    def means(self, normalized: Tensor) -> Tensor:
        """Standardised mean actions (…, 2, outputs) for normalised observations: of all steps, and of the good ones."""
        return self.layers(normalized).unflatten(-1, (2, -1))

    def forward(self, observations: Tensor) -> Tensor:
        """The difference (…, outputs), in units of the actions, for observations (…, inputs)."""
        plain, good = self.means(self.normalized(observations)).unbind(dim=-2)
        return (good - plain) * self.action_deviation
