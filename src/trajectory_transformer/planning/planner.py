"""Plans from tokens: a model, its discretiser and the search's settings."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..configuration import PlannerConfig, require
from ..data.discretizer import Discretizer
from ..model.gpt import TrajectoryTransformerModel
from .beam_search import SearchResult, beam_search
from .decoder import TransformerDecoder


class BeamPlanner:
    """Plans from tokenised prefixes: a model, its discretiser and the search's settings.

    The weights are laid out for decoding here, once: build a new planner after they change.

    Args:
        model: trained; put into evaluation mode.
        discretizer: the one the model was trained with.
        settings: with ``discount`` set.

    Raises:
        UserError: the discretiser is another model's, or context or horizon exceed what the model can see.
    """

    def __init__(self, model: TrajectoryTransformerModel, discretizer: Discretizer, settings: PlannerConfig) -> None:
        require(settings.discount is not None, "planner.discount must be set")
        for what, fitted, expected in (
            ("dimensions", discretizer.transition_dim, model.config.transition_dim),
            ("bins", discretizer.num_bins, model.config.vocab_size),
        ):
            require(fitted == expected, f"the discretiser has {fitted} {what}, the model {expected}: not its own")
        sequence_length = (model.config.block_size + 1) // model.config.transition_dim
        settings.require_fits(sequence_length)
        self.model, self.discretizer, self.settings = model.eval(), discretizer, settings
        self.layout = model.layout
        sliding = settings.window == "sliding"
        self._decoder = TransformerDecoder(model, settings.context if sliding else sequence_length, sliding)

    def plan(self, prefix: Tensor, generators: Sequence[torch.Generator]) -> SearchResult:
        """Search from each environment's past.

        Args:
            prefix: (environment, time) tokens: at most ``settings.context - 1`` whole transitions, then the current
                observation.
            generators: one CPU generator for each environment; it alone decides that environment's draws.
        """
        settings = self.settings
        shape = (settings.horizon, self.layout.transition_dim, settings.n_expand * settings.beam_width)
        uniforms = torch.stack([torch.rand(shape, generator=generator) for generator in generators])
        return beam_search(self._decoder, prefix, self.layout, settings, self._estimate, uniforms.to(prefix.device))

    def _estimate(self, reward_probabilities: Tensor, value_probabilities: Tensor) -> tuple[Tensor, Tensor]:
        columns = slice(self.layout.reward, self.layout.value + 1)
        both = torch.stack([reward_probabilities, value_probabilities], dim=-2)
        if self.settings.percentile == "mean":
            estimates = self.discretizer.expectation(both, columns)
        else:
            estimates = self.discretizer.percentile(both, float(self.settings.percentile), columns)
        return estimates[..., 0], estimates[..., 1]
