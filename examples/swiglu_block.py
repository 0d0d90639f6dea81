"""A trunk block of your own: SwiGLU in place of the MLP.

``PYTHONPATH=examples python train.py --config-dir examples/configs model=swiglu``
"""

from torch import nn
from torch.nn import functional as F

from trajectory_transformer.model.gpt import SelfAttention


class SwiGluBlock(nn.Module):
    """A SwiGLU block: x + attention(norm(x)), then x + down(silu(gate(norm(x))) * up(norm(x))) (Shazeer 2020)."""

    def __init__(self, config, expansion: float = 2.0):
        super().__init__()
        width = int(expansion * config.n_embd)
        self.norm1, self.norm2 = nn.LayerNorm(config.n_embd), nn.LayerNorm(config.n_embd)
        self.attention = SelfAttention(config)
        self.gate, self.up = nn.Linear(config.n_embd, width), nn.Linear(config.n_embd, width)
        self.down = nn.Linear(width, config.n_embd)

    def forward(self, x, layer, memory):
        x = x + self.attention(self.norm1(x), layer, memory)
        normed = self.norm2(x)
        return x + self.down(F.silu(self.gate(normed)) * self.up(normed))
