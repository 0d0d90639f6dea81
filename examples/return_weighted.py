"""A training loss of your own: windows that begin with a higher return-to-go than others count more.

``PYTHONPATH=examples python train.py --config-dir examples/configs trainer=return_weighted``
"""

import torch
from torch.nn import functional as F

from trajectory_transformer.learners.training_loss import TrainingLoss


class ReturnWeighted(TrainingLoss):
    """Cross-entropy of the next token, weighted by exp(return-to-go / temperature) of the window's first transition.

    Returns-to-go are in standard deviations of the batch; weights are 1 in the mean. With an infinite temperature, all
    are 1.
    """

    logged = ("largest_weight",)

    def __init__(self, config, temperature: float = 1.0):
        super().__init__(config)
        self.temperature = temperature

    def forward(self, model, batch):
        logits = model(batch.trajectories, return_dict=True).logits
        nats = F.cross_entropy(logits.transpose(1, 2), batch.targets, reduction="none") * batch.mask
        value = self.layout.value
        returns = self.centers[value][batch.targets[:, value - 1]]
        standard = (returns - returns.mean()) / (returns.std(correction=0) + 1e-6)
        weights = torch.softmax(standard / self.temperature, dim=0) * len(returns)
        return (weights * nats.mean(dim=1)).mean(), logits, {"largest_weight": weights.max()}
