"""Lightning module of an embedded data set's behaviour policy, which is not changed by training."""

import torch
from torch import Tensor, nn
from typing_extensions import override

from ..data.transition_set import TransitionBatch
from ..environments.spec import EnvironmentSpec
from ..simulation.policies import PolicyBehavior, is_soft, load_policy
from .transition_module import TransitionModule


class SnapshotPolicy(nn.Module):
    """The mean action of a policy that simulated a data set, within the action space's bounds."""

    middle: Tensor  # (action_dim,)
    half_range: Tensor

    def __init__(self, environment: EnvironmentSpec, behavior: PolicyBehavior) -> None:
        super().__init__()
        arrays = load_policy(behavior.file, behavior.snapshot)
        self.soft = is_soft(arrays)
        low, high = (torch.tensor(bound) for bound in environment.finite_action_bounds("behavior"))
        self.register_buffer("middle", (low + high) / 2)
        self.register_buffer("half_range", (high - low) / 2)
        hidden = sorted(name for name in arrays if name.startswith("hidden_") and name.endswith("_weight"))
        layers: list[nn.Module] = []
        for name in (*(name.removesuffix("_weight") for name in hidden), "mean"):
            linear = nn.Linear(*arrays[f"{name}_weight"].shape[::-1])
            for kind, parameter in linear.named_parameters():
                parameter.data = torch.tensor(arrays[f"{name}_{kind}"], device=parameter.device)
            layers += [linear, nn.ReLU() if self.soft else nn.Tanh()]
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, observations: Tensor) -> Tensor:
        """Actions (n, action_dim) for observations (n, observation_dim)."""
        mean = self.layers(observations)
        return self.middle + self.half_range * (mean.tanh() if self.soft else mean.clamp(-1.0, 1.0))


class BehaviorModule(TransitionModule):
    """Measures the squared distance between the data's and the policy's actions, in units of half the action range.

    It does not train. The distance shows the data's noise, and the difference between policies if there were several.
    """

    logged = ("loss",)
    network: SnapshotPolicy

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        loss = ((self.network(batch.observations) - batch.actions) / self.network.half_range).square().mean()
        return loss, {"loss": loss}

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        for parameter in self.parameters():
            parameter.grad = None
