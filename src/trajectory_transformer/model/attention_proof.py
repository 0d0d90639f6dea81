"""Comparison of attention and blocks in C with the model's own PyTorch code, before training uses them.

See :mod:`.attention` and :mod:`.block`.
"""

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from ..c_library import UnavailableError
from . import block
from .attention import load_library
from .memory import CausalMemory

log = logging.getLogger(__name__)
_LONGEST = 128  # tokens compared at most
_TOLERANCE = 1e-3  # relative to the norm of the logits or gradients; rounding errors are about 1e-6


def may_attend_in_c(model: nn.Module) -> bool:
    """True if attention in C gives this model's logits and gradients, and drops weights with the right frequency.

    If not, one warning gives the reason. The model is a :class:`~.gpt.TrajectoryTransformer`; it, its gradients and the
    global random state do not change.
    """
    reason = None
    try:
        load_library()
    except UnavailableError as error:
        reason = str(error)
    if reason is None:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(0)
            try:
                difference = _largest_difference(copy.deepcopy(model).eval(), "attends_in_c")
            except ValueError as error:  # a mask of another form
                difference, reason = 0.0, str(error)
            if not difference < _TOLERANCE:
                reason = f"its logits or gradients differ from the model's (relative difference {difference:.2g})"
            elif reason is None and not _drops_alike(model.get_buffer("mask")):
                reason = "it drops attention weights with another distribution than model/memory.py"
    if reason is not None:
        log.warning(
            "training with PyTorch's attention, which is slower: attention in C cannot be used, because %s", reason
        )
    return reason is None


def may_compute_blocks_in_c(model: nn.Module) -> bool:
    """True if blocks in C give this model's logits and gradients in training; its attention is known to run in C.

    With dropout they must drop the same activations, because they draw the same random numbers. If they differ, one
    warning gives the reason. The model, its gradients and the global random state do not change.
    """
    try:
        block.load_library()
    except UnavailableError as error:
        reason = str(error)
    else:
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            copied: Any = copy.deepcopy(model).train()
            copied.attends_in_c = True
            difference = _largest_difference(copied, "blocks_in_c")
        if difference < _TOLERANCE:
            return True
        reason = f"its logits or gradients differ from the model's (relative difference {difference:.2g})"
    log.warning("training with PyTorch's blocks, which is slower: blocks in C cannot be used, because %s", reason)
    return False


def _largest_difference(copied: Any, option: str) -> float:
    """Larger of the relative differences (Euclidean norms) of logits and of gradients without and with an option.

    NaN if any is not finite. The copy of the model is changed.
    """
    config, generator = copied.config, torch.Generator().manual_seed(0)
    time = min(config.block_size, _LONGEST)
    tokens = torch.randint(0, config.vocab_size, (2, time), generator=generator)
    found: list[tuple[Tensor, Tensor]] = []
    for value in (False, True):
        setattr(copied, option, value)
        copied.zero_grad()
        torch.manual_seed(0)
        logits = copied(tokens, use_cache=False, return_dict=True).logits
        logits.square().mean().backward()
        gradients = [p.grad.flatten() for p in copied.parameters() if p.grad is not None]
        found.append((logits.detach().flatten(), torch.cat(gradients)))
    return max(float((ours - own).norm() / own.norm()) for own, ours in zip(*found, strict=True))


def _drops_alike(mask: Tensor) -> bool:
    """True if the sums of kept attention weights have the same mean and deviation (64 heads, dropout 0.5)."""
    mask = mask[:_LONGEST, :_LONGEST]
    nothing, ones = torch.zeros(16, 4, len(mask), 8), torch.ones(16, 4, len(mask), 8)
    moments = []
    for in_c in (False, True):
        sums = CausalMemory(mask, None, False, False, in_c).attend(0, nothing, nothing, ones, 0.5)[..., 0]
        sums = (sums - 1) * mask.sum(dim=1).sqrt()  # of mean 0 and deviation 1
        moments.append(torch.stack([sums.mean(), sums.std()]))
    return bool((moments[0] - moments[1]).abs().max() < 0.15)
