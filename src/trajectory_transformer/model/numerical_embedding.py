"""Embedding of a transition's real values, beside that of its tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import TransitionLayout


class NumericalEmbedding(nn.Module):
    """MLPs of a transition's real values, added where its action, reward and value are predicted.

    ::

        position      0 … O-2    O-1 … O+A-2         O+A-1, O+A, O+A+1
        predicts      o1 …       a0 …                reward, value, the next transition's o0
        added         nothing    mlp(observation)    mlp(observation, action)

    A value is that of its token's bin, standardised, so that all is a function of the tokens. Nothing is added where
    observations are predicted: there it would drown what attention copies.

    Differs from the paper, whose model learns anew for each dimension which bins lie near each other. Embeddings of
    numerical features: Gorishniy et al. 2022, who embed each by itself; here one MLP takes all of them.

    Args:
        layout: positions within a transition.
        vocabulary: tokens of a dimension, stop token included.
        hidden: width of both hidden layers.
        n_embd: output features.
    """

    values: Tensor  # (transition_dim, vocabulary) buffer, standardised values of all tokens; 0 for the stop token

    def __init__(self, layout: TransitionLayout, vocabulary: int, hidden: int, n_embd: int) -> None:
        super().__init__()
        self.observed, self.acted = layout.observation_dim, layout.reward
        self.observation, self.transition = (
            nn.Sequential(
                nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, n_embd)
            )
            for inputs in (self.observed, self.acted)
        )
        self.register_buffer("values", torch.zeros(layout.transition_dim, vocabulary))

    @torch.no_grad()
    def set_values(self, centers: Tensor, data: Tensor) -> None:
        """Take the bins' values, ``centers`` (transition_dim, vocabulary - 1), for what tokens stand for.

        Mean and deviation of training data (n, transition_dim) standardise them, to at most 5 deviations.
        """
        columns = [torch.std_mean(column.double(), dim=0, correction=0) for column in data.T]  # which fit into memory
        deviation, mean = map(torch.stack, zip(*columns, strict=True))
        standard = (centers - mean[:, None]) / (deviation[:, None] + 1e-6)
        self.values.copy_(F.pad(standard.clamp(-5.0, 5.0), (0, 1)))

    def of_observation(self, tokens: Tensor) -> Tensor:
        """(…, n_embd) of (…, at least O) tokens of a transition."""
        return self.observation(self._decoded(tokens, self.observed))

    def of_transition(self, tokens: Tensor) -> Tensor:
        """(…, n_embd) of (…, at least O + A) tokens of a transition."""
        return self.transition(self._decoded(tokens, self.acted))

    def _decoded(self, tokens: Tensor, dimensions: int) -> Tensor:
        return self.values[torch.arange(dimensions, device=tokens.device), tokens[..., :dimensions]]

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, time, n_embd) to be added for tokens (batch, time), from a transition's first dimension on."""
        batch, time = tokens.shape
        width = len(self.values)
        whole = F.pad(tokens, (0, -time % width)).view(batch, -1, width)
        observation, transition = self.of_observation(whole), self.of_transition(whole)
        counts = self.observed - 1, self.acted - self.observed, width - self.acted + 1
        added = [
            values.unsqueeze(2).expand(-1, -1, count, -1)
            for values, count in zip((torch.zeros_like(observation), observation, transition), counts, strict=True)
        ]
        return torch.cat(added, dim=2).flatten(1, 2)[:, :time]
