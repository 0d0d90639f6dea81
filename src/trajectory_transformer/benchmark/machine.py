"""Hardware, models and rates shared by the benchmarks."""

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
    """Device ("cpu" or "cuda") and precision of a measurement; ``compiled`` applies to training only."""

    device: str
    threads: int
    bf16: bool = False  # decoding entirely in bfloat16, training in mixed precision
    compiled: bool = False

    @property
    def product_size(self) -> int:
        """Rows and columns of the matrices in :meth:`matmul_rate`."""
        return 2048 if self.device == "cpu" else 8192

    def matmul_rate(self, rounds: int = 9) -> float:
        """Return operations per second of large square matrix products; a multiply-add counts as two operations."""
        size, dtype = self.product_size, torch.bfloat16 if self.bf16 else torch.float32
        a, b = torch.randn(2, size, size, dtype=dtype, device=self.device)
        return 2 * size**3 / self.median_seconds(lambda: a @ b, rounds)

    def median_seconds(self, run: Callable[[], object], rounds: int) -> float:
        """Return the median wall time of ``run`` in seconds over some rounds, after a warm-up."""
        run()
        return statistics.median(self.seconds(run) for _ in range(rounds))

    def seconds(self, run: Callable[[], object]) -> float:
        """Return the wall time of ``run`` in seconds; on a GPU it is synchronised before and after."""
        wait = torch.cuda.synchronize if self.device != "cpu" else lambda: None
        wait()
        start = time.perf_counter()
        run()
        wait()
        return time.perf_counter() - start


def forward_operations(config: TransformerConfig, keys: float) -> float:
    """Return the operations of one token's forward pass, including its output head, with ``keys`` attended keys."""
    width = config.n_embd
    return config.n_layer * (24 * width**2 + 4 * keys * width) + 2 * width * (config.vocab_size + 1)


def make_model(layout: TransitionLayout, options: ModelConfig) -> TrajectoryTransformer:
    """Make a model with random weights for windows of :data:`SEQUENCE_LENGTH` transitions."""
    torch.manual_seed(0)
    return TrajectoryTransformer(TransformerConfig.for_data(options, layout, NUM_BINS, SEQUENCE_LENGTH))


def peak_memory(device: str = "cpu") -> int:
    """Return the peak memory of this process in MiB; on a GPU, its peak GPU memory."""
    if device != "cpu":
        return torch.cuda.max_memory_reserved() // 2**20
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        kibibytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return kibibytes // 1024
