"""Code written for the reference API, with only the import changed."""

import copy
import inspect
from typing import Any

import pytest
import torch
from torch import Tensor

import trajectory_transformer
from trajectory_transformer import (
    TrajectoryTransformerConfig,
    TrajectoryTransformerModel,
    TrajectoryTransformerOutput,
    TrajectoryTransformerPreTrainedModel,
)
from trajectory_transformer.errors import UserError

DEFAULTS = {  # the contract's
    "vocab_size": 100, "action_weight": 5, "reward_weight": 1, "value_weight": 1, "block_size": 249, "action_dim": 6,
    "observation_dim": 17, "transition_dim": 25, "n_layer": 4, "n_head": 4, "n_embd": 128, "embd_pdrop": 0.1,
    "resid_pdrop": 0.1, "attn_pdrop": 0.1, "hidden_act": "gelu", "max_position_embeddings": 512,
    "initializer_range": 0.02, "layer_norm_eps": 1e-5, "kaiming_initializer_range": 1, "use_cache": True,
}  # fmt: skip
WIDTH, BLOCK = 6, 23


def small(**changes: Any) -> TrajectoryTransformerConfig:
    sizes: dict[str, Any] = {
        "vocab_size": 8, "block_size": BLOCK, "observation_dim": 2, "action_dim": 2, "transition_dim": WIDTH,
        "n_layer": 3, "n_head": 2, "n_embd": 16,
    }  # fmt: skip
    return TrajectoryTransformerConfig(**(sizes | changes))


def make_model(**changes: Any) -> TrajectoryTransformerModel:
    torch.manual_seed(0)
    return TrajectoryTransformerModel(small(**changes))


@pytest.fixture
def tokens() -> Tensor:
    return torch.randint(0, 9, (2, BLOCK), generator=torch.Generator().manual_seed(1))


def test_fields_and_defaults() -> None:
    config = TrajectoryTransformerConfig()
    assert {name: getattr(config, name) for name in DEFAULTS} == DEFAULTS
    assert list(config.to_dict())[: len(DEFAULTS)] == list(DEFAULTS)
    assert (config.hidden_size, config.num_attention_heads, config.num_hidden_layers) == (128, 4, 4)
    assert config.model_type == "trajectory_transformer"


def test_what_the_reference_takes_without_effect_is_taken() -> None:
    config = TrajectoryTransformerConfig(learning_rate=6e-4, pad_token_id=1, bos_token_id=50256, eos_token_id=50256)  # pyright: ignore[reportCallIssue]
    assert config == TrajectoryTransformerConfig()


def test_configuration_round_trips() -> None:
    config = small(hidden_act="gelu_new", use_cache=False, kaiming_initializer_range=2.0)
    assert TrajectoryTransformerConfig.from_dict(config.to_dict()) == config
    assert copy.deepcopy(config) == config
    assert TrajectoryTransformerConfig.from_dict(config.to_dict(), n_layer=1).n_layer == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_layr": 2}, "has no field 'n_layr'; did you mean 'n_layer'"),
        ({"observation_dims": 2}, "did you mean 'observation_dim'"),
        ({"n_embd": 16.0}, "n_embd must be a whole number, got 16.0"),
        ({"use_cache": True, "n_head": True}, "n_head must be a whole number"),
        ({"embd_pdrop": "0.1"}, "embd_pdrop must be a number"),
    ],
)
def test_unknown_and_ill_typed_fields(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        TrajectoryTransformerConfig(**options)


def test_forward_has_the_reference_signature() -> None:
    parameters = inspect.signature(TrajectoryTransformerModel.forward).parameters
    assert list(parameters)[1:] == [
        "trajectories", "past_key_values", "targets", "attention_mask", "use_cache", "output_attentions",
        "output_hidden_states", "return_dict",
    ]  # fmt: skip
    assert all(parameter.default is None for parameter in list(parameters.values())[2:])
    assert TrajectoryTransformerModel.main_input_name == "trajectories"
    assert issubclass(TrajectoryTransformerModel, TrajectoryTransformerPreTrainedModel)
    assert TrajectoryTransformerModel.config_class is TrajectoryTransformerConfig
    assert TrajectoryTransformerModel.base_model_prefix == "trajectory_transformer"


def test_outputs(tokens: Tensor) -> None:
    model = make_model().eval()
    output = model(tokens, targets=tokens, output_attentions=True, output_hidden_states=True)
    assert isinstance(output, TrajectoryTransformerOutput)
    names = ["loss", "logits", "past_key_values", "hidden_states", "attentions"]
    assert output.keys() == names
    for index, name in enumerate(names):
        assert output[name] is output[index] is getattr(output, name) is output.to_tuple()[index]
    assert output[:2] == (output.loss, output.logits)
    loss, logits, *_ = model(tokens, targets=tokens, return_dict=False)
    torch.testing.assert_close(loss, output.loss)
    torch.testing.assert_close(logits, output.logits)
    bare = model(tokens, use_cache=False)
    assert "loss" not in bare
    assert len(bare) == 1
    with pytest.raises(KeyError):
        bare["loss"]


def test_the_configuration_decides_what_the_call_does_not(tokens: Tensor) -> None:
    config = {"output_attentions": True, "output_hidden_states": True, "return_dict": False, "use_cache": False}
    logits, hidden_states, attentions = make_model(**config).eval()(tokens)
    assert logits.shape == (2, BLOCK, 9)
    assert [len(hidden_states), len(attentions)] == [4, 3]
    output = make_model(**config).eval()(tokens, output_attentions=False, return_dict=True, use_cache=True)
    assert output.keys() == ["logits", "past_key_values", "hidden_states"]


def test_gradients_flow_to_hidden_states_and_attentions(tokens: Tensor) -> None:
    """The reference's test of the same name."""
    output = make_model(output_hidden_states=True, output_attentions=True)(tokens)
    kept = [*output.hidden_states, *output.attentions]
    for tensor in kept:
        tensor.retain_grad()
    output[0].flatten()[0].backward(retain_graph=True)
    assert all(tensor.grad is not None for tensor in kept[:-1])
    output.logits.sum().backward()
    assert all(tensor.grad is not None and tensor.grad.abs().sum() > 0 for tensor in kept)


def gradients(model: TrajectoryTransformerModel, tokens: Tensor, **options: Any) -> list[Tensor]:
    model.zero_grad()
    torch.manual_seed(5)
    output = model(tokens, targets=tokens.roll(-1, 1), **options)
    (output.loss + sum(weights.square().sum() for weights in output.attentions or ())).backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("options", [{}, {"output_attentions": True, "output_hidden_states": True}])
def test_gradient_checkpointing_changes_memory_not_numbers(options: dict[str, Any], tokens: Tensor) -> None:
    model = make_model().train()  # with dropout
    expected = gradients(model, tokens, **options)
    assert model.supports_gradient_checkpointing
    model.gradient_checkpointing_enable()
    assert model.is_gradient_checkpointing
    saved = saved_bytes(model, tokens)
    found = gradients(model, tokens, **options)
    assert len(found) == len(list(model.parameters()))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)
    assert model(tokens).past_key_values is None
    assert model.eval()(tokens).past_key_values is not None
    model.train().gradient_checkpointing_disable()
    assert saved < saved_bytes(model, tokens) / 2


def saved_bytes(model: TrajectoryTransformerModel, tokens: Tensor) -> int:
    """Memory that the graph holds for the backward pass."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        sizes[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(tokens, use_cache=False)
    del output
    return sum(sizes.values())


def test_training_lowers_the_loss(tokens: Tensor) -> None:
    model = make_model(embd_pdrop=0.0, resid_pdrop=0.0, attn_pdrop=0.0).train()
    optimizer = torch.optim.AdamW(model.decay_parameter_groups(0.1), lr=1e-2)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(tokens[:, :-1], targets=tokens[:, 1:], attention_mask=torch.ones(2, BLOCK - 1)).loss
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_past_of_plain_tuples(tokens: Tensor) -> None:
    model = make_model().eval()
    past = tuple((key, value) for key, value in model(tokens[:, :9]).past_key_values)
    continued = model(tokens[:, 9:], past_key_values=past)
    torch.testing.assert_close(continued.logits, model(tokens).logits[:, 9:], atol=1e-5, rtol=0)
    for wrong in (past[:2], "past", tuple((key,) for key, _ in past), object()):
        with pytest.raises(UserError, match="past_key_values must be the result of an earlier call"):
            model(tokens[:, 9:], past_key_values=wrong)


def test_a_mask_is_not_needed_and_every_length_can_be_weighted(tokens: Tensor) -> None:
    model = make_model().eval()
    for length in (1, 5, 6, 13, BLOCK):
        part = tokens[:, :length]
        without = model(part, targets=part).loss
        assert torch.equal(without, model(part, targets=part, attention_mask=torch.ones(2, length)).loss)


def test_facts_about_a_model() -> None:
    model = make_model()
    assert model.num_parameters() == sum(parameter.numel() for parameter in model.parameters())
    model.pos_emb.requires_grad_(False)
    assert model.num_parameters(only_trainable=True) == model.num_parameters() - model.pos_emb.numel()
    assert (model.device, model.dtype) == (torch.device("cpu"), torch.float32)
    assert model.get_block_size() == BLOCK


def test_the_package_exports_the_reference_names() -> None:
    for name in ("Config", "Model", "Output", "PreTrainedModel"):
        assert f"TrajectoryTransformer{name}" in trajectory_transformer.__all__
