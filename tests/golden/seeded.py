"""Weights and tokens that are the same on every machine, from NumPy's ``RandomState``, which never changes."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor


@dataclass(frozen=True)
class Case:
    """Sizes of a model under test; its input has ``length`` tokens, which may end with a partial transition."""

    name: str
    observation_dim: int
    action_dim: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int
    length: int
    stop: bool  # whether stop tokens are among the input and targets

    @property
    def transition_dim(self) -> int:
        return self.observation_dim + self.action_dim + 2

    @property
    def block_size(self) -> int:
        return 10 * self.transition_dim - 1

    @property
    def weighted(self) -> bool:
        """True if the peers can weight the loss: only for lengths of k × transition_dim - 1."""
        return (self.length + 1) % self.transition_dim == 0


SIZES = {
    "halfcheetah": (17, 6, 100, 4, 4, 128),
    "hopper": (11, 3, 100, 2, 4, 64),
    "ant": (27, 8, 50, 1, 2, 32),
    "smallest": (1, 1, 7, 3, 2, 16),
}
CASES = [
    Case(f"{name}-{length}-{'stop' if stop else 'plain'}", *sizes, length, stop)
    for name, sizes in SIZES.items()
    for stop in (False, True)
    for width in [sizes[0] + sizes[1] + 2]
    for length in (10 * width - 1, 3 * width, 2 * width + 3, width - 1, 1)
]


def original_weights(case: Case, seed: int = 0) -> dict[str, Tensor]:
    """A state_dict under the original's names, without its mask buffers."""
    width, vocab, transition_dim = case.n_embd, case.vocab_size, case.transition_dim
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (vocab * transition_dim + 1, width),
        "pos_emb": (1, case.block_size, width),
        "ln_f.weight": (width,),
        "ln_f.bias": (width,),
        "head.weight": (transition_dim, vocab + 1, width),
    }
    for layer in range(case.n_layer):
        block = f"blocks.{layer}"
        for name in ("ln1", "ln2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
        for name in ("key", "query", "value", "proj"):
            shapes |= {f"{block}.attn.{name}.weight": (width, width), f"{block}.attn.{name}.bias": (width,)}
        shapes |= {f"{block}.mlp.0.weight": (4 * width, width), f"{block}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.2.weight": (width, 4 * width), f"{block}.mlp.2.bias": (width,)}
    return _filled(shapes, seed)


def rewrite_weights(case: Case, seed: int = 0, separate_heads: bool = True) -> dict[str, Tensor]:
    """A state_dict under the faster rewrite's names, without its mask buffers."""
    width, vocab, transition_dim = case.n_embd, case.vocab_size, case.transition_dim
    shapes: dict[str, tuple[int, ...]] = {
        "tok_emb.weight": (vocab * transition_dim, width),
        "pos_emb": (1, 10 * transition_dim, width),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "head.weight": (transition_dim, vocab, width) if separate_heads else (vocab, width),
    }
    if not separate_heads:
        shapes["head.bias"] = (vocab,)
    for layer in range(case.n_layer):
        block = f"blocks.{layer}"
        for name in ("norm1", "norm2"):
            shapes |= {f"{block}.{name}.weight": (width,), f"{block}.{name}.bias": (width,)}
        shapes |= {
            f"{block}.attention.in_proj_weight": (3 * width, width),
            f"{block}.attention.in_proj_bias": (3 * width,),
        }
        shapes |= {f"{block}.attention.out_proj.weight": (width, width), f"{block}.attention.out_proj.bias": (width,)}
        shapes |= {f"{block}.mlp.0.weight": (4 * width, width), f"{block}.mlp.0.bias": (4 * width,)}
        shapes |= {f"{block}.mlp.2.weight": (width, 4 * width), f"{block}.mlp.2.bias": (width,)}
    return _filled(shapes, seed)


def _filled(shapes: dict[str, tuple[int, ...]], seed: int) -> dict[str, Tensor]:
    """Normal numbers with the deviation of a trained model; around 1 for the norms' weights."""
    numbers = np.random.RandomState(seed)
    norms = ("ln1.weight", "ln2.weight", "ln_f.weight", "norm1.weight", "norm2.weight", "norm.weight")
    return {
        name: torch.from_numpy((name.endswith(norms) + 0.1 * numbers.standard_normal(shape)).astype(np.float32))
        for name, shape in shapes.items()
    }


def tokens(case: Case, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs, targets and mask, each (2, length)."""
    numbers = np.random.RandomState(seed)
    shape = (2, case.length)
    inputs, targets = (numbers.randint(0, case.vocab_size + case.stop, shape) for _ in range(2))
    mask = numbers.randint(0, 2, shape).astype(np.float32)
    return torch.from_numpy(inputs), torch.from_numpy(targets), torch.from_numpy(mask)


def sampled(logits: Tensor) -> np.ndarray:
    """Every fourth position and the last, every ninth token and the last two, to save space."""
    positions = sorted({*range(0, logits.shape[1], 4), logits.shape[1] - 1})
    columns = sorted({*range(0, logits.shape[2], 9), logits.shape[2] - 2, logits.shape[2] - 1})
    return logits.detach()[:, positions][..., columns].numpy()


def real_values() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For discretisers of 100 bins: (12345, 5) float32 to fit, (500, 5) float32 to encode, some of them outside, and
    (64, 2, 101) probabilities of rewards and values."""
    numbers = np.random.RandomState(5)
    scales = np.array([1, 3, 0.1, 10, 100])
    data = (numbers.standard_normal((12_345, 5)) * scales).astype(np.float32)
    new = (2 * numbers.standard_normal((500, 5)) * scales).astype(np.float32)
    return data, new, numbers.dirichlet(np.full(101, 0.1), (64, 2))


def repeating_values() -> tuple[np.ndarray, np.ndarray]:
    """For discretisers of 20 bins: (1000, 4) float32 to fit, full of repeats at both ends, in the middle and of 0, and
    (500, 4) of the same kind to encode."""
    numbers = np.random.RandomState(6)
    rows = numbers.standard_normal((1500, 4))
    rows[:, 0] = rows[:, 0].clip(-0.8, 0.8)  # actions at their limits
    rows[:, 1] = rows[:, 1] > 1.5  # a sparse reward
    rows[:, 2] = np.where(numbers.rand(1500) < 0.3, 0.0, rows[:, 2])
    rows[:, 3] = np.round(rows[:, 3])
    values = rows.astype(np.float32)
    return values[:1000], values[1000:]


PLAN_CONTEXT, PLAN_HORIZON = 3, 6  # the window slides over the plan twice
PLAN_CASE = Case("hopper", *SIZES["hopper"], 2 * 16 + 11, False)


def plan_prefixes() -> Tensor:
    """(4, 43) tokens: two whole transitions and an observation."""
    return torch.from_numpy(np.random.RandomState(7).randint(0, PLAN_CASE.vocab_size, (4, PLAN_CASE.length)))
