"""A block of the user's own in a package of theirs: trained, saved, loaded where it is trusted, and planned with."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from trajectory_transformer import Agent, TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.building import TYPED_BY_USER, with_defaults
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import Block, TrajectoryTransformer
from trajectory_transformer.planning.trained_transformer import TrainedTransformer
from trajectory_transformer.planning.transformer_decoder import TransformerDecoder
from trajectory_transformer.training.fit import make_module
from trajectory_transformer.training.initial import InitialWeights

from ..planning.decoders import TRANSITIONS, VOCABULARY, WIDTH, compare
from ..training.small_run import small_config, small_datamodule, small_fit

EXAMPLES = Path(__file__).parents[2] / "examples"
BLOCK: dict[str, Any] = {"_target_": "swiglu_block.SwiGluBlock", "expansion": 2.0}


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The block's module is on Python's path, and not imported."""
    monkeypatch.delitem(sys.modules, "swiglu_block", raising=False)
    monkeypatch.syspath_prepend(str(EXAMPLES))


def sizes(**changes: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCABULARY, "block_size": TRANSITIONS * WIDTH - 1, "transition_dim": WIDTH, "observation_dim": 2,
        "action_dim": 2, "n_layer": 2, "n_head": 2, "n_embd": 16, "initializer_range": 0.3, "block": BLOCK,
    } | changes  # fmt: skip


def test_it_is_trained_saved_and_loaded_where_it_is_trusted(tmp_path: Path) -> None:
    config = small_config(max_steps=2)
    config.model.block = BLOCK
    last = small_fit(tmp_path, config).last
    contents = read_checkpoint(last)
    assert contents[SECTION]["model"]["block"] == BLOCK
    model = TrainedTransformer.of(Checkpoint.from_contents(contents), allow=["swiglu_block"]).model
    assert [type(block).__name__ for block in model.blocks] == ["SwiGluBlock"]
    gate = model.get_parameter("blocks.0.gate.weight")
    assert gate.shape == (2 * 8, 8)
    torch.manual_seed(config.seed)
    untrained = TrajectoryTransformer(model.config, ["swiglu_block"])
    assert not torch.equal(gate, untrained.get_parameter("blocks.0.gate.weight"))
    agent = Agent.from_checkpoint(last, allow=["swiglu_block"], decoder="eager", beam_width=4)
    agent.reset(2)
    assert np.isfinite(agent.act(np.zeros((2, 1), dtype=np.float32))).all()


def test_a_start_from_a_checkpoint_without_recorded_defaults_is_accepted(tmp_path: Path) -> None:
    config = small_config(max_steps=1)
    config.model.block = {"_target_": BLOCK["_target_"]}
    initial = InitialWeights.of_checkpoint(str(small_fit(tmp_path, config).last))
    config.model.block = with_defaults(config.model.block, "model.block")
    assert len(config.model.block) == 2
    initial.give_to(make_module(TransformerLearner(), config, small_datamodule(config)))
    config.model.block = {**BLOCK, "expansion": 3.0}
    with pytest.raises(
        UserError, match=r"model\.block\.expansion=2\.0, .* has 3\.0: give model\.block\.expansion=2\.0$"
    ):
        initial.give_to(make_module(TransformerLearner(), config, small_datamodule(config)))
    config.model.block = None
    with pytest.raises(
        UserError, match=r'but this run has null: give model\.block\._target_="swiglu_block\.SwiGluBlock"$'
    ):
        initial.give_to(make_module(TransformerLearner(), config, small_datamodule(config)))


def test_a_start_imports_nothing_that_only_the_checkpoint_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "foreign_part.py").write_text("class Part: ...\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = small_config(max_steps=1)
    config.model.block = BLOCK
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    inner = {**BLOCK, "inner": {"_target_": "foreign_part.Part"}}
    initial = InitialWeights("a.ckpt", module.record.kind, {"block": inner}, {})
    with pytest.raises(UserError, match=r"but this run has null: give model\.block\.inner="):
        initial.give_to(module)
    assert "foreign_part" not in sys.modules


def test_one_that_cannot_be_planned_with_is_refused_before_training(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless nothing is planned; and the trial draws none of torch's random numbers."""
    config, state = small_config(), torch.get_rng_state()
    config.model.block = BLOCK
    data = small_datamodule(config)
    TransformerLearner().check_data(config, data)
    assert torch.get_rng_state().equal(state)
    monkeypatch.setattr("swiglu_block.SwiGluBlock.forward", lambda self, x, layer, memory: x + x.cumsum(1))
    with pytest.raises(UserError, match=r"^model\.block: swiglu_block\.SwiGluBlock cannot be used for"):
        TransformerLearner().check_data(config, data)
    config.evaluation.episodes = 0
    TransformerLearner().check_data(config, data)


def test_a_file_imports_nothing_that_is_not_trusted(tmp_path: Path) -> None:
    config = small_config(max_steps=1)
    config.model.block = BLOCK
    last = small_fit(tmp_path, config).last
    del sys.modules["swiglu_block"]
    wanted = f"checkpoint '{last}': model.block names the class swiglu_block"  # which nothing is wrong with
    for allow in ((), ("swiglu",)):
        with pytest.raises(UserError, match=f"^{wanted}.*allow=.swiglu_block.$"):
            Agent.from_checkpoint(last, allow=allow)
    assert "swiglu_block" not in sys.modules


def test_eager_decoding_follows_full_forward_passes() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformerModel(TrajectoryTransformerConfig(**sizes()), TYPED_BY_USER).eval()
    decoder = TransformerDecoder(model, TRANSITIONS, sliding=False, rows=128)
    compare(decoder, model, TRANSITIONS * WIDTH, TRANSITIONS)


def test_its_linear_layers_are_treated_as_ours() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformer(TransformerConfig(**sizes(n_embd=64, initializer_range=0.03)), TYPED_BY_USER)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    decayed, rest = ({names[id(p)] for p in group["params"]} for group in model.decay_parameter_groups(0.1))
    own = {f"blocks.1.{name}.weight" for name in ("gate", "up", "down")}
    assert own <= decayed
    assert {"blocks.1.down.bias", "blocks.1.norm1.weight"} <= rest
    for name in own:
        assert model.get_parameter(name).std().item() == pytest.approx(0.03, rel=0.05)
    assert model.get_parameter("blocks.1.down.bias").abs().max() == 0


def test_a_saved_directory_is_loaded_where_it_is_trusted(tmp_path: Path) -> None:
    """Its tensors keep their names, even if another project has the same names."""
    model = TrajectoryTransformerModel(TrajectoryTransformerConfig(**sizes()), ["swiglu_block"]).eval()
    model.save_pretrained(tmp_path / "model")
    loaded = TrajectoryTransformerModel.from_pretrained(tmp_path / "model", allow=["swiglu_block"])
    assert loaded.config == model.config
    tokens = torch.randint(0, VOCABULARY + 1, (2, 20))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)
    with pytest.raises(UserError, match=r"allow=\[swiglu_block\]"):
        TrajectoryTransformerModel.from_pretrained(tmp_path / "model")


def test_our_own_class_needs_no_trust() -> None:
    named = {"_target_": "trajectory_transformer.model.gpt.Block"}
    expected = TrajectoryTransformer(TransformerConfig(**sizes(block=None))).eval()
    found = TrajectoryTransformer(TransformerConfig(**sizes(block=named))).eval()
    assert all(type(block) is Block for block in found.blocks)
    for name, parameter in expected.named_parameters():
        other = found.get_parameter(name)
        assert other.shape == parameter.shape
        if parameter.numel() > 500:  # drawn alike
            assert other.std().item() == pytest.approx(parameter.std().item(), rel=0.2)
    found.load_state_dict(expected.state_dict())
    tokens = torch.randint(0, VOCABULARY + 1, (2, 20))
    output = [model(tokens, return_dict=True).logits for model in (found, expected)]
    torch.testing.assert_close(*output)


class Gated(Block):
    """A block whose last layer begins at 0, so that it begins as the identity beside its attention."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        torch.nn.init.zeros_(self.l2.weight)
        self.l1.weight.data.fill_(0.25)


def test_a_block_keeps_the_weights_that_it_sets_itself() -> None:
    torch.manual_seed(0)
    model = TrajectoryTransformer(TransformerConfig(**sizes(block={"_target_": f"{__name__}.Gated"})), TYPED_BY_USER)
    before = torch.nn.Linear(400, 400).weight.std().item()
    for block in model.blocks:
        assert isinstance(block, Gated)
        assert (block.l2.weight == 0.0).all()
        assert (block.l1.weight == 0.25).all()
        assert (block.l1.bias == 0.0).all()
        assert block.attn.query.weight.std().item() == pytest.approx(0.3, rel=0.2)  # as GPT's
    assert before == pytest.approx(1 / (3 * 400) ** 0.5, rel=0.01)  # other layers are PyTorch's again


class Failing(torch.nn.Module):
    def __init__(self, config: Any) -> None:
        super().__init__()
        self.width = config.n_embed


def test_a_block_that_cannot_be_made_is_told_with_its_line() -> None:
    block = {"_target_": f"{__name__}.Failing"}
    with pytest.raises(
        UserError, match=r"^model\.block: .*Failing cannot be made \(AttributeError: .*n_embed"
    ) as caught:
        TrajectoryTransformer(TransformerConfig(**sizes(block=block)), TYPED_BY_USER)
    assert "self.width = config.n_embed" in caught.value.told


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (BLOCK | {"expansoin": 3}, r"no option 'model\.block\.expansoin'; did you mean 'model\.block\.expansion'"),
        (BLOCK | {"_target_": "swiglu_block.Swiglu"}, "there is no such class"),
        (BLOCK | {"_target_": "swiglu_block.nn"}, "is not a Module"),
        (BLOCK | {"_target_": "no_package.Block"}, "there is no module 'no_package'"),
    ],
)
def test_mistakes(block: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrajectoryTransformer(TransformerConfig(**sizes(block=block)), TYPED_BY_USER)


@pytest.mark.parametrize("block", ["SwiGluBlock", {"expansion": 2}, {"_target_": 3}])
def test_what_names_no_class_is_refused_with_the_options(block: object) -> None:
    with pytest.raises(UserError, match=r"block=.* is not a mapping with a _target_; give the class of a block"):
        TransformerConfig(**sizes(block=block))
