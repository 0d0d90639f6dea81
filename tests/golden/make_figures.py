"""Make reference figures of the peers' code, for tests without that code.

    python -m tests.golden.make_figures ORIGINAL REWRITE

ORIGINAL and REWRITE are checkouts of jannerm/trajectory-transformer (8834a6e) and Howuhh/faster-trajectory-transformer
(213e58d). Needs torch and numpy only; writes ``figures.npz`` beside this file.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .seeded import (
    CASES,
    PLAN_CASE,
    PLAN_CONTEXT,
    PLAN_HORIZON,
    Case,
    original_weights,
    plan_prefixes,
    real_values,
    repeating_values,
    rewrite_weights,
    sampled,
    tokens,
)

WEIGHTS = {"action_weight": 5, "reward_weight": 2, "value_weight": 3}


def load(root: str, module: str) -> types.ModuleType:
    """A module of a checkout, without running the ``__init__.py`` files above it, which need gym and more."""
    for name in [name for name in sys.modules if name.split(".")[0] == "trajectory"]:
        del sys.modules[name]
    parts = module.split(".")[:-1]
    for depth in range(1, len(parts) + 1):
        package = types.ModuleType(".".join(parts[:depth]))
        package.__path__ = [str(Path(root, *parts[:depth]))]
        sys.modules[package.__name__] = package
    return importlib.import_module(module)


def require_all(left: Any, buffer: str) -> None:
    """Check that all weights were loaded, and only mask buffers keep their initial values."""
    if left.unexpected_keys or not all(name.endswith(buffer) for name in left.missing_keys):
        raise SystemExit(f"the peer has other weights: {left}")


def original_model(root: str, case: Case, weights: dict[str, int]) -> Any:
    config = types.SimpleNamespace(
        vocab_size=case.vocab_size, block_size=case.block_size, n_layer=case.n_layer, n_head=case.n_head,
        n_embd=case.n_embd, observation_dim=case.observation_dim, action_dim=case.action_dim,
        transition_dim=case.transition_dim, embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1, **weights,
    )  # fmt: skip
    model = load(root, "trajectory.models.transformers").GPT(config).eval()
    left = model.load_state_dict(original_weights(case), strict=False)
    require_all(left, "attn.mask")
    return model


def original_figures(root: str, case: Case) -> dict[str, np.ndarray]:
    model = original_model(root, case, WEIGHTS if case.weighted else dict.fromkeys(WEIGHTS, 1))
    logits, loss = model(*tokens(case))
    return {f"original/{case.name}/logits": sampled(logits), f"original/{case.name}/loss": loss.detach().numpy()}


def rewrite_figures(root: str, case: Case, separate_heads: bool) -> dict[str, np.ndarray]:
    model = load(root, "trajectory.models.gpt.gpt").GPT(
        case.vocab_size, case.transition_dim, case.observation_dim, case.action_dim, 10 * case.transition_dim,
        case.n_embd, case.n_layer, case.n_head, use_sep_heads=separate_heads,
    ).eval()  # fmt: skip
    left = model.load_state_dict(rewrite_weights(case, separate_heads=separate_heads), strict=False)
    require_all(left, "attn_mask")
    heads = "separate" if separate_heads else "shared"
    return {f"rewrite/{case.name}/{heads}": sampled(model(tokens(case)[0])[0])}


def discretizer_figures(root: str) -> dict[str, np.ndarray]:
    """Edges, tokens, centres and expectations of the original's own class."""
    data, new, probabilities = real_values()
    load(root, "trajectory.utils.arrays").__dict__["DEVICE"] = "cpu"
    module = importlib.import_module("trajectory.utils.discretization")
    discretizer = module.QuantileDiscretizer(data, 100)
    repeating, repeating_new = repeating_values()
    repeating_found = module.QuantileDiscretizer(repeating, 20)
    found = discretizer.discretize(new)
    rewards, values = discretizer.value_expectation(probabilities)
    return {
        "discretizer/edges": discretizer.thresholds.T, "discretizer/tokens": found.astype(np.uint8),
        "discretizer/centers": discretizer.reconstruct(found).astype(np.float32),
        "discretizer/rewards": rewards, "discretizer/values": values,
        "repeating/edges": repeating_found.thresholds.T,
        "repeating/tokens": repeating_found.discretize(repeating_new).astype(np.uint8),
        "repeating/centers": repeating_found(repeating_new)[1],
        "discretizer/percentile": discretizer.percentile(probabilities[:, 0, :-1], 0.5, -2),
    }  # fmt: skip


def plan_figures(root: str) -> dict[str, np.ndarray]:
    """Greedy, deterministic plans by the original's search."""
    case = PLAN_CASE
    model = original_model(root, case, WEIGHTS)
    utils = sys.modules["trajectory.utils"] = types.ModuleType("trajectory.utils")
    vars(utils).update(__path__=[str(Path(root, "trajectory", "utils"))])
    vars(utils)["Silent"] = importlib.import_module("trajectory.utils.progress").Silent
    search = sys.modules["trajectory.search"] = types.ModuleType("trajectory.search")
    vars(search).update(__path__=[str(Path(root, "trajectory", "search"))])
    vars(sys.modules["trajectory"])["utils"] = utils
    plan = importlib.import_module("trajectory.search.core").beam_plan
    centers = torch.arange(case.vocab_size).float()
    plans = [
        plan(
            model, lambda p: ((p[:, 0, :-1] * centers).sum(-1), (p[:, 1, :-1] * centers).sum(-1)), prefix[None],
            PLAN_HORIZON, 1, 1, case.observation_dim, case.action_dim, 0.99, PLAN_CONTEXT, k_obs=1, k_act=1,
            verbose=False,
        )
        for prefix in plan_prefixes()
    ]  # fmt: skip
    return {"plan/tokens": torch.stack(plans).numpy().astype(np.uint8)}


def main() -> None:
    original, rewrite = sys.argv[1:]
    torch.manual_seed(0)
    figures = discretizer_figures(original) | plan_figures(original)
    for case in CASES:
        figures |= original_figures(original, case)
        if not case.stop:
            figures |= rewrite_figures(rewrite, case, True) | rewrite_figures(rewrite, case, False)
    np.savez_compressed(Path(__file__).with_name("figures.npz"), allow_pickle=False, **figures)


if __name__ == "__main__":
    main()
