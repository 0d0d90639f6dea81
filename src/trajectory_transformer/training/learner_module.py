"""Base Lightning module of all learners: seeds, learning rates, checks for finite values, the record of a run."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, cast

import lightning as L
import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from typing_extensions import override

from ..checkpoint import TrainingRecord
from ..checkpoint_file import SECTION, not_finite
from ..configuration import OptimizerConfig
from ..cuda_graph import Capture, cuda_graph
from ..errors import UserError
from ..progress import WorkProgress
from .batches import derived_seed
from .captured_update import CapturedUpdate, FirstFailure, Losses
from .optimization import AdamW, TrainingPlan, make_optimizer, make_schedule, set_learning_rate


class NonFiniteError(UserError):
    """Error: the loss, its gradient or the weights became NaN or infinite; such weights are not saved."""


def ends_update(trainer: L.Trainer) -> bool:
    """True if the present part of a batch is its last one, after which the update is made."""
    return (trainer.fit_loop.batch_idx + 1) % trainer.accumulate_grad_batches == 0


class LearnerModule(L.LightningModule):
    """Base of all learners' modules. (seed, step, rank) determine an update's randomness, so a resume is exact."""

    unit: ClassVar[str] = "transitions"  # unit of ``plan.tokens_per_step`` and of the learning rate's schedule
    only_training: ClassVar[tuple[str, ...]] = ()  # parts, each with a dot, whose parameters ``init_from`` may lack
    only_own_data: ClassVar[tuple[str, ...]] = ()  # and those that it never gives: ``fit_to_data`` fits them anew
    best_is_latest: ClassVar[bool] = False  # losses do not rank weights, so ``best.ckpt`` is the latest
    captures: ClassVar[dict[str, Capture[Any]]] = {"cuda": cuda_graph}  # by type of device

    def __init__(self, optimizer: OptimizerConfig, plan: TrainingPlan, record: TrainingRecord) -> None:
        super().__init__()
        self.optimizer_config, self.plan, self.record = optimizer, plan, record
        self.schedule = make_schedule(optimizer, plan)
        self._groups: list[dict[str, Any]] = []  # this run's optimiser options, of each parameter group
        self.gradient_norm = self.last_loss = torch.zeros(())
        self._captured: CapturedUpdate | None = None
        self._is_differentiated = False  # the present batch, by ``_captured``
        self._failure: FirstFailure | None = None  # where failures are noted on the device

    def model_options(self) -> dict[str, Any]:
        """Plain values that rebuild the network, in addition to the learner's options and the data's spaces."""
        return {}

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Parameter groups for AdamW: weight decay for matrices, none for vectors (biases, norms)."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            {"params": [p for p in parameters if p.ndim > 1], "weight_decay": self.optimizer_config.weight_decay},
            {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
        ]

    def clipped_together(self) -> Sequence[Iterable[torch.nn.Parameter]]:
        """Sets of parameters; the gradient of each is clipped to ``optimizer.gradient_clip_norm``. One by default."""
        return [self.parameters()]

    def compile_network(self) -> None:
        """Compile the network's forward pass; for learners whose ``check`` allows ``trainer.compile``."""
        raise NotImplementedError

    def pretrain(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        """Train parts of the network before the first update, if it starts from random weights; by default, none.

        It must leave the weights as they were once ``stopped`` returns True, and do nothing if called again after it
        was completed, in this process or before a resume.
        """

    def fit_to_data(self, stopped: Callable[[], bool], progress: WorkProgress) -> None:
        """Fit what belongs to the data, not the weights, before the first update; as :meth:`pretrain`, which precedes.

        It is also called if the weights are those of ``init_from``.
        """

    @override
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        step, part = self.global_step, batch_idx % self.trainer.accumulate_grad_batches
        seed = derived_seed(self.plan.seed, step, self.global_rank, *((part,) if part else ()))
        # torch.manual_seed would spend half a millisecond on stack traces for the devices that are not there.
        torch.default_generator.manual_seed(seed)
        if self.device.type != "cpu":
            getattr(torch, self.device.type).manual_seed(seed)
        set_learning_rate(self.trainer.optimizers, self.schedule.at((step + 1) * self.plan.tokens_per_step))

    def differentiable_losses(self, losses: Losses, *inputs: Tensor) -> Sequence[Tensor]:
        """The results of ``losses`` for a batch, of which ``training_step`` returns the first.

        ``losses`` must be the same function at every call. On one GPU, :class:`.CapturedUpdate` makes the backward pass
        at once, and the results are valid until the next batch.
        """
        if self._captured is None and (capture := self._capture()) is not None:
            optimizer, failure = self.trainer.optimizers[0], self._failure
            assert isinstance(optimizer, AdamW)
            assert failure is not None
            self._captured = CapturedUpdate(self, losses, optimizer, self._make_update, failure, capture)
        found = None if self._captured is None else self._captured.differentiate(*inputs)
        self._is_differentiated = found is not None
        return losses(*inputs) if found is None else found

    def _capture(self) -> Capture[Any] | None:
        """What captures updates; None if they differ from :meth:`_make_update`, or are those of several devices."""
        own = "backward", "optimizer_step", "optimizer_zero_grad", "configure_gradient_clipping"
        edited = any(getattr(type(self), name) is not getattr(LearnerModule, name) for name in own)
        alone = self.trainer.world_size == self.trainer.accumulate_grad_batches == 1
        if edited or not alone or self._failure is None or torch.is_anomaly_enabled():
            return None
        return self.captures.get(self.device.type)

    def _make_update(self, loss: Tensor) -> None:
        """Clip the gradients of a loss, and update the weights unless a gradient is or was not finite."""
        optimizer = self.trainer.optimizers[0]
        assert isinstance(optimizer, AdamW)
        self._clip_gradients(loss)
        optimizer.update()

    @override
    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: torch.optim.Optimizer) -> None:
        if not self._is_differentiated:
            super().optimizer_zero_grad(epoch, batch_idx, optimizer)

    @override
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        if not self._is_differentiated:
            super().backward(loss, *args, **kwargs)

    @override
    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        if not self._is_differentiated:
            self._clip_gradients(self.last_loss)

    def _clip_gradients(self, loss: Tensor) -> None:
        largest = self.optimizer_config.gradient_clip_norm
        largest = math.inf if largest is None else largest
        norms = [torch.nn.utils.clip_grad_norm_(parameters, largest) for parameters in self.clipped_together()]
        whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
        self.gradient_norm = torch.stack(whole).amax() if len(whole) > 1 else whole[0]
        if self._failure is not None:
            return self._failure.note(self.gradient_norm, loss)
        # A NaN loss makes every gradient NaN, and DDP averages gradients, so the norm is the same on all processes, at
        # the cost of one synchronisation. In 16-mixed infinite gradients are normal: the scaler skips those updates.
        scaled = self.trainer.precision == "16-mixed"
        judged = self.trainer.strategy.reduce(self.last_loss, reduce_op="mean") if scaled else self.gradient_norm
        if not bool(torch.isfinite(torch.as_tensor(judged))):
            self._require_finite(self.state_dict())
            self._fail(self.global_step + 1, self.last_loss.item())
        return None

    def _fail(self, update: int, loss: float) -> None:
        raise NonFiniteError(
            f"the loss or its gradient became NaN or infinite in update {update} (loss {loss:.4g}), which was not made"
        )

    def require_finite_updates(self) -> None:
        """Raise NonFiniteError if an update since the last call was not made. On a GPU, the CPU waits for it here."""
        if self._failure is not None and (found := self._failure.read()) is not None:
            self._require_finite(self.state_dict())
            self._fail(*found)

    def _require_finite(self, weights: Mapping[str, Any]) -> None:
        """Raise NonFiniteError, which names the update, if ``weights`` contain NaN or infinity."""
        divided = {
            name: torch.isfinite(weight).all() for name, weight in weights.items() if isinstance(weight, DTensor)
        }
        # Reduced over all processes, so that all raise the error.
        bad = [name for name, finite in divided.items() if not cast(DTensor, finite).full_tensor()]
        name = bad[0] if bad else not_finite({name: w for name, w in weights.items() if name not in divided})
        if name is not None:
            raise NonFiniteError(f"update {self.global_step} made weights ('{name}') that are NaN or infinite")

    def mean_of_parts(self, so_far: Tensor | None, value: Tensor, batch_idx: int) -> Tensor:
        """Mean of a value over the parts of an update's batch (``trainer.accumulate``) so far, detached."""
        part = batch_idx % self.trainer.accumulate_grad_batches
        return value.detach() if so_far is None or part == 0 else so_far + (value.detach() - so_far) / (part + 1)

    def labelled(self, values: Mapping[str, Tensor], prefix: str) -> dict[str, Any]:
        """Values under their logged names, with "step" (updates made), at which Lightning logs them, and "epoch"."""
        named = {f"{prefix}/{name}": value for name, value in values.items()}
        return named | {"step": float(self.global_step), "epoch": self.global_step / self.plan.steps_per_epoch}

    @property
    def optimizer_state(self) -> dict[str, Any]:
        """Scheduled learning rate and gradient norm, logged with every row of training metrics."""
        rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        return {"train/learning_rate": rate, "train/gradient_norm": self.gradient_norm}

    @override
    def configure_optimizers(self) -> torch.optim.Optimizer:
        fused = self.device.type in ("cpu", "cuda") and self.trainer.precision != "16-mixed"
        optimizer = make_optimizer(self.parameter_groups(), self.optimizer_config, fused)
        self._groups = []
        for group in optimizer.param_groups:  # a scheduled rate stays the last update's until the next one sets it
            kept = ("params",) if group.get("constant_rate", False) else ("params", "lr")
            self._groups.append({name: value for name, value in group.items() if name not in kept})
        return optimizer

    @override
    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.global_step % self.plan.log_every == 0:
            self.require_finite_updates()

    @override
    def on_validation_start(self) -> None:
        self.require_finite_updates()
        if self._captured is not None:
            self._captured.expire()

    @override
    def on_train_start(self) -> None:
        optimizer = self.trainer.optimizers[0]
        sharded = any(isinstance(parameter, DTensor) for parameter in self.parameters())
        if self.device.type in self.captures and not sharded and optimizer.defaults.get("fused"):
            self._failure = FirstFailure(self.device, self.global_step)
            vars(optimizer)["found_inf"] = self._failure.found  # AdamW makes no update if it is 1
        # A checkpoint's optimiser state includes its options, such as weight decay; these are reset to this run's.
        for optimizer in self.trainer.optimizers:
            for group, own in zip(optimizer.param_groups, self._groups, strict=False):
                group.update(own)

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._require_finite(self.state_dict())  # here, because all processes call this hook at every save
        self.require_finite_updates()
        checkpoint[SECTION] = self.record.to_dict() | {"model": self.model_options()}
