"""Record the original's search token by token, for tests without the original's code.

    python -m tests.golden.make_planning ORIGINAL

ORIGINAL is a checkout of jannerm/trajectory-transformer (8834a6e). Needs torch and numpy only; writes ``planning.npz``
beside this file: for each search of ``planning.py`` all sampled tokens, the estimates, the kept candidates, the result.
"""

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import torch

from .make_figures import load, require_all
from .planning import SEARCHES, Search
from .seeded import original_weights


def original_model(root: str, search: Search) -> Any:
    case = search.model
    config = types.SimpleNamespace(
        vocab_size=case.vocab_size, block_size=case.block_size, n_layer=case.n_layer, n_head=case.n_head,
        n_embd=case.n_embd, observation_dim=case.observation_dim, action_dim=case.action_dim,
        transition_dim=case.transition_dim, embd_pdrop=0.1, resid_pdrop=0.1, attn_pdrop=0.1,
        action_weight=1, reward_weight=1, value_weight=1,
    )  # fmt: skip
    model = load(root, "trajectory.models.transformers").GPT(config).eval()
    require_all(model.load_state_dict(original_weights(case), strict=False), "attn.mask")
    return model


def record(root: str, search: Search) -> dict[str, np.ndarray]:
    """Run the original's ``beam_plan``, recording its sampler, its pruning and our estimate."""
    model = original_model(root, search)
    progress = types.ModuleType("trajectory.utils")
    progress.__path__ = [str(Path(root, "trajectory", "utils"))]
    progress.__dict__.update(Silent=lambda: types.SimpleNamespace(update=lambda _: None, stamp=lambda: None))
    sys.modules["trajectory.utils"] = progress
    core = importlib.import_module("trajectory.search.core")
    settings, case = search.settings, search.model
    centers = torch.from_numpy(search.centers())
    seen: dict[str, list[torch.Tensor]] = {"tokens": [], "rewards": [], "values": [], "kept": []}
    sample_n, topk = core.sample_n, torch.topk

    def listening_sample_n(model: Any, x: torch.Tensor, n: int, **options: Any) -> Any:
        result, probabilities = sample_n(model, x, n, **options)
        seen["tokens"].append(result[:, -n:])
        return result, probabilities

    def listening_topk(values: torch.Tensor, k: int, **options: Any) -> Any:
        found = topk(values, k, **options)
        if values.dim() == 1:
            seen["kept"].append(found.indices)
        return found

    def estimate(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        rewards, values = ((probabilities[:, i, :-1] * centers[i]).sum(-1) for i in (0, 1))
        seen["rewards"].append(rewards)
        seen["values"].append(values)
        return rewards, values

    core.__dict__["sample_n"], torch.topk = listening_sample_n, listening_topk
    try:
        best = core.beam_plan(
            model, estimate, torch.from_numpy(search.prefix())[None], settings.horizon, settings.beam_width,
            settings.n_expand, case.observation_dim, case.action_dim, settings.discount,
            10 if settings.window == "growing" else settings.context, k_obs=settings.k_obs, k_act=settings.k_act,
            cdf_act=settings.cdf_act, verbose=False,
        )  # fmt: skip
    finally:
        torch.topk = topk
    arrays = {name: torch.stack(parts).numpy() for name, parts in seen.items() if name != "tokens"}
    arrays["actions"] = torch.stack(seen["tokens"][0::3]).numpy().astype(np.uint8)
    arrays["reward_tokens"] = torch.stack(seen["tokens"][1::3]).numpy().astype(np.uint8)
    arrays["observations"] = torch.stack(seen["tokens"][2::3]).numpy().astype(np.uint8)
    return {f"{search.name}/{name}": array for name, array in (arrays | {"best": best.numpy()}).items()}


def main() -> None:
    (root,) = sys.argv[1:]
    torch.manual_seed(0)
    recorded: dict[str, np.ndarray] = {}
    for search in SEARCHES:
        recorded |= record(root, search)
    np.savez_compressed(Path(__file__).with_name("planning.npz"), allow_pickle=False, **recorded)


if __name__ == "__main__":
    main()
