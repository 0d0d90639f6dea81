"""Make golden actions of the Decision Transformer of Hugging Face's ``transformers``, with random weights.

    python -m tests.golden.make_decision_transformer tests/golden/decision_transformer.npz

needs ``transformers`` (4.57.6 made the file that is kept). The ``.npz`` holds inputs, the actions predicted, and the
weights under ``weights/`` by the names that they have there.
"""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (  # pyright: ignore[reportMissingImports]
    DecisionTransformerConfig,
    DecisionTransformerModel,
)

SIZES = {"state_dim": 3, "act_dim": 2, "hidden_size": 8, "n_layer": 2, "n_head": 2, "max_ep_len": 9}
BATCH, STEPS = 3, 4


def main(path: Path) -> None:
    torch.manual_seed(0)
    model = DecisionTransformerModel(DecisionTransformerConfig(activation_function="relu", **SIZES)).eval()
    for name, parameter in model.named_parameters():
        # It adds a learnt position to all tokens alike, which the paper's model does not have.
        parameter.data = torch.zeros_like(parameter) if "wpe" in name else parameter + 0.2 * torch.randn_like(parameter)
    states, actions = torch.randn(BATCH, STEPS, 3), torch.rand(BATCH, STEPS, 2) * 2 - 1
    returns, timesteps = torch.randn(BATCH, STEPS, 1), torch.arange(STEPS) + torch.tensor([[0], [2], [5]])
    with torch.no_grad():
        output = model(
            states=states,
            actions=actions,
            rewards=torch.zeros(BATCH, STEPS, 1),
            returns_to_go=returns,
            timesteps=timesteps,
            attention_mask=torch.ones(BATCH, STEPS),
        )
    unused = ("predict_state", "predict_return", "wpe", "wte")
    weights = {name: tensor for name, tensor in model.state_dict().items() if not any(word in name for word in unused)}
    found = {"states": states, "actions": actions, "returns": returns[..., 0], "timesteps": timesteps}
    found |= {"predicted": output.action_preds} | {f"weights/{name}": tensor for name, tensor in weights.items()}
    arrays: dict[str, Any] = {name: tensor.numpy() for name, tensor in found.items()}
    np.savez_compressed(path, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
