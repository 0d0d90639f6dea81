"""Feed-forward networks, as in implicit Q-learning."""

import math
from itertools import pairwise

from torch import nn


def make_mlp(input_dim: int, hidden_layers: int, hidden_width: int, output_dim: int) -> nn.Sequential:
    """Make ReLU layers, at least one, and a linear layer, with orthogonal weights of gain √2 and zero biases."""
    widths = [input_dim, *[hidden_width] * hidden_layers, output_dim]
    linears = [nn.Linear(before, after) for before, after in pairwise(widths)]
    for linear in linears:
        nn.init.orthogonal_(linear.weight, math.sqrt(2.0))
        nn.init.zeros_(linear.bias)
    layers = [layer for linear in linears for layer in (linear, nn.ReLU())]
    return nn.Sequential(*layers[:-1])
