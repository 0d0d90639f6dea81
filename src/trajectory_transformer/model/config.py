"""Configuration of the model: the user's options and the sizes of the data. Does not import torch."""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Self

from ..configuration import HIDDEN_ACTIVATIONS, ModelConfig, require, within
from ..layout import TransitionLayout


@dataclass(kw_only=True)
class TransformerConfig(ModelConfig):
    """The options of :class:`~..configuration.ModelConfig` and the sizes of the data; UserError if these contradict."""

    vocab_size: int = within(100, 1, 32_766)
    """Bins per dimension V; the model adds one stop token, V."""
    block_size: int = within(249, 1)
    """Longest input in tokens; in training sequence_length * transition_dim - 1, the goal included."""
    action_dim: int = within(6, 1)
    """Dimensions of an action."""
    observation_dim: int = within(17, 1)
    """Dimensions of an observation."""
    transition_dim: int = within(25, 1)
    """Tokens of a transition: observation_dim + action_dim + 2."""
    max_position_embeddings: int = within(512, 1)
    """Upper limit of block_size."""
    use_cache: bool = True
    """Default of forward: return the keys and values of the input."""
    output_attentions: bool = False
    """Default of forward: return the attention weights."""
    output_hidden_states: bool = False
    """Default of forward: return the output of every block."""
    return_dict: bool = True
    """Default of forward: return an object instead of a tuple."""

    prefix: ClassVar[str] = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.transition_dim == self.layout.transition_dim,
            f"transition_dim={self.transition_dim} must be observation_dim + action_dim + 2 = "
            f"{self.layout.transition_dim}",
        )
        require(
            self.block_size <= self.max_position_embeddings,
            f"block_size={self.block_size} exceeds max_position_embeddings={self.max_position_embeddings}",
        )

    @classmethod
    def for_data(cls, options: ModelConfig, layout: TransitionLayout, num_bins: int, sequence_length: int) -> Self:
        """Configuration for windows of ``sequence_length`` transitions, not counting a goal."""
        block_size = layout.block_size(sequence_length + options.goal_conditioned)
        return cls(
            vocab_size=num_bins,
            block_size=block_size,
            observation_dim=layout.observation_dim,
            action_dim=layout.action_dim,
            transition_dim=layout.transition_dim,
            max_position_embeddings=max(512, block_size),
            **vars(options),
        )

    def training_bytes(self, batch_size: int, precision: str, shares: int = 1) -> int:
        """Lower bound of the memory in bytes that training on ``batch_size`` windows at once takes.

        It counts what is certainly held at the same time: the parameters and AdamW's averages of all members, the
        causal mask, and the larger of two temporary amounts: the activations that the backward pass needs of blocks and
        heads, or the mask as numbers during validation.

        Args:
            batch_size: windows.
            precision: as Lightning names it.
            shares: number of processes that the parameters are divided among.
        """
        tokens, width = self.block_size, self.n_embd
        layers = self.n_layer if self.block is None else 0  # the memory of a user's block is unknown
        parameters = self.transition_dim * (2 * self.vocab_size + 1) * width + tokens * width + 12 * layers * width**2
        real = 4 if precision == "32-true" else 2
        update = self.members * batch_size * tokens * (2 * (self.vocab_size + 1) + 8 * width * layers) * real
        validation = tokens**2 * real  # torch converts the mask to numbers; also in updates without attention in C
        return 12 * self.members * parameters * real // 4 // shares + tokens**2 + max(update, validation)

    @property
    def sequence_length(self) -> int:
        """Transitions in the longest input, the last one without its value token; not counting a goal."""
        return (self.block_size + 1) // self.transition_dim - self.goal_conditioned

    @property
    def layout(self) -> TransitionLayout:
        return TransitionLayout(self.observation_dim, self.action_dim)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for checkpoints; UserError if ``hidden_act`` is a function, which cannot be saved."""
        names = ", ".join(HIDDEN_ACTIVATIONS)
        require(not callable(self.hidden_act), f"hidden_act is a function and cannot be saved; name one of {names}")
        return asdict(self)
