"""Feed-forward networks: one for a critic, several at once for an ensemble."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn


def make_mlp(input_dim: int, hidden_layers: int, hidden_width: int, output_dim: int) -> nn.Sequential:
    """ReLU layers (at least one) and a linear one, with orthogonal weights of gain √2 and zero biases, as in IQL."""
    widths = [input_dim, *[hidden_width] * hidden_layers, output_dim]
    linears = [nn.Linear(before, after) for before, after in pairwise(widths)]
    for linear in linears:
        nn.init.orthogonal_(linear.weight, math.sqrt(2.0))
        nn.init.zeros_(linear.bias)
    layers = [layer for linear in linears for layer in (linear, nn.ReLU())]
    return nn.Sequential(*layers[:-1])


class MemberLinear(nn.Module):
    """A linear layer for each member of an ensemble, in one batched product.

    Weights (members, inputs, outputs) are drawn as in PETS, from a normal distribution of standard deviation
    1 / (2 √inputs), truncated at twice that; biases (members, 1, outputs) are zero.
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
