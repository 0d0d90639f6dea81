"""Hardware, models and rates that the benchmarks share."""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from ..configuration import ModelConfig
from ..layout import TransitionLayout
from ..model.config import TransformerConfig
from ..model.gpt import TrajectoryTransformer

SEQUENCE_LENGTH, NUM_BINS = 10, 100
HOPPER, HALFCHEETAH = TransitionLayout(11, 3), TransitionLayout(17, 6)
TINY = ModelConfig(n_layer=2, n_head=2, n_embd=64, embd_pdrop=0, resid_pdrop=0, attn_pdrop=0)
BASE = ModelConfig()


@dataclass(frozen=True)
class Hardware:
    """Device ("cpu" or "cuda") and precision of a measurement; ``compiled`` is about training alone."""

    device: str
    threads: int
    bf16: bool = False  # decoding throughout, training in mixed precision
    compiled: bool = False

    @property
    def product_size(self) -> int:
        """Rows and columns of the matrices whose products say what the hardware can do."""
        return 2048 if self.device == "cpu" else 8192

    def matmul_rate(self, rounds: int = 9) -> float:
        """Multiply-adds, counted as two operations, per second of large square products in the chosen precision."""
        size, dtype = self.product_size, torch.bfloat16 if self.bf16 else torch.float32
        a, b = torch.randn(2, size, size, dtype=dtype, device=self.device)
        return 2 * size**3 / self.median_seconds(lambda: a @ b, rounds)

    def median_seconds(self, run: Callable[[], object], rounds: int) -> float:
        """Median wall time of ``run`` over some rounds, after one that does not count."""
        run()
        return statistics.median(self.seconds(run) for _ in range(rounds))

    def seconds(self, run: Callable[[], object]) -> float:
        """Wall time of ``run``; on a GPU, of all that it queues and of nothing before."""
        wait = torch.cuda.synchronize if self.device != "cpu" else lambda: None
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start


def forward_operations(config: TransformerConfig, keys: float) -> float:
    """Operations of one token's forward pass that attends to ``keys`` keys, with its head."""
    width = config.n_embd
    return config.n_layer * (24 * width**2 + 4 * keys * width) + 2 * width * (config.vocab_size + 1)


def make_model(layout: TransitionLayout, options: ModelConfig) -> TrajectoryTransformer:
    """A model with random weights for windows of :data:`SEQUENCE_LENGTH` transitions."""
    torch.manual_seed(0)
    return TrajectoryTransformer(TransformerConfig.for_data(options, layout, NUM_BINS, SEQUENCE_LENGTH))


def peak_memory(device: str = "cpu") -> int:
    """The most memory that this process has held, in MiB; on a GPU, of the GPU's."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved() // 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes // 1024
