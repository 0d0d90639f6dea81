"""Training with weights, gradients and optimiser state divided among processes (``trainer.strategy=fsdp``)."""

import os
from collections.abc import Mapping
from typing import Any

from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.optim import Optimizer
from typing_extensions import override

from ..checkpoint_file import read_checkpoint

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)  # whole tensors, on the first process


class ShardedStrategy(ModelParallelStrategy):
    """Lightning's strategy for torch's ``fully_shard`` over all processes, with our own checkpoints.

    Checkpoints are the same as those of one process, so a run may be resumed with another number of processes or
    strategy.
    """

    def __init__(self, processes: int) -> None:
        super().__init__(data_parallel_size=processes, tensor_parallel_size=1, save_distributed_checkpoint=False)

    def shard(self, model: nn.Module) -> None:
        """Shard a model's parameters, once: first layer by layer those in lists of layers, then all others."""
        if isinstance(model, FSDPModule):
            return
        mesh = self.device_mesh["data_parallel"]
        for layers in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
            for layer in layers:
                fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)

    @override
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        assert self.model is not None
        optimizer = _bare(optimizer)
        found: Any = get_optimizer_state_dict(self.model, optimizer, options=_WHOLE)
        if not found:
            return {}
        numbers = {name: number for number, name in enumerate(self._names(optimizer))}
        groups = [group | {"params": [numbers[name] for name in group["params"]]} for group in found["param_groups"]]
        return {"state": {numbers[name]: state for name, state in found["state"].items()}, "param_groups": groups}

    @override
    def load_checkpoint(
        self, checkpoint_path: str | os.PathLike[str], weights_only: bool | None = None
    ) -> dict[str, Any]:
        assert self.model is not None
        checkpoint = read_checkpoint(checkpoint_path)
        set_model_state_dict(self.model, checkpoint["state_dict"], options=_WHOLE)
        for optimizer, stored in zip(map(_bare, self.optimizers), checkpoint["optimizer_states"], strict=True):
            set_optimizer_state_dict(self.model, optimizer, self._named(optimizer, stored), options=_WHOLE)
        return checkpoint

    def _named(self, optimizer: Optimizer, stored: Mapping[str, Any]) -> dict[str, Any]:
        """An optimiser's state, keyed by the parameters' names instead of their indices."""
        names = self._names(optimizer)
        groups = [group | {"params": [names[number] for number in group["params"]]} for group in stored["param_groups"]]
        return {"state": {names[number]: state for number, state in stored["state"].items()}, "param_groups": groups}

    def _names(self, optimizer: Optimizer) -> list[str]:
        """Names of an optimiser's parameters, in the order of their indices."""
        assert self.model is not None
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        return [names[parameter] for group in optimizer.param_groups for parameter in group["params"]]


def _bare(optimizer: Optimizer) -> Optimizer:
    return optimizer._optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
