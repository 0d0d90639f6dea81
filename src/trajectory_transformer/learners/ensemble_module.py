"""Lightning module of an ensemble of dynamics models."""

from dataclasses import asdict
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..data.transition_set import TransitionBatch
from .ensemble_network import DynamicsEnsemble
from .transition_module import TransitionModule


class EnsembleModule(TransitionModule):
    """Trains a :class:`DynamicsEnsemble` on bootstrapped transitions, (members, batch, …).

    Args:
        network: to be trained, its normalisation set.
        optimizer: AdamW and its schedule.
        plan: length of the run, seed, logging.
        record: what the network is trained on, for checkpoints.
    """

    logged = ("loss", "worst_member_loss")
    network: DynamicsEnsemble

    @override
    def model_options(self) -> dict[str, Any]:
        return asdict(self.network.config)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        weights = [p for name, p in self.network.named_parameters() if name.endswith(".weight")]
        others = [p for name, p in self.network.named_parameters() if not name.endswith(".weight")]
        # Differs from the original: AdamW's decay, one value, in place of an L2 term with a factor for each layer.
        decay = self.optimizer_config.weight_decay
        return [{"params": weights, "weight_decay": decay}, {"params": others, "weight_decay": 0.0}]

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nats = self.network.nats(batch)
        return self.network.loss(nats), {"loss": nats.mean(), "worst_member_loss": nats.max()}
