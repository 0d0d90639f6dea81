"""Side by side with the deprecated class of transformers (4.57 is the newest release that has it).

Collected only where it is installed, for instance by ``pip install 'transformers<5'``.
"""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (  # pyright: ignore[reportMissingImports]
    TrajectoryTransformerConfig as PortConfig,
)
from transformers import (  # pyright: ignore[reportMissingImports]
    TrajectoryTransformerModel as PortModel,
)

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SIZES: list[dict[str, Any]] = [
    {},
    {"observation_dim": 11, "action_dim": 3, "transition_dim": 16, "block_size": 159, "n_layer": 2},
    {"observation_dim": 2, "action_dim": 1, "transition_dim": 5, "block_size": 49, "vocab_size": 9, "n_embd": 32,
     "action_weight": 2, "reward_weight": 3, "value_weight": 4},
]  # fmt: skip


@pytest.fixture(params=SIZES, ids=lambda sizes: f"{sizes.get('transition_dim', 25)} dimensions")
def port(request: pytest.FixtureRequest) -> Any:
    torch.manual_seed(0)
    model = PortModel(PortConfig(**request.param)).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def batch(config: Any, length: int) -> tuple[torch.Tensor, ...]:
    tokens, targets = torch.randint(0, config.vocab_size + 1, (2, 3, length))
    return tokens, targets, torch.randint(0, 2, (3, length)).float()


@pytest.mark.parametrize("pickled", [False, True])
def test_its_directories_load_here(port: Any, pickled: bool, tmp_path: Path) -> None:
    port.save_pretrained(tmp_path, safe_serialization=not pickled)
    ours = TrajectoryTransformerModel.from_pretrained(tmp_path)
    width = port.config.transition_dim
    for length in (port.config.block_size, 3 * width - 1, width, 2 * width + 3, 1):
        tokens, targets, mask = batch(port.config, length)
        weighted = (length + 1) % width == 0  # it cannot weight others
        expected = port(tokens, targets=targets if weighted else None, attention_mask=mask, return_dict=True,
                        output_hidden_states=True, output_attentions=True)  # fmt: skip
        found = ours(tokens, targets=targets, attention_mask=mask, output_hidden_states=True, output_attentions=True)
        torch.testing.assert_close(found.logits, expected.logits, atol=1e-5, rtol=0)
        if weighted:
            torch.testing.assert_close(found.loss, expected.loss, atol=1e-5, rtol=0)
        for ours_of, theirs_of in (
            (found.hidden_states, expected.hidden_states),
            (found.attentions, expected.attentions),
        ):
            for a, b in zip(ours_of, theirs_of, strict=True):
                torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_our_directories_load_there(port: Any, tmp_path: Path) -> None:
    torch.manual_seed(1)
    fields = TrajectoryTransformerConfig().to_dict()
    config = TrajectoryTransformerConfig(
        **{k: v for k, v in port.config.to_dict().items() if k in fields and k != "layer_norm_eps"}
    )
    ours = TrajectoryTransformerModel(config).eval()
    ours.save_pretrained(tmp_path)
    theirs = PortModel.from_pretrained(tmp_path).eval()
    tokens, targets, mask = batch(config, config.block_size)
    found, expected = (
        ours(tokens, targets=targets, attention_mask=mask),
        theirs(tokens, targets=targets, attention_mask=mask),
    )
    torch.testing.assert_close(found.logits, expected[1], atol=1e-5, rtol=0)
    torch.testing.assert_close(found.loss, expected[0], atol=1e-5, rtol=0)


def test_its_gradients_are_ours(port: Any, tmp_path: Path) -> None:
    port.save_pretrained(tmp_path)
    ours = TrajectoryTransformerModel.from_pretrained(tmp_path)
    tokens, targets, mask = batch(port.config, port.config.block_size)
    port(tokens, targets=targets, attention_mask=mask)[0].backward()
    ours(tokens, targets=targets, attention_mask=mask).loss.backward()
    theirs = dict(port.named_parameters())
    assert set(theirs) == {name for name, _ in ours.named_parameters()}
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, atol=1e-5, rtol=1e-4)


def test_fields_and_defaults_are_its_own() -> None:
    theirs, ours = PortConfig().to_dict(), TrajectoryTransformerConfig().to_dict()
    shared = {name for name in ours if name in theirs} - {"layer_norm_eps", "return_dict"}
    assert len(shared) >= 20
    assert {name: ours[name] for name in shared} == {name: theirs[name] for name in shared}


def test_its_whole_configuration_is_read() -> None:
    theirs = PortConfig(n_layer=2)
    ours = TrajectoryTransformerConfig.from_dict(theirs.to_dict())
    assert (ours.n_layer, ours.layer_norm_eps) == (2, 1e-5)


def test_a_published_configuration_means_the_same(tmp_path: Path) -> None:
    config = TrajectoryTransformerConfig(n_layer=1)
    TrajectoryTransformerModel(config).save_pretrained(tmp_path)
    stated = json.loads((tmp_path / "config.json").read_text())
    assert PortConfig.from_pretrained(tmp_path).n_layer == stated["n_layer"] == 1
