"""A metric of your own: top-k accuracy of tokens.

``PYTHONPATH=examples python train.py --config-dir examples/configs trainer=top_accuracy``
"""

import torch
import torchmetrics


class TopAccuracy(torchmetrics.Metric):
    """Share of the tokens that are among the ``k`` most likely ones."""

    def __init__(self, k: int = 5):
        super().__init__()
        self.k = k
        self.add_state("found", torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits, targets, mask):
        likeliest = logits.topk(self.k, dim=-1).indices
        self.found += ((likeliest == targets.unsqueeze(-1)).any(dim=-1) * mask).sum()
        self.count += mask.sum()

    def compute(self):
        return self.found / self.count
