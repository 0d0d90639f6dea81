"""An update on a GPU as two CUDA graphs, so that its hundreds of small kernels do not wait for the CPU."""

import logging
import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from ..cuda_graph import Capture, CaptureError
from .optimization import AdamW

log = logging.getLogger(__name__)

Losses = Callable[..., Sequence[Tensor]]
"""Tensors of a batch -> the loss to differentiate, then any other results."""

TOLERANCE = 1e-2  # relative difference between a replayed loss and a computed one; a changed model differs by more


class FirstFailure:
    """The first update whose gradient is not finite, noted on the device, so that the CPU need not wait for it.

    AdamW makes neither that update nor a later one.

    Args:
        device: of the weights.
        updates: number of updates made so far.
    """

    def __init__(self, device: torch.device, updates: int) -> None:
        self.found = torch.zeros((), device=device)  # 1 from the first failure on
        self._update = torch.full((), updates, device=device)
        self._loss = torch.zeros((), device=device)

    def note(self, gradient_norm: Tensor, loss: Tensor) -> None:
        """Judge the next update by the norm of its gradient."""
        before = self.found > 0
        self._update.add_(~before)
        self._loss.copy_(torch.where(before, self._loss, loss))
        self.found.copy_(torch.maximum(self.found, (~torch.isfinite(gradient_norm)).float()))

    def read(self) -> tuple[int, float] | None:
        """The number of the update and its loss, or None without a failure; waits for the device."""
        return (int(self._update), float(self._loss)) if float(self.found) > 0 else None


class CapturedUpdate:
    """Forward and backward pass, and then the optimiser's step, each captured once and replayed.

    Between the two, gradients are where every callback expects them. All batches must have the shapes of the first.

    A replay repeats kernels, not Python code. Therefore the loss of the first replay, and of the first after each
    :meth:`expire`, is compared with one that is computed anew with the same random numbers. If they differ, as they do
    if the model's Python code changes what it computes, one warning is logged and updates are no longer captured; nor
    are they if the CPU waits for the GPU in an update.

    Args:
        module: whose parameters are trained.
        losses: computes the losses; always the same function.
        optimizer: its ``replay`` is set.
        step: makes the update from the gradients of the given loss, unless ``failure`` has been found.
        failure: as noted by ``step``.
        capture: :func:`~..cuda_graph.cuda_graph`, or a stand-in for tests.
    """

    def __init__(
        self,
        module: nn.Module,
        losses: Losses,
        optimizer: AdamW,
        step: Callable[[Tensor], None],
        failure: FirstFailure,
        capture: Capture[Sequence[Tensor] | None],
    ) -> None:
        self._module, self._losses, self._optimizer, self._step = module, losses, optimizer, step
        self._failure, self._capture = failure, capture
        self._inputs: tuple[Tensor, ...] = ()
        self._outputs: Sequence[Tensor] = ()
        self._replay: Callable[[], None] | None = None
        self._usable, self._proven = True, False

    def expire(self) -> None:
        """Compare the next replay with a computed loss."""
        self._proven = False

    def differentiate(self, *inputs: Tensor) -> Sequence[Tensor] | None:
        """Losses of a batch, after their backward pass; None if the update is not captured.

        The next call overwrites the returned tensors.
        """
        if self._usable and self._replay is None:
            self._make_graphs(inputs)
        if self._replay is None:
            return None
        for place, values in zip(self._inputs, inputs, strict=True):
            place.copy_(values)
        if not self._proven and not self._prove(self._replay):
            return None
        self._replay()
        return self._outputs

    def _differentiated(self) -> Sequence[Tensor]:
        self._module.zero_grad(set_to_none=True)
        outputs = self._computed()
        with torch.autocast(self._device.type, enabled=False):
            outputs[0].backward()
        return [output.detach() for output in outputs]

    def _computed(self) -> Sequence[Tensor]:
        kind = self._device.type
        dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
        # Without autocast's cache of converted weights, which a graph would keep for ever.
        with torch.autocast(kind, dtype, enabled, cache_enabled=False):
            return self._losses(*self._inputs)

    def _make_graphs(self, inputs: Sequence[Tensor]) -> None:
        self._device, self._inputs = inputs[0].device, tuple(values.clone() for values in inputs)
        buffers = [(buffer, buffer.clone()) for buffer in self._module.buffers()]
        groups = [group for group in self._optimizer.param_groups if not group.get("constant_rate", False)]
        rates = [(group, group["lr"]) for group in groups]
        self._optimizer.rate = torch.tensor(float(rates[0][1]), device=self._device)
        self._failure.found.fill_(1.0)  # so that the optimiser makes its state, but no update
        try:
            with torch.random.fork_rng([self._device] if self._device.type == "cuda" else []):
                replay, outputs = self._capture(self._differentiated, self._device)
                assert outputs is not None
                for group in groups:
                    group["lr"] = self._optimizer.rate
                self._optimizer.replay, _ = self._capture(partial(self._step, outputs[0]), self._device)
        except CaptureError as error:
            self._give_up(f"which is several times slower: {error}")
        else:
            self._replay, self._outputs = replay, outputs
        finally:
            self._failure.found.zero_()
            for group, rate in rates:
                group["lr"] = rate
            with torch.no_grad():
                for buffer, value in buffers:
                    buffer.copy_(value)

    def _prove(self, replay: Callable[[], None]) -> bool:
        on_device = [self._device] if self._device.type == "cuda" else []
        with torch.random.fork_rng(on_device):
            wanted = float(self._computed()[0].detach())
        with torch.random.fork_rng(on_device):
            replay()
            found = float(self._outputs[0])
        self._proven = abs(found - wanted) <= TOLERANCE * abs(wanted) or math.isnan(wanted)
        if not self._proven:
            self._give_up(
                f"because the replayed loss is {found:.4g} where {wanted:.4g} is computed, as it is if Python code "
                "changes what the model computes while it is trained"
            )
        return self._proven

    def _give_up(self, reason: str) -> None:
        self._usable, self._replay, self._optimizer.replay = False, None, None
        self._module.zero_grad(set_to_none=True)  # gradients in the graph's memory
        log.warning("training without a CUDA graph, %s", reason)
