"""Beam search for the most likely continuation (paper §3.2; the original's ``beam_search``), token by token.

Sequences are ranked by their log-likelihood alone, and each is continued by every token of the vocabulary. The agent
then imitates its data, or, with a goal, the ways to that goal in its data; with a horizon of one transition this is
autoregressive behaviour cloning.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from ..configuration import PlannerConfig
from ..layout import TransitionLayout
from .beam_search import SearchResult
from .deadline import Deadline
from .decoder import BeamDecoder, gather_rows


def likelihood_search(
    decoder: BeamDecoder,
    prefix: Tensor,
    layout: TransitionLayout,
    settings: PlannerConfig,
    deadline: Deadline | None = None,
    log_widths: Tensor | None = None,
) -> SearchResult:
    """Find the most likely ``settings.horizon`` transitions after a prefix, without the last one's reward and value.

    The search is deterministic. A candidate whose likelihood is not finite is worse than any other.

    Args:
        decoder: decodes the model.
        prefix: (environment, time) tokens: whole past transitions, then the current observation.
        layout: positions within a transition.
        settings: horizon and beam width.
        deadline: shortens and narrows the search; already started.
        log_widths: (transition_dim, vocabulary) log widths of the tokens' bins, to rank by density; None: rank by
            probability.

    Returns:
        Scores are log-likelihoods in nats, -inf where no prediction is finite; reward and value tokens of the last
        transition are stop tokens; estimated rewards and values are NaN.
    """
    environments, width = len(prefix), settings.beam_width
    decoder.prefill(prefix)
    tokens = prefix[:, None, -layout.observation_dim :]
    scores = torch.zeros(environments, 1, device=prefix.device)
    lengths = [layout.action_dim, *[layout.transition_dim] * (settings.horizon - 1)]
    planned = 0
    for t, length in enumerate(lengths):
        if deadline is not None:
            affordable = deadline.width(t, environments, width)
            if affordable == 0:
                break
            width = affordable
        for _ in range(length):
            widths = None if log_widths is None else log_widths[tokens.shape[2] % layout.transition_dim]
            scores, rows, chosen = most_likely(scores, decoder.logits, width, widths)
            decoder.keep(rows)
            decoder.step(chosen)
            tokens = torch.cat([gather_rows(tokens, rows), chosen.unsqueeze(2)], dim=2)
        planned = t + 1
        if deadline is not None:
            scores.cpu()  # waits for the GPU's queued work
            deadline.planned(t, environments, width)
    stop_token = decoder.logits.shape[-1] - 1
    best = F.pad(tokens[:, 0], (0, 2), value=stop_token).view(environments, planned, layout.transition_dim)
    unknown = scores.new_full((environments, planned), torch.nan)
    late = deadline is not None and deadline.late
    return SearchResult(best, unknown, unknown[:, 0], scores[:, 0], [], width, late)


def most_likely(
    scores: Tensor, logits: Tensor, width: int, log_widths: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Select the best continuations by one token, at most ``width``.

    Args:
        scores: (environment, rows) log-likelihoods so far.
        logits: (environment, rows, vocabulary) of the next token.
        width: number of continuations to keep.
        log_widths: (vocabulary,) subtracted from the new token's log-likelihoods.

    Returns:
        log-likelihoods, best first, the rows continued, and the tokens appended; each (environment, kept).
    """
    added = logits.log_softmax(dim=-1)
    candidates = scores.unsqueeze(2) + (added if log_widths is None else added - log_widths)
    candidates = candidates.masked_fill(~candidates.isfinite(), -torch.inf).flatten(1)
    best, index = candidates.topk(min(width, candidates.shape[1]), dim=1)
    vocabulary = logits.shape[2]
    return best, index // vocabulary, index % vocabulary
