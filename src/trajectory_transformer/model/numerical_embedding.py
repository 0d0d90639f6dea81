"""MLPs of a transition's real values: an embedding beside that of its tokens, and a prediction of what follows."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..layout import TransitionLayout


class NumericalEmbedding(nn.Module):
    """MLPs of a transition's real values, added at positions that predict its action, reward and value.

    ::

        position        0 … O-2    O-1 … O+A-2         O+A-1, O+A               O+A+1
        predicts        o1 …       a0 …                reward, value            the next transition's o0
        to embeddings   nothing    mlp(observation)    mlp(observation, action) mlp(observation, action)
        before ln_f     dynamics   nothing             nothing                  dynamics

    The real value of a token is the standardised value of its bin, so the output depends on the tokens alone. Nothing
    is added to the embeddings at positions that predict observations: there it would outweigh what attention copies.
    With ``dynamics``, a third MLP has an output of its own for each dimension of the next observation. It is added to
    what the blocks made of the token that predicts this dimension, just before the final norm.

    Differs from the paper, whose model has to learn for each dimension which bins are close to each other. Embeddings
    of numerical features: Gorishniy et al. 2022, who embed each feature separately; here one MLP takes all of them.

    Args:
        layout: positions within a transition.
        vocabulary: number of tokens of a dimension, including the stop token.
        hidden: width of both hidden layers.
        n_embd: output features.
        dynamics: make the third MLP, too.
    """

    values: Tensor  # (transition_dim, vocabulary) buffer: standardised value of each token; 0 for the stop token

    def __init__(
        self, layout: TransitionLayout, vocabulary: int, hidden: int, n_embd: int, dynamics: bool = False
    ) -> None:
        super().__init__()
        self.observed, self.acted = layout.observation_dim, layout.reward

        def mlp(inputs: int, outputs: int) -> nn.Sequential:
            first, second, last = nn.Linear(inputs, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, outputs)
            return nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)

        self.observation, self.transition = mlp(self.observed, n_embd), mlp(self.acted, n_embd)
        self.dynamics = mlp(self.acted, self.observed * n_embd) if dynamics else None
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

    def decoded(self, tokens: Tensor, dimensions: slice) -> Tensor:
        """Standardised values (…, d) of some dimensions of whole transitions (…, transition_dim); 0 for stop tokens."""
        index = torch.arange(len(self.values), device=tokens.device)[dimensions]
        return self.values[index, tokens[..., dimensions]]

    def of_observation(self, tokens: Tensor) -> Tensor:
        """Output (…, n_embd) of the observation's MLP for the tokens (…, at least O) of a transition."""
        return self.observation(self.decoded(tokens, slice(self.observed)))

    def of_transition(self, tokens: Tensor) -> Tensor:
        """Output (…, n_embd) of the MLP of observation and action for a transition's tokens (…, at least O + A)."""
        return self.transition(self.decoded(tokens, slice(self.acted)))

    def of_next_observation(self, tokens: Tensor) -> Tensor:
        """Output (…, O, n_embd) of the third MLP for a transition's tokens (…, at least O + A)."""
        assert self.dynamics is not None
        return self.dynamics(self.decoded(tokens, slice(self.acted))).unflatten(-1, (self.observed, -1))

    def predictions(self, tokens: Tensor) -> Tensor:
        """Features (batch, time, n_embd) to add before the final norm, for tokens as in :meth:`forward`."""
        time, width = tokens.shape[1], len(self.values)
        following = self.of_next_observation(self._whole(tokens))  # (batch, transitions, O, n_embd)
        every_place = F.pad(following, (0, 0, 0, width - self.observed)).flatten(1, 2)
        # The first transition's observation follows nothing, and a token predicts the dimension after its own.
        return F.pad(every_place, (0, 0, width - 1, 0))[:, :time]

    def _whole(self, tokens: Tensor) -> Tensor:
        """Tokens (batch, transitions, transition_dim), filled up with zeros to whole transitions."""
        width = len(self.values)
        return F.pad(tokens, (0, -tokens.shape[1] % width)).unflatten(1, (-1, width))

    def forward(self, tokens: Tensor) -> Tensor:
        """Embeddings (batch, time, n_embd) to add for tokens (batch, time) that begin at a transition's start."""
        time, width = tokens.shape[1], len(self.values)
        whole = self._whole(tokens)
        observation, transition = self.of_observation(whole), self.of_transition(whole)
        counts = self.observed - 1, self.acted - self.observed, width - self.acted + 1
        added = [
            values.unsqueeze(2).expand(-1, -1, count, -1)
            for values, count in zip((torch.zeros_like(observation), observation, transition), counts, strict=True)
        ]
        return torch.cat(added, dim=2).flatten(1, 2)[:, :time]


class NumericalReadout(nn.Module):
    """Linear predictions of a transition's next values from its numerical embedding, to train that embedding directly.

    The action is predicted from the embedding of the observation; reward and return-to-go from that of observation and
    action. Companion objectives of hidden layers: Lee et al. 2015, "Deeply-supervised nets". Planning does not use it.

    Differs from the paper, which trains by the next token's cross-entropy alone.

    Args:
        numbers: the embedding.
        n_embd: its output features.
    """

    pretrained: Tensor  # () buffer: 1 if the embedding was trained before the transformer

    def __init__(self, numbers: NumericalEmbedding, n_embd: int) -> None:
        super().__init__()
        self.register_buffer("pretrained", torch.zeros(()))
        self.action = nn.Linear(n_embd, numbers.acted - numbers.observed)
        self.outcome = nn.Linear(n_embd, len(numbers.values) - numbers.acted)

    def forward(self, numbers: NumericalEmbedding, tokens: Tensor) -> Tensor:
        """Mean squared error of the action plus that of reward and return-to-go, in standard deviations squared.

        ``tokens`` (n, transition_dim) are whole transitions, without stop tokens.
        """
        action = self.action(numbers.of_observation(tokens))
        outcome = self.outcome(numbers.of_transition(tokens))
        wanted = numbers.decoded(tokens, slice(numbers.observed, None))
        actions = action.shape[-1]
        return F.mse_loss(action, wanted[..., :actions]) + F.mse_loss(outcome, wanted[..., actions:])
