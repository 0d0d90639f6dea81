"""Masses of attention: by hand on a context of three transitions of four tokens, and by a loop over a larger one."""

from fractions import Fraction as F

import numpy as np
import pytest
import torch
from torch import Tensor

from trajectory_transformer.analysis.attention_masses import AttentionMasses
from trajectory_transformer.layout import TransitionLayout

# Tokens 0 … 11 are o a r v, o a r v, o a r v. Queries 7 … 10 predict the last transition, and only they count; value
# tokens 3 and 7 may not be attended to.
SMALL = TransitionLayout(1, 1)


def causal_mask(layout: TransitionLayout, transitions: int) -> Tensor:
    tokens = layout.block_size(transitions)
    mask = torch.ones(tokens, tokens, dtype=torch.bool).tril()
    mask[:, layout.value :: layout.transition_dim] = False
    return mask


def to_keys(*keys: int) -> Tensor:
    """Attention of queries 7 … 10 to one key each; queries before attend to the first key."""
    attention = torch.zeros(11, 11)
    attention[:7, 0] = 1.0
    for query, key in zip(range(7, 11), keys, strict=True):
        attention[query, key] = 1.0
    return attention


def masses_of(attention: Tensor) -> dict[str, float]:
    masses = AttentionMasses(SMALL, causal_mask(SMALL, 3))
    return dict(zip(masses.names, masses.of(attention).tolist(), strict=True))


def test_uniform_attention_by_hand() -> None:
    masses = AttentionMasses(SMALL, causal_mask(SMALL, 3))
    expected = {  # queries 7, 8, 9, 10 see 6, 7, 8, 9 keys, three of them in each of the first two transitions
        "mass_present_transition": (0 + F(1, 7) + F(2, 8) + F(3, 9)) / 4,
        "mass_previous_transition": (F(3, 6) + F(3, 7) + F(3, 8) + F(3, 9)) / 4,
        "mass_earlier_transitions": (F(3, 6) + F(3, 7) + F(3, 8) + F(3, 9)) / 4,
        "mass_same_dimension_as_predicted": (F(2, 6) + F(2, 7) + F(2, 8)) / 3,
        "mass_same_dimension_as_query": (F(2, 7) + F(2, 8) + F(2, 9)) / 3,
        "observation_mass_previous_transition": F(3, 6),
        "action_mass_present_transition": F(1, 7),
        "reward_mass_present_transition": F(2, 8),
        "value_mass_present_transition": F(3, 9),
        "reward_mass_same_dimension_as_predicted": F(2, 8),
        "value_mass_same_dimension_as_query": F(2, 9),
        "observation_mass_past_actions": F(2, 6),
        "action_mass_past_actions": F(2, 7),
        "action_mass_past_observations": F(2, 7),
    }
    found = dict(zip(masses.names, masses.uniform, strict=True))
    assert {name: found[name] for name in expected} == pytest.approx({n: float(x) for n, x in expected.items()})


def test_masses_that_nothing_could_have_are_left_out() -> None:
    names = masses_of(to_keys(0, 0, 0, 0))
    assert "observation_mass_present_transition" not in names  # the only one is predicted before anything of it is seen
    assert "value_mass_same_dimension_as_predicted" not in names
    assert "observation_mass_same_dimension_as_query" not in names
    assert "mass_past_actions" not in names  # only where observations or actions are predicted


def test_attention_to_oneself() -> None:
    masses = masses_of(to_keys(6, 8, 9, 10))  # query 7 is a value token and attends to the reward before it
    assert masses["mass_present_transition"] == pytest.approx(3 / 4)
    assert masses["mass_previous_transition"] == pytest.approx(1 / 4)
    assert masses["mass_same_dimension_as_query"] == 0.0  # only earlier steps are meant
    assert masses["mass_same_dimension_as_predicted"] == 0.0


def test_attention_to_the_previous_transition_alone() -> None:
    attention = torch.zeros(11, 11)
    attention[:7, 0] = 1.0
    attention[7:, 4:7] = 1 / 3
    masses = masses_of(attention)
    assert masses["mass_previous_transition"] == pytest.approx(1.0)
    assert masses["mass_present_transition"] == masses["mass_earlier_transitions"] == 0.0
    assert masses["mass_same_dimension_as_predicted"] == pytest.approx(1 / 3)
    assert masses["action_mass_past_actions"] == pytest.approx(1 / 3)


def test_the_two_stripes_are_told_apart() -> None:
    predicted = masses_of(to_keys(4, 1, 6, 10))  # o to o, a to a, r to r, and v, which has nothing to attend to
    assert predicted["mass_same_dimension_as_predicted"] == pytest.approx(1.0)
    assert predicted["mass_same_dimension_as_query"] == 0.0
    assert predicted["action_mass_earlier_transitions"] == pytest.approx(1.0)
    own = masses_of(to_keys(0, 4, 1, 6))  # the tokens that go in at queries 8, 9, 10 are o, a, r
    assert own["mass_same_dimension_as_query"] == pytest.approx(1.0)
    assert own["mass_same_dimension_as_predicted"] == pytest.approx(1 / 3)  # query 7, the value token, to o
    assert own["action_mass_past_observations"] == pytest.approx(1.0)


def test_a_loop_over_tokens_agrees() -> None:
    layout, transitions = TransitionLayout(3, 2), 4
    width = layout.transition_dim
    mask = causal_mask(layout, transitions)
    scores = torch.randn(2, 5, len(mask), len(mask), generator=torch.Generator().manual_seed(0))
    attention = scores.masked_fill(~mask, -torch.inf).softmax(dim=-1)
    tokens = [
        (t, kind, kind + str(i))
        for t in range(transitions)
        for kind, count in (("observation", 3), ("action", 2), ("reward", 1), ("value", 1))
        for i in range(count)
    ]

    def belongs(target: str, query: int, key: int) -> bool:
        (t, _, predicted), (own_t, _, own), (key_t, kind, dimension) = tokens[query + 1], tokens[query], tokens[key]
        return {
            "present_transition": key_t == t,
            "previous_transition": key_t == t - 1,
            "earlier_transitions": key_t < t - 1,
            "same_dimension_as_predicted": dimension == predicted and key_t < t,
            "same_dimension_as_query": dimension == own and key_t < own_t,
            "past_observations": kind == "observation" and key_t < t,
            "past_actions": kind == "action" and key_t < t,
        }[target]

    masses = AttentionMasses(layout, mask)
    found = masses.of(attention)
    assert found.shape == (2, 5, len(masses.names))
    for index, name in enumerate(masses.names):
        kind, target = name.split("mass_")
        values = []
        for query in range(2 * width - 1, len(mask)):
            skipped = {"same_dimension_as_predicted": tokens[query + 1][1], "same_dimension_as_query": tokens[query][1]}
            if tokens[query + 1][1].startswith(kind.rstrip("_")) and skipped.get(target) != "value":
                keys = [key for key in range(query + 1) if belongs(target, query, key)]
                values.append(attention[..., query, keys].sum(dim=-1).numpy())
        np.testing.assert_allclose(found[..., index], np.mean(values, axis=0), atol=1e-6, err_msg=name)
    assert len(masses.names) == 3 * 5 + 4 + 5 + 2 * 2


def test_the_three_regions_are_all_there_is() -> None:
    masses = AttentionMasses(SMALL, causal_mask(SMALL, 3))
    regions = [
        masses.names.index(f"mass_{name}")
        for name in ("present_transition", "previous_transition", "earlier_transitions")
    ]
    assert masses.uniform[regions].sum() == pytest.approx(1.0)
