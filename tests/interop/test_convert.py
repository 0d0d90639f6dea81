"""``python -m trajectory_transformer.interop.convert`` on the files that users have."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden.seeded import Case, original_weights, rewrite_weights, tokens
from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.errors import UserError
from trajectory_transformer.interop.convert import convert, main

CASE = Case("hopper", 11, 3, 20, 2, 2, 16, 48, False)


def write_original(directory: Path, epoch: int = 27, seed: int = 0, **arguments: Any) -> Path:
    """A run's folder as written by the original, with broken pickles."""
    directory.mkdir(parents=True, exist_ok=True)
    mask = torch.ones(1, 1, CASE.block_size, CASE.block_size)
    masks = {f"blocks.{layer}.attn.mask": mask for layer in range(CASE.n_layer)}
    torch.save(original_weights(CASE, seed) | masks, directory / f"state_{epoch}.pt")
    for name in ("data_config.pkl", "model_config.pkl", "trainer_config.pkl"):
        (directory / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    if arguments:
        (directory / "args.json").write_text(json.dumps(arguments))
    return directory


def write_rewrite(directory: Path, **options: Any) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    mask = torch.zeros(160, 160, dtype=torch.bool)
    masks = {f"blocks.{layer}.attn_mask": mask for layer in range(CASE.n_layer)}
    torch.save(rewrite_weights(CASE, **options) | masks, directory / "model_last.pt")
    (directory / "discretizer.pt").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    (directory / "config.yaml").write_text(
        "dataset:\n  env_name: hopper-medium-v2\nmodel:\n  observation_dim: 11\n  action_dim: 3\n  num_heads: 2\n"
        "  attention_dropout: 0.2\ntrainer:\n  action_weight: 4\n  betas:\n  - 0.9\n"
    )
    return directory


def test_an_original_run(tmp_path: Path) -> None:
    source = write_original(tmp_path / "run", n_head=2, action_weight=3, resid_pdrop=0.2, n_embd=8, device="cuda")
    write_original(source, epoch=9, seed=1)
    converted = convert(source, tmp_path / "model", observation_dim=11)
    loaded = TrajectoryTransformerModel.from_pretrained(tmp_path / "model")
    assert torch.equal(loaded.head.weight, original_weights(CASE)["head.weight"])  # of the last epoch
    assert loaded.config == converted.config == TrajectoryTransformerConfig(
        vocab_size=20, block_size=159, observation_dim=11, action_dim=3, transition_dim=16, n_layer=2, n_head=2,
        n_embd=16, action_weight=3, resid_pdrop=0.2,
    )  # fmt: skip
    record = json.loads((tmp_path / "model/conversion.json").read_text())
    assert record == {"source": "run", "file": "state_27.pt", "origin": "original"}


def test_one_file_of_an_original_run(tmp_path: Path) -> None:
    file = write_original(tmp_path, epoch=3) / "state_3.pt"
    model = convert(file, tmp_path / "model", action_dim=3, n_head=4)
    assert (model.config.observation_dim, model.config.n_head) == (11, 4)


@pytest.mark.parametrize("shift", [None, 0.0, 0.5])
@pytest.mark.parametrize("separate_heads", [True, False])
def test_a_rewrite_run(separate_heads: bool, shift: float | None, tmp_path: Path) -> None:
    """For every bias of the final norm, even zero, logits are kept and the stop token is never predicted."""
    source = write_rewrite(tmp_path / "run", separate_heads=separate_heads)
    weights = torch.load(source / "model_last.pt", weights_only=True)
    if shift is not None:
        weights["norm.bias"].fill_(shift)
        torch.save(weights, source / "model_last.pt")
    model = convert(source, tmp_path / "model")
    assert model.config.block_size == 160
    assert (model.config.n_head, model.config.attn_pdrop, model.config.action_weight) == (2, 0.2, 4)
    output = model(tokens(CASE)[0], output_hidden_states=True)
    normed = torch.nn.functional.layer_norm(
        output.hidden_states[-1], (16,), weights["norm.weight"], weights["norm.bias"]
    )
    heads = weights["head.weight"].expand(16, 20, 16)[torch.arange(48) % 16]
    expected = torch.einsum("bte,tve->btv", normed, heads) + weights.get("head.bias", torch.zeros(20))
    torch.testing.assert_close(output.logits[..., :-1], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(output.logits[..., -1], torch.full((2, 48), -1000.0), atol=1, rtol=0)


def test_a_hub_directory_with_a_wrong_configuration(tmp_path: Path) -> None:
    source = write_original(tmp_path / "run") / "state_27.pt"
    source.rename(source.with_name("pytorch_model.bin"))
    (source.parent / "config.json").write_text(json.dumps({"n_embd": 32, "N": 100, "n_head": 2, "vocab_size": 100}))
    with pytest.warns(UserWarning, match=r"n_embd is 16, not 32; n_layer is 2, not 4; observation_dim=11 is assumed"):
        model = convert(source.parent, tmp_path / "model")
    assert model.config.n_head == 2
    with pytest.warns(UserWarning, match="n_embd is 16, not 32"):
        assert convert(source.parent, tmp_path / "model", action_dim=4).config.observation_dim == 10


def test_converting_twice_changes_nothing(tmp_path: Path) -> None:
    model = convert(write_original(tmp_path / "run"), tmp_path / "first", action_dim=3)
    again = convert(tmp_path / "first", tmp_path / "second")
    assert again.config == model.config
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


def test_the_command(tmp_path: Path) -> None:
    """In a process of its own, which leaves a trace if any pickle beside the weights is opened."""
    source, trace = write_original(tmp_path / "run", n_head=2), tmp_path / "executed"
    for name in ("data_config.pkl", "model_config.pkl"):
        (source / name).write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    command = [sys.executable, "-m", "trajectory_transformer.interop.convert", str(source), str(tmp_path / "model")]
    done = subprocess.run([*command, "--action-dim", "3"], capture_output=True, text=True, env=os.environ, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "parameters in" in done.stdout
    assert "observation_dim=11, action_dim=3, n_head=2, transition_dim=16, block_size=159" in done.stdout
    assert not trace.exists()


def test_mistakes_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write_original(tmp_path / "run")
    (tmp_path / "empty").mkdir()
    destination = str(tmp_path / "model")
    for arguments, message in (
        ([str(source), destination], "add --observation-dim N or --action-dim N"),
        ([str(source), destination, "--action-dim", "20"], "must add up to 14"),
        ([str(source), destination, "--action-dim", "3", "--n-head", "3"], "n_embd=16 must be divisible by n_head=3"),
        ([str(source), str(source), "--action-dim", "3"], "choose another destination"),
        ([str(tmp_path / "none.pt"), destination], "none.pt' does not exist"),
        ([str(tmp_path / "empty"), destination], "holds no weights: it has none of model.safetensors, "),
        ([str(source / "data_config.pkl"), destination], "nothing in it was executed"),
        ([str(source / "state_27.pt"), "/dev/null/model", "--action-dim", "3"], "could not be saved"),
    ):
        assert main(arguments) == 1
        output = capsys.readouterr()
        assert output.out == ""
        assert output.err.startswith("error: ")
        assert output.err.count("\n") == 1
        assert message in output.err
    assert not Path(destination).exists()


def test_damaged_rewrite_weights(tmp_path: Path) -> None:
    source = write_rewrite(tmp_path)
    weights = torch.load(source / "model_last.pt", weights_only=True)
    for change, message in (
        ({"norm.weight": None}, "do not match"),
        ({"head.weight": torch.zeros(16, 20, 8)}, "do not match"),
        ({"norm.weight": torch.zeros(16)}, "no stop token can be added"),
        ({"blocks.1.attention.in_proj_bias": torch.zeros(47)}, r"blocks\.1\.attn\.\w+\.bias' has shape \(15,\)"),
        ({"blocks.1.attention.in_proj_bias": torch.zeros(())}, "has shape"),
        ({"blocks.1.mlp.2.bias": torch.full((16,), torch.nan)}, "has NaN"),
    ):
        changed = {name: t for name, t in (weights | change).items() if t is not None}
        torch.save(changed, source / "model_last.pt")
        with pytest.raises(UserError, match=message):
            convert(source, tmp_path / "model")
