"""Embedding of a transition's real values, added to the embedding of its tokens."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import TransitionLayout


class NumericalEmbedding(nn.Module):
    """MLPs of a transition's real values, added at positions that predict its action, reward and value.

    ::

        position      0 … O-2    O-1 … O+A-2         O+A-1, O+A, O+A+1
        predicts      o1 …       a0 …                reward, value, the next transition's o0
        added         nothing    mlp(observation)    mlp(observation, action)

    The real value of a token is the standardised value of its bin, so the output depends on the tokens alone. Nothing
    is added at positions that predict observations: there it would outweigh what attention copies.

    Differs from the paper, whose model has to learn for each dimension which bins are close to each other. Embeddings
    of numerical features: Gorishniy et al. 2022, who embed each feature separately; here one MLP takes all of them.

    Args:
        layout: positions within a transition.
        vocabulary: number of tokens of a dimension, including the stop token.
        hidden: width of both hidden layers.
        n_embd: output features.
    """

    values: Tensor  # (transition_dim, vocabulary) buffer: standardised value of each token; 0 for the stop token

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
        """Set the real value of each token from its bin's, ``centers`` (transition_dim, vocabulary - 1).

        They are standardised by mean and standard deviation of the training data (n, transition_dim) and clipped to 5
        deviations.
        """
        # One column at a time, which fits into memory.
        columns = [torch.std_mean(column.double(), dim=0, correction=0) for column in data.T]
        deviation, mean = map(torch.stack, zip(*columns, strict=True))
        standard = (centers - mean[:, None]) / (deviation[:, None] + 1e-6)
        self.values.copy_(F.pad(standard.clamp(-5.0, 5.0), (0, 1)))

    def of_observation(self, tokens: Tensor) -> Tensor:
        """Output (…, n_embd) of the observation's MLP for the tokens (…, at least O) of a transition."""
        return self.observation(self._decoded(tokens, self.observed))

    def of_transition(self, tokens: Tensor) -> Tensor:
        """Output (…, n_embd) of the MLP of observation and action for a transition's tokens (…, at least O + A)."""
        return self.transition(self._decoded(tokens, self.acted))

    def _decoded(self, tokens: Tensor, dimensions: int) -> Tensor:
        return self.values[torch.arange(dimensions, device=tokens.device), tokens[..., :dimensions]]

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, time, n_embd) to add for tokens (batch, time) that begin at a transition's start."""
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
