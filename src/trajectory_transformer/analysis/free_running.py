"""The model left to itself: many continuations of one start, sampled side by side (paper §4.1).

::

    window    [ up to context - 1 whole transitions | observation t ]   encoded anew for each transition
    appended  action t (recorded or sampled), reward t, value t, then observation t + 1, token by token

So observation ``t + 1`` is predicted from at most ``context`` transitions, of which ``t`` is the last. With
``context=1`` the model is Markovian: nothing that it sees is older than the observation and the action of ``t``.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..layout import TransitionLayout
from ..planning.decoder import BeamDecoder
from ..planning.sampling import Choice, draw, filter_top_k

_ROWS_AT_ONCE = 250  # keys and values of more samples than these would be read from main memory at every token


@dataclass(frozen=True)
class FreeRunning:
    """Number, length, context and sampling of continuations.

    Attributes:
        samples: sequences, at least 1.
        horizon: transitions of each, at least 1.
        context: transitions that an observation is predicted from, at least 1; one more must fit the decoder's window.
        observations: how observation tokens are drawn; its ``cdf`` must be None.
        others: how action, reward and value tokens are drawn; likewise.
    """

    samples: int
    horizon: int
    context: int
    observations: Choice = Choice()  # noqa: RUF009 - frozen
    others: Choice = Choice()  # noqa: RUF009 - frozen


@dataclass(frozen=True)
class Continuations:
    """Sampled tokens, all in [0, vocab_size), and the distributions that they were drawn from.

    Attributes:
        actions: (samples, horizon, action_dim) int64.
        observations: (samples, horizon, observation_dim) int64; entry t follows action t.
        probabilities: (horizon, observation_dim, vocab_size) float64, the distribution that each observation token was
            drawn from, averaged over the samples. It estimates the marginal distribution of that dimension at that
            step, without the noise of the last draw that counting tokens would add (Rao and Blackwell).
    """

    actions: Tensor
    observations: Tensor
    probabilities: Tensor


@torch.inference_mode()
def continue_freely(
    decoder: BeamDecoder,
    layout: TransitionLayout,
    start: Tensor,
    actions: Tensor | None,
    settings: FreeRunning,
    generator: torch.Generator,
    on_transitions: Callable[[int], None] = lambda _: None,
) -> Continuations:
    """Sample ``settings.samples`` continuations of one start.

    The stop token, which stands for the end of an episode, is never drawn: its probability is shared among the bins in
    proportion to theirs, as if the episode always went on.

    Args:
        decoder: of the model; its window must not slide.
        layout: of a transition.
        start: (time,) tokens: whole transitions, if any, then one observation; it is cropped to the context.
        actions: (horizon, action_dim) tokens that all samples take, or None for the model's own.
        settings: how.
        generator: on the CPU; it alone decides all draws.
        on_transitions: called with the number of transitions sampled since the last call.
    """
    runs = []
    for first in range(0, settings.samples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, settings.samples - first)
        runner = _Runner(decoder, layout, start.expand(rows, -1), actions, settings)
        for t in range(settings.horizon):
            runner.advance(t, torch.rand(layout.transition_dim, rows, generator=generator).to(start.device))
            on_transitions(rows)
        runs.append(runner)
    transitions = torch.cat([torch.stack(runner.transitions, dim=1) for runner in runs])
    probabilities = torch.stack([runner.probabilities for runner in runs]).sum(dim=0) / settings.samples
    action_dim = layout.action_dim
    return Continuations(transitions[..., :action_dim], transitions[..., action_dim + 2 :], probabilities)


@dataclass
class _Runner:
    """Some of the samples, each with its own ``window`` of (rows, time) tokens.

    Attributes:
        transitions: for each step (rows, transition_dim) tokens: action, reward, value, next observation.
        probabilities: (horizon, observation_dim, vocab_size) float64, summed over the rows.
    """

    decoder: BeamDecoder
    layout: TransitionLayout
    window: Tensor
    actions: Tensor | None
    settings: FreeRunning
    transitions: list[Tensor] = field(default_factory=list)
    probabilities: Tensor = field(default_factory=lambda: torch.zeros(0))

    def advance(self, t: int, uniforms: Tensor) -> None:
        """Append action, reward and value of step ``t`` and the next observation; uniforms (transition_dim, rows)."""
        layout, settings = self.layout, self.settings
        kept = (settings.context - 1) * layout.transition_dim + layout.observation_dim
        self.decoder.prefill(self.window[:, -kept:])
        appended: list[Tensor] = []
        for column in (*range(layout.observation_dim, layout.transition_dim), *range(layout.observation_dim)):
            if appended:
                self.decoder.step(appended[-1].unsqueeze(1))
            if self.actions is not None and column in range(layout.transition_dim)[layout.action]:
                token = self.actions[t, column - layout.observation_dim].expand(len(self.window))
            elif column >= layout.observation_dim:
                token = draw(self._bins(settings.others), uniforms[column])
            else:
                bins = self._bins(settings.observations)
                self._count(t, column, bins)
                token = draw(bins, uniforms[column])
            appended.append(token)
        self.transitions.append(torch.stack(appended, dim=1))
        self.window = torch.cat([self.window[:, -kept:], self.transitions[-1]], dim=1)

    def _bins(self, choice: Choice) -> Tensor:
        """(rows, vocab_size) logits of the bins alone."""
        assert choice.cdf is None
        logits = self.decoder.logits[:, 0, :-1] / choice.temperature
        return logits if choice.k is None else filter_top_k(logits, choice.k)

    def _count(self, t: int, column: int, bins: Tensor) -> None:
        if len(self.probabilities) == 0:
            shape = (self.settings.horizon, self.layout.observation_dim, bins.shape[1])
            self.probabilities = torch.zeros(shape, dtype=torch.float64, device=bins.device)
        self.probabilities[t, column] = bins.softmax(dim=-1).sum(dim=0, dtype=torch.float64)
