"""The network of the Decision Transformer (Chen, Lu, Rajeswaran, Lee, Grover, Laskin, Abbeel, Srinivas, Mordatch 2021).

A step has three tokens: return-to-go, observation and action. All three are continuous and embedded by a linear map, as
in the paper, not discretised as in the Trajectory Transformer, so that it is compared as its authors published it. The
blocks are those of :mod:`~..model.gpt`.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..configuration import ModelConfig
from ..environments.spec import EnvironmentSpec
from ..model.elementwise import Dropout
from ..model.gpt import Block
from ..model.memory import CausalMemory

if TYPE_CHECKING:
    from .dt import ReturnConditioned


class DecisionTransformer(nn.Module):
    """Network that predicts actions from returns-to-go, observations and earlier actions.

    Below, n is the batch size, T ≤ ``options.context`` the number of steps, O and A are the dimensions of observations
    and actions.

    Raises:
        UserError: the actions have no finite bounds.
    """

    observation_mean: Tensor  # (O,) of the training data
    observation_deviation: Tensor
    action_middle: Tensor  # (A,)
    action_half_range: Tensor
    return_scale: Tensor  # scalar
    mask: Tensor  # (3 context, 3 context) bool, causal

    def __init__(self, environment: EnvironmentSpec, options: "ReturnConditioned", longest_episode: int) -> None:
        super().__init__()
        low, high = (torch.tensor(bound) for bound in environment.finite_action_bounds(options.kind))
        inputs, width, dropped = environment.observation_dim, options.n_embd, options.dropout
        self.register_buffer("observation_mean", torch.zeros(inputs))
        self.register_buffer("observation_deviation", torch.ones(inputs))
        self.register_buffer("action_middle", (low + high) / 2)
        self.register_buffer("action_half_range", (high - low) / 2)
        self.register_buffer("return_scale", torch.ones(()))
        length = 3 * options.context
        self.register_buffer("mask", torch.ones(length, length, dtype=torch.bool).tril(), persistent=False)
        self.options = options
        self.step_embedding = nn.Embedding(longest_episode, width)
        self.return_embedding = nn.Linear(1, width)
        self.observation_embedding = nn.Linear(inputs, width)
        self.action_embedding = nn.Linear(len(low), width)
        self.ln_in = nn.LayerNorm(width)
        self.drop = Dropout(dropped)
        config = ModelConfig(
            n_head=options.n_head, n_embd=width, hidden_act="relu", resid_pdrop=dropped, attn_pdrop=dropped
        )
        self.blocks = nn.ModuleList(Block(config) for _ in range(options.n_layer))
        self.ln_f = nn.LayerNorm(width)
        self.head = nn.Linear(width, len(low))
        for module in self.blocks.modules():  # as in the original; everything else has torch's initialisation
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=config.initializer_range)
                nn.init.zeros_(module.bias)

    @torch.no_grad()
    def normalize_like(self, observations: Tensor, returns: Tensor, return_scale: float | None) -> None:
        """Set the normalisation from observations (n, O) and returns-to-go (n,); ``return_scale`` None: the largest."""
        self.observation_mean.copy_(observations.mean(dim=0))
        self.observation_deviation.copy_(observations.std(dim=0, unbiased=False).clamp_min(1e-6))
        self.return_scale.fill_(return_scale or float(returns.abs().max()) or 1.0)

    def forward(self, returns: Tensor, observations: Tensor, actions: Tensor, steps: Tensor) -> Tensor:
        """Predicted actions (n, T, A) of each step, from the steps before and the step's own return and observation.

        Args:
            returns: (n, T) returns-to-go, including the step's own reward.
            observations: (n, T, O).
            actions: (n, T, A) in the space's units; an action is visible to later steps only.
            steps: (n, T) integers, index of each step in its episode from 0; those past the longest training episode
                are embedded as its last step.
        """
        tokens = [
            self.return_embedding((returns / self.return_scale).unsqueeze(-1)),
            self.observation_embedding((observations - self.observation_mean) / self.observation_deviation),
            self.action_embedding((actions - self.action_middle) / self.action_half_range),
        ]
        times = self.step_embedding(steps.clamp(max=self.step_embedding.num_embeddings - 1))
        x = self.drop(self.ln_in((torch.stack(tokens, dim=2) + times.unsqueeze(2)).flatten(1, 2)))
        memory = CausalMemory(self.mask, None, keep=False, keep_weights=False)
        for layer, block in enumerate(self.blocks):
            x = block(x, layer, memory)
        output = self.head(self.ln_f(x[:, 1::3])).tanh()
        return self.action_middle + self.action_half_range * output
