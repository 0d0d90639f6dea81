"""The model against its definition: mask, cache, heads, stop token, and a plain computation of attention."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from trajectory_transformer.errors import UserError
from trajectory_transformer.model.config import TransformerConfig
from trajectory_transformer.model.gpt import Block, DimensionHeads, TrajectoryTransformer
from trajectory_transformer.model.numerical_embedding import NumericalReadout

WIDTH, VOCABULARY, BLOCK = 6, 8, 29


def make_model(**changes: Any) -> TrajectoryTransformer:
    """A small model in evaluation mode whose weights are far from their initial values."""
    torch.manual_seed(0)
    options: dict[str, Any] = {
        "vocab_size": VOCABULARY, "block_size": BLOCK, "observation_dim": 2, "action_dim": 2, "transition_dim": WIDTH,
        "n_layer": 2, "n_head": 2, "n_embd": 16,
    }  # fmt: skip
    model = TrajectoryTransformer(TransformerConfig(**(options | changes))).eval()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    if model.numbers is not None:
        model.numbers.set_values(torch.randn(WIDTH, VOCABULARY), torch.randn(50, WIDTH))
    return model


@pytest.fixture(scope="module", params=[(None, False), (12, False), (12, True)], ids=["tokens", "numbers", "dynamics"])
def model(request: pytest.FixtureRequest) -> TrajectoryTransformer:
    hidden, dynamics = request.param
    return make_model(numerical_embedding=hidden, numerical_dynamics=dynamics)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCABULARY + 1, (3, BLOCK), generator=torch.Generator().manual_seed(1))


def blocks_of(model: TrajectoryTransformer) -> list[Block]:
    return [block for block in model.blocks if isinstance(block, Block)]


def logits_of(model: TrajectoryTransformer, tokens: Tensor) -> Tensor:
    with torch.no_grad():
        return model(tokens, use_cache=False).logits


def test_mask_by_hand() -> None:
    mask = make_model(block_size=8, observation_dim=1, action_dim=1, transition_dim=4).mask.int().tolist()
    # Position 3 holds a value token: nobody sees it, itself included; position 7 likewise.
    assert mask == [
        [1, 0, 0, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0, 0, 0],
        [1, 1, 1, 0, 1, 0, 0, 0],
        [1, 1, 1, 0, 1, 1, 0, 0],
        [1, 1, 1, 0, 1, 1, 1, 0],
        [1, 1, 1, 0, 1, 1, 1, 0],
    ]


def plain_numbers(model: TrajectoryTransformer, tokens: list[int], p: int) -> Tensor:
    """The numerical embedding at position p, for two dimensions of observation and two of action."""
    numbers, dimension = model.numbers, p % WIDTH
    if numbers is None or dimension < 1:
        return torch.zeros(16)
    known = 2 if dimension < 3 else 4  # the observation's alone where an action comes next
    begins = p - dimension
    values = torch.stack([numbers.values[d, tokens[begins + d]] for d in range(known)])
    return (numbers.observation if known == 2 else numbers.transition)(values)


def plain_prediction(model: TrajectoryTransformer, tokens: list[int], p: int) -> Tensor:
    """What the dynamics' MLP adds to the last block's output at position p, which predicts the token at p + 1."""
    numbers, (transition, dimension) = model.numbers, divmod(p + 1, WIDTH)
    if numbers is None or numbers.dynamics is None or transition == 0 or dimension >= 2:
        return torch.zeros(16)
    begins = (transition - 1) * WIDTH
    values = torch.stack([numbers.values[d, tokens[begins + d]] for d in range(4)])
    return numbers.dynamics(values)[16 * dimension : 16 * (dimension + 1)]


def plain_logits(model: TrajectoryTransformer, tokens: list[int]) -> Tensor:
    """The forward pass written out for one sequence with loops over positions and heads."""
    config = model.config
    size = config.n_embd // config.n_head
    rows = []
    for p, token in enumerate(tokens):
        index = token + p % WIDTH * VOCABULARY if token < VOCABULARY else VOCABULARY * WIDTH
        rows.append(model.tok_emb.weight[index] + model.pos_emb[0, p] + plain_numbers(model, tokens, p))
    x = torch.stack(rows)
    for block in blocks_of(model):
        normed = block.ln1(x)
        q, k, v = block.attn.query(normed), block.attn.key(normed), block.attn.value(normed)
        outputs = []
        for p in range(len(tokens)):
            seen = [j for j in range(p + 1) if j % WIDTH != WIDTH - 1]
            heads = []
            for h in range(config.n_head):
                part = slice(h * size, (h + 1) * size)
                weights = torch.stack([q[p, part] @ k[j, part] / math.sqrt(size) for j in seen]).softmax(0)
                heads.append(sum((w * v[j, part] for w, j in zip(weights, seen, strict=True)), torch.zeros(size)))
            outputs.append(torch.cat(heads))
        x = x + block.attn.proj(torch.stack(outputs))
        x = x + block.l2(torch.nn.functional.gelu(block.l1(block.ln2(x))))
    x = model.ln_f(torch.stack([row + plain_prediction(model, tokens, p) for p, row in enumerate(x)]))
    return torch.stack([model.head.weight[p % WIDTH] @ x[p] for p in range(len(tokens))])


def test_forward_equals_the_definition(model: TrajectoryTransformer, tokens: Tensor) -> None:
    with torch.no_grad():
        expected = torch.stack([plain_logits(model, row.tolist()) for row in tokens[:, :20]])
    torch.testing.assert_close(logits_of(model, tokens[:, :20]), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("chunks", [[1] * BLOCK, [6, 6, 6, 6, 5], [3, 1, 10, 2, 13], [BLOCK]])
def test_cached_logits_equal_uncached(model: TrajectoryTransformer, tokens: Tensor, chunks: list[int]) -> None:
    past, parts, position = None, [], 0
    with torch.no_grad():
        for size in chunks:
            output = model(tokens[:, position : position + size], past_key_values=past, use_cache=True)
            past, position = output.past_key_values, position + size
            parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, 1), logits_of(model, tokens), atol=1e-5, rtol=0)


def test_cached_logits_after_reordering_rows(model: TrajectoryTransformer, tokens: Tensor) -> None:
    order = torch.tensor([2, 0, 0, 1])
    with torch.no_grad():
        past = model(tokens[:, :13], use_cache=True).past_key_values.select(order)
        continued = model(tokens[order, 13:], past_key_values=past).logits
    torch.testing.assert_close(continued, logits_of(model, tokens)[order, 13:], atol=1e-5, rtol=0)


def test_one_past_continues_in_several_ways(model: TrajectoryTransformer, tokens: Tensor) -> None:
    other = tokens.roll(1, dims=0)
    with torch.no_grad():
        past = model(tokens[:, :9], use_cache=True).past_key_values
        first = model(tokens[:, 9:], past_key_values=past).logits
        model(other[:, 9:], past_key_values=past)
        again = model(tokens[:, 9:], past_key_values=past).logits
    assert torch.equal(first, again)
    assert past.length == 9


def test_value_tokens_touch_only_their_own_prediction(model: TrajectoryTransformer, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, WIDTH - 1 :: WIDTH] = (changed[:, WIDTH - 1 :: WIDTH] + 1) % VOCABULARY
    moved = (logits_of(model, changed) - logits_of(model, tokens)).abs().amax(dim=(0, 2)) > 1e-6
    assert moved.nonzero().flatten().tolist() == list(range(WIDTH - 1, BLOCK, WIDTH))


def test_later_tokens_never_change_earlier_logits(model: TrajectoryTransformer, tokens: Tensor) -> None:
    changed = tokens.clone()
    changed[:, 14:] = (changed[:, 14:] + 1) % VOCABULARY
    torch.testing.assert_close(logits_of(model, changed)[:, :14], logits_of(model, tokens)[:, :14])


def test_numbers_stand_for_standardised_values() -> None:
    numbers = make_model(numerical_embedding=4).numbers
    assert numbers is not None
    centers = torch.arange(float(VOCABULARY)).expand(WIDTH, -1) * torch.tensor([1.0, 2.0, 1.0, 1.0, 1.0, 0.0])[:, None]
    data = torch.tensor([[0.0, 0.0, 0.1, 1.0, 3.0, 7.0], [4.0, 8.0, 0.1, 3.0, 3.2, 7.0]])
    numbers.set_values(centers, data)
    expected = [(k - 2) / 2 for k in range(VOCABULARY)]
    assert numbers.values[0].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    assert numbers.values[1].tolist() == pytest.approx([*expected, 0.0], abs=1e-5)
    assert numbers.values[3].tolist() == pytest.approx([-2, -1, 0, 1, 2, 3, 4, 5, 0], abs=1e-4)
    assert numbers.values[4].tolist() == [-5, -5, -5, pytest.approx(-1, abs=1e-3), 5, 5, 5, 5, 0]
    assert numbers.values[2].tolist() == [-5, 5, 5, 5, 5, 5, 5, 5, 0]  # a constant dimension
    assert numbers.values[5].tolist() == [-5] * VOCABULARY + [0]


def test_the_readout_s_loss_is_the_error_of_standardised_values() -> None:
    """Hand-computed: an embedding that passes on the first observation, and readouts that add a constant."""
    numbers = make_model(numerical_embedding=4).numbers
    assert numbers is not None
    numbers.values.copy_(torch.arange(VOCABULARY + 1.0).expand(WIDTH, -1))
    numbers.of_observation = lambda tokens: tokens[..., :1].float()
    numbers.of_transition = lambda tokens: 10.0 * tokens[..., :1].float()
    readout = NumericalReadout(numbers, 1)
    for layer, bias in ((readout.action, 1.0), (readout.outcome, 2.0)):
        torch.nn.init.ones_(layer.weight)
        torch.nn.init.constant_(layer.bias, bias)
    tokens = torch.tensor([[1] + [0] * (WIDTH - 3) + [4, 5], [2] + [0] * (WIDTH - 3) + [1, 2]])
    tokens[:, numbers.observed : numbers.acted] = 3
    # Actions: (1 + 1 - 3)² and (2 + 1 - 3)². Rewards and values: 12 - 4, 12 - 5, 22 - 1 and 22 - 2.
    expected = (1 + 0) / 2 + (8**2 + 7**2 + 21**2 + 20**2) / 4
    assert readout(numbers, tokens).item() == pytest.approx(expected)


def test_a_past_of_pairs_must_end_with_a_transition_where_numbers_count(tokens: Tensor) -> None:
    model = make_model(numerical_embedding=4)
    with torch.no_grad():
        whole = tuple(model(tokens[:, : 2 * WIDTH], use_cache=True).past_key_values)
        part = tuple(model(tokens[:, :9], use_cache=True).past_key_values)
        continued = model(tokens[:, 2 * WIDTH :], past_key_values=whole).logits
    torch.testing.assert_close(continued, logits_of(model, tokens)[:, 2 * WIDTH :], atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="end within a transition"):
        model(tokens[:, 9:], past_key_values=part)
    with pytest.raises(UserError, match=r"model\.numerical_dynamics needs tokens"):
        make_model(numerical_embedding=4, numerical_dynamics=True)(tokens[:, 2 * WIDTH :], past_key_values=whole)


def test_the_stop_token_is_one_embedding_for_all_dimensions(model: TrajectoryTransformer) -> None:
    embedded = model.embed(torch.full((1, WIDTH), VOCABULARY), torch.arange(WIDTH)) - model.pos_emb[:, :WIDTH]
    torch.testing.assert_close(embedded, model.tok_emb.weight[-1].expand(1, WIDTH, -1))


@pytest.mark.parametrize(("first", "time"), [(0, 6), (4, 1), (5, 3), (2, 17), (0, 7)])
def test_heads_follow_the_position(first: int, time: int) -> None:
    heads = DimensionHeads(WIDTH, 4, 3)
    torch.nn.init.normal_(heads.weight)
    hidden = torch.randn(2, time, 4)
    expected = torch.stack([hidden[:, t] @ heads.weight[(first + t) % WIDTH].T for t in range(time)], dim=1)
    torch.testing.assert_close(heads(hidden, first), expected)


def test_output_by_name_index_and_tuple(model: TrajectoryTransformer, tokens: Tensor) -> None:
    output = model(tokens, targets=tokens, output_attentions=True, output_hidden_states=True)
    assert output.loss is output["loss"] is output[0] is next(iter(output))
    assert output.logits is output[1]
    assert [x.shape for x in output.hidden_states] == [(3, BLOCK, 16)] * 3
    assert [x.shape for x in output.attentions] == [(3, 2, BLOCK, BLOCK)] * 2
    plain = model(tokens, return_dict=False, use_cache=False)
    assert isinstance(plain, tuple)
    assert len(plain) == 1


def test_attentions_obey_the_mask_and_leave_the_logits(model: TrajectoryTransformer, tokens: Tensor) -> None:
    with torch.no_grad():
        output = model(tokens, output_attentions=True, use_cache=False)
    torch.testing.assert_close(output.logits, logits_of(model, tokens), atol=1e-5, rtol=0)
    for weights in output.attentions:
        torch.testing.assert_close(weights.sum(-1), torch.ones(3, 2, BLOCK))
        assert weights.masked_select(~model.mask).abs().max() == 0


def test_use_cache_follows_the_configuration(tokens: Tensor) -> None:
    assert make_model(use_cache=False)(tokens).past_key_values is None
    assert make_model(use_cache=True)(tokens).past_key_values.length == BLOCK


def test_fields_have_their_effect(tokens: Tensor) -> None:
    base = logits_of(make_model(), tokens)
    for change in (
        {"hidden_act": "relu"},
        {"hidden_act": "gelu_new"},
        {"layer_norm_eps": 0.1},
        {"hidden_act": torch.tanh},
    ):
        assert (logits_of(make_model(**change), tokens) - base).abs().max() > 1e-5


def test_initialisation() -> None:
    torch.manual_seed(0)
    config = TransformerConfig(n_layer=1, initializer_range=0.03, kaiming_initializer_range=2.0)
    model = TrajectoryTransformer(config)
    assert model.tok_emb.weight.std().item() == pytest.approx(0.03, rel=0.02)
    assert blocks_of(model)[0].l1.weight.std().item() == pytest.approx(0.03, rel=0.02)
    assert model.pos_emb.abs().max() == 0
    assert blocks_of(model)[0].l1.bias.abs().max() == 0
    bound = math.sqrt(6 / ((1 + 5 / 2.0**2) * config.n_embd))  # Kaiming uniform with a = √5 / 2
    assert bound * 0.99 < model.head.weight.abs().max().item() <= bound


def test_dropout_acts_only_in_training(tokens: Tensor) -> None:
    model = make_model(embd_pdrop=0.5, resid_pdrop=0.5, attn_pdrop=0.5)
    assert torch.equal(logits_of(model, tokens), logits_of(model, tokens))
    model.train()
    assert not torch.allclose(logits_of(model, tokens), logits_of(model, tokens))


def test_decay_groups_split_all_parameters(model: TrajectoryTransformer) -> None:
    decayed, rest = model.decay_parameter_groups(0.1)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    kinds = ("key", "query", "value", "proj", "l1", "l2")
    expected = {f"blocks.{i}.{'attn.' * (k in kinds[:4])}{k}.weight" for i in range(2) for k in kinds} | {"head.weight"}
    if model.numbers is not None:
        mlps = [name for name, mlp in model.numbers.named_children() if mlp is not None]
        expected |= {f"numbers.{mlp}.{layer}.weight" for mlp in mlps for layer in (0, 2, 4)}
    assert {names[id(p)] for p in decayed["params"]} == expected
    assert len(decayed["params"]) + len(rest["params"]) == len(names)


def test_parameter_count_of_the_paper_model() -> None:
    model = TrajectoryTransformer(TransformerConfig())
    assert sum(p.numel() for p in model.parameters()) == 1_468_544


def test_too_many_tokens_are_refused(model: TrajectoryTransformer, tokens: Tensor) -> None:
    with pytest.raises(ValueError, match=f"{BLOCK + 1} tokens exceed block_size={BLOCK}"):
        model(torch.cat([tokens, tokens[:, :1]], dim=1))
    past = model(tokens, use_cache=True).past_key_values
    with pytest.raises(ValueError, match="exceed block_size"):
        model(tokens[:, :1], past_key_values=past)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 10, "n_head": 4}, "divisible"),
        ({"transition_dim": 24}, "observation_dim \\+ action_dim \\+ 2 = 25"),
        ({"n_layer": 0}, "n_layer=0 must be at least 1"),
        ({"block_size": 600}, "max_position_embeddings"),
        ({"hidden_act": "tanh"}, "hidden_act"),
        ({"attn_pdrop": 1.0}, "attn_pdrop"),
    ],
)
def test_contradictory_configurations_are_refused(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**options)


def test_one_product_for_query_key_and_value() -> None:
    """Equal to three, gradients too; a projection that is more than a linear map is called."""
    attention = blocks_of(make_model())[0].attn
    x = torch.randn(2, 5, 16)
    found = []
    for merged in (False, True):
        parts = attention._project(x, merged)
        found.append(
            [
                *parts,
                *torch.autograd.grad(
                    torch.stack([(part**2).sum() for part in parts]).sum(), [*attention.key.parameters()]
                ),
            ]
        )
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)
    attention.key.register_forward_hook(lambda *_: torch.zeros(2, 5, 16))
    assert not attention._project(x, merged=True)[1].any()
