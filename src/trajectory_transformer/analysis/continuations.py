"""Sampled continuations of one start, by the transformer or by an ensemble (paper §4.1)."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..layout import TransitionLayout
from ..planning.decoder import BeamDecoder
from ..planning.sampling import Choice, draw, filter_top_k

_ROWS_AT_ONCE = 250  # with more, keys and values would exceed the processor's cache


@dataclass(frozen=True)
class FreeRunning:
    """Options of continuations: number, length, context and sampling."""

    samples: int
    horizon: int  # transitions per continuation
    context: int  # transitions from which an observation is predicted; the decoder's window must hold one more
    observations: Choice = Choice()  # noqa: RUF009 - frozen; sampling of observation tokens; cdf must be None in both
    others: Choice = Choice()  # noqa: RUF009 - frozen; sampling of action, reward and value tokens


class Continuations(NamedTuple):
    """Sampled tokens, int64 in [0, vocab_size), and the distributions from which they were drawn.

    The mean distribution is a less noisy estimate of the marginal than the tokens' frequencies (Rao and Blackwell).
    """

    actions: Tensor  # (samples, horizon, action_dim)
    observations: Tensor  # (samples, horizon, observation_dim); entry t is the observation after action t
    probabilities: Tensor  # (horizon, observation_dim, vocab_size) float64, of observations, averaged over the samples


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
    """Sample continuations of one start from the model.

    ::

        window    [ up to context - 1 whole transitions | observation t ]   encoded anew for each transition
        appended  action t (recorded or sampled), reward t, value t, then observation t + 1, token by token

    With ``context=1`` the model is Markovian. The stop token is never drawn, so that continuations have full length.

    Args:
        decoder: decoder of the model, with a window that does not slide.
        start: (time,) tokens: any number of whole transitions, then one observation; it is cropped to the context.
        actions: (horizon, action_dim) tokens used in all samples; None samples them from the model.
        generator: generator of all draws, on the CPU.
        on_transitions: called with the number of transitions sampled since the last call.
    """
    kept = (settings.context - 1) * layout.transition_dim + layout.observation_dim
    transitions, sums = [], []  # one entry per batch of samples
    for first in range(0, settings.samples, _ROWS_AT_ONCE):
        rows = min(_ROWS_AT_ONCE, settings.samples - first)
        window, steps = start.expand(rows, -1), []
        for t in range(settings.horizon):
            uniforms = torch.rand(layout.transition_dim, rows, generator=generator).to(start.device)
            taken = None if actions is None else actions[t]
            steps.append(_next_transition(decoder, layout, window[:, -kept:], taken, settings, uniforms))
            window = torch.cat([window[:, -kept:], steps[-1][0]], dim=1)
            on_transitions(rows)
        transitions.append(torch.stack([tokens for tokens, _ in steps], dim=1))
        sums.append(torch.stack([distributions for _, distributions in steps]))
    tokens, probabilities = torch.cat(transitions), torch.stack(sums).sum(dim=0) / settings.samples
    return Continuations(tokens[..., : layout.action_dim], tokens[..., layout.action_dim + 2 :], probabilities)


def _next_transition(
    decoder: BeamDecoder,
    layout: TransitionLayout,
    window: Tensor,
    action: Tensor | None,
    settings: FreeRunning,
    uniforms: Tensor,
) -> tuple[Tensor, Tensor]:
    """Sample the action, reward, value and next observation after (rows, time) tokens.

    Returns:
        (rows, transition_dim) tokens; (observation_dim, vocab_size) float64 distributions, summed over rows.
    """
    decoder.prefill(window)
    tokens, distributions = list[Tensor](), list[Tensor]()
    for column in (*range(layout.observation_dim, layout.transition_dim), *range(layout.observation_dim)):
        if tokens:
            decoder.step(tokens[-1].unsqueeze(1))
        if action is not None and layout.observation_dim <= column < layout.reward:
            tokens.append(action[column - layout.observation_dim].expand(len(window)))
            continue
        choice = settings.observations if column < layout.observation_dim else settings.others
        assert choice.cdf is None
        bins = decoder.logits[:, 0, :-1] / choice.temperature
        bins = bins if choice.k is None else filter_top_k(bins, choice.k)
        if column < layout.observation_dim:
            distributions.append(bins.softmax(dim=-1).sum(dim=0, dtype=torch.float64))
        tokens.append(draw(bins, uniforms[column]))
    return torch.stack(tokens, dim=1), torch.stack(distributions)


class ProbabilisticDynamics(Protocol):
    """An ensemble of models of the next observation, each a normal distribution with independent dimensions."""

    @property
    def num_members(self) -> int: ...

    def distribution(self, observations: Tensor, actions: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation (n, observation_dim), in the data's units, by (n,) int64 members."""
        ...


class GaussianContinuations(NamedTuple):
    """Samples (samples, horizon, observation_dim), in the data's units, and the distributions they were drawn from."""

    observations: Tensor
    means: Tensor
    deviations: Tensor


@torch.inference_mode()
def continue_with_members(
    dynamics: ProbabilisticDynamics,
    start: Tensor,
    actions: Tensor,
    samples: int,
    bounds: tuple[Tensor, Tensor],
    generator: torch.Generator,
    on_transitions: Callable[[int], None] = lambda _: None,
) -> GaussianContinuations:
    """Sample continuations of one start; sample i uses member ``i % num_members`` throughout (PETS's TS∞).

    Args:
        dynamics: ensemble on the CPU.
        start: (observation_dim,) observation.
        actions: (horizon, action_dim), used in all samples; entry t of the result is the observation after action t.
        bounds: (observation_dim,) lowest and highest values of the data; samples are clamped to three times that range.
    """
    # Differs from the paper, which does not state the propagation: one member per rollout is PETS's better variant.
    members = torch.arange(samples) % dynamics.num_members
    reach = bounds[1] - bounds[0]
    low, high = bounds[0] - reach, bounds[1] + reach
    current, steps = start.expand(samples, -1), []
    for action in actions:
        mean, deviation = dynamics.distribution(current, action.expand(samples, -1), members)
        mean = mean.nan_to_num().clamp(low, high)
        current = (mean + deviation * torch.randn(mean.shape, generator=generator)).clamp(low, high)
        steps.append((current, mean, deviation))
        on_transitions(samples)
    return GaussianContinuations(*(torch.stack(parts, dim=1) for parts in zip(*steps, strict=True)))
