"""Lightning module of an ensemble of dynamics models."""

from dataclasses import asdict
from typing import Any

from torch import Tensor
from typing_extensions import override

from ..data.transition_set import TransitionBatch
from .ensemble_network import DynamicsEnsemble
from .transition_module import TransitionModule


class EnsembleModule(TransitionModule):
    """Trains a normalised :class:`DynamicsEnsemble` on bootstrapped transitions (members, batch, …)."""

    logged = ("loss", "worst_member_loss")
    network: DynamicsEnsemble

    @override
    def model_options(self) -> dict[str, Any]:
        return asdict(self.network.options)

    @override
    def parameter_groups(self) -> list[dict[str, Any]]:
        named, decay = list(self.network.named_parameters()), self.optimizer_config.weight_decay
        # Differs from the original: one weight decay of AdamW instead of an L2 penalty with a factor for each layer.
        return [
            {"params": [p for name, p in named if name.endswith(".weight") == decays], "weight_decay": decay * decays}
            for decays in (True, False)
        ]

    @override
    def losses(self, batch: TransitionBatch) -> tuple[Tensor, dict[str, Tensor]]:
        nats = self.network.nats(batch)
        return self.network.loss(nats), {"loss": nats.mean(), "worst_member_loss": nats.max()}
