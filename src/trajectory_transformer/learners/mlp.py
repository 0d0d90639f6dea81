"""Feed-forward networks: one for a critic, several at once for an ensemble."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def make_mlp(input_dim: int, hidden_layers: int, hidden_width: int, output_dim: int) -> nn.Sequential:
    """ReLU layers with orthogonal weights of gain √2 and zero biases, the last layer's too, as IQL's authors have them.

    Args:
        input_dim: of the first layer.
        hidden_layers: how many, at least 1.
        hidden_width: units of each.
        output_dim: of the last layer, which is linear.
    """
    widths = [input_dim, *[hidden_width] * hidden_layers]
    layers: list[nn.Module] = []
    for before, after in pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    layers.append(nn.Linear(hidden_width, output_dim))
    for layer in layers:
        if isinstance(layer, nn.Linear):
            nn.init.orthogonal_(layer.weight, math.sqrt(2.0))
            nn.init.zeros_(layer.bias)
    return nn.Sequential(*layers)


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble, in one batched product.

    Weights are drawn as in PETS, from a normal distribution of standard deviation 1 / (2 √inputs), truncated at twice
    that; biases are zero.

    Attributes:
        weight: (members, inputs, outputs).
        bias: (members, 1, outputs).
    """

    def __init__(self, num_members: int, input_dim: int, output_dim: int) -> None:
        super().__init__()
        deviation = 0.5 / math.sqrt(input_dim)
        self.weight = nn.Parameter(torch.empty(num_members, input_dim, output_dim))
        self.bias = nn.Parameter(torch.zeros(num_members, 1, output_dim))
        nn.init.trunc_normal_(self.weight, std=deviation, a=-2.0 * deviation, b=2.0 * deviation)

    def forward(self, inputs: Tensor, members: slice) -> Tensor:
        """(chosen members, batch, outputs) for inputs (chosen members, batch, inputs)."""
        return torch.baddbmm(self.bias[members], inputs, self.weight[members])
