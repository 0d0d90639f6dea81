"""A network that corrects planned actions towards those that turned out better than expected."""

import torch
from torch import Tensor, nn

WIDTH = 256  # units of both hidden layers


class ActionImprovement(nn.Module):
    """Difference between the mean action of the steps that turned out well and that of all steps, near a given action.

    One network predicts both means from the observation and from the step's own action with noise added. Steps that
    turned out well are weighted by their advantage (advantage-weighted regression, AWR: Peng et al. 2019). So the
    difference is a step of policy improvement, and 0 where the return does not depend on the action. It is added to
    planned actions, ``planner.improvement`` times. Because of the noisy action, what other policies in the data did
    in that state counts less, the further it is from the planned action.

    The difference of two such denoised means is the noise's variance times the gradient of the logarithm of the
    expected weight given the noisy action (Tweedie's formula), as in classifier guidance (Dhariwal and Nichol 2021) at
    a single level of noise.

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
        first, second, last = nn.Linear(inputs + outputs, WIDTH), nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * outputs)
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

    def standardized(self, actions: Tensor) -> Tensor:
        """Actions (…, outputs) minus their mean, in standard deviations."""
        return (actions - self.action_mean) / self.action_deviation

    def means(self, normalized: Tensor, near: Tensor) -> Tensor:
        """Standardised mean actions (…, 2, outputs): of all steps, and of the good ones.

        Args:
            normalized: normalised observations (…, inputs).
            near: standardised actions (…, outputs) with noise, or planned ones.
        """
        return self.layers(torch.cat([normalized, near], dim=-1)).unflatten(-1, (2, -1))

    def forward(self, observations: Tensor, actions: Tensor) -> Tensor:
        """The difference (…, outputs), in units of the actions, for observations (…, inputs) and planned actions."""
        plain, good = self.means(self.normalized(observations), self.standardized(actions)).unbind(dim=-2)
        return (good - plain) * self.action_deviation
