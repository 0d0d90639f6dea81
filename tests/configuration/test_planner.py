"""Planner options that have no effect beside the others."""

import re
from dataclasses import replace
from typing import Any

import pytest
import yaml

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.errors import UserError

MEAN = "planner.act=auto, which chose mean for this model"


@pytest.mark.parametrize(
    ("act", "horizon", "plan_freq", "in_vain"),
    [
        ("mean", 2, 1, True),
        ("conditioned", 3, 2, True),
        ("mean", 2, 2, False),
        ("mean", 1, 1, False),
        ("elite", 4, 1, False),
    ],
)
def test_horizons_that_change_no_action(act: str, horizon: int, plan_freq: int, in_vain: bool) -> None:
    assert PlannerConfig(act=act, horizon=horizon, plan_freq=plan_freq).looks_ahead_in_vain == in_vain


@pytest.mark.parametrize("value_r2", [None, 0.2, 0.7, 0.9])
def test_an_objective_of_ones_own_always_chooses_the_action(value_r2: float | None) -> None:
    """A mean of all candidates, whatever their scores, would silently ignore it."""
    for pretrained in (False, True):
        found = PlannerConfig(act="auto").resolve_act(value_r2, by_return=False, pretrained=pretrained)
        if value_r2 == 0.9:
            assert (found.act, found.cdf_act) == ("best", 0.6)
        else:
            assert (found.act, found.cdf_act, found.k_act, found.temperature) == ("elite", None, None, 1.0)


@pytest.mark.parametrize(
    ("options", "value_r2", "by_token", "given", "message"),
    [
        ({"act": "mean"}, None, False, {"top_share": 0.5}, "planner.act=mean, but with planner.act=conditioned"),
        ({"act": "conditioned"}, None, False, {"top_share": 0.5}, None),
        ({"act": "auto"}, 0.7, False, {"top_share": 0.5}, None),
        ({"act": "auto"}, 0.2, False, {"top_share": 0.5}, "planner.act=mean, but with planner.act=conditioned"),
        ({"act": "best"}, None, False, {"elite_share": 0.5}, "planner.act=best, but with planner.act=elite"),
        ({"act": "elite"}, None, False, {"elite_share": 0.5}, None),
        ({"act": "conditioned"}, None, False, {"elite_share": 0.5}, None),
        ({"act": "auto"}, 0.7, False, {"elite_share": 0.5}, None),
        ({"act": "auto"}, 0.2, False, {"temperature": 0.9}, f"{MEAN} and sets temperature itself"),
        ({"act": "auto"}, 0.2, False, {"k_act": 5}, f"{MEAN} and sets k_act itself"),
        ({"act": "auto"}, 0.2, False, {"temperature": 0.6, "cdf_act": None}, None),  # the values that it sets
        ({"act": "auto", "temperature": 0.9}, 0.9, False, {"act": "auto", "temperature": 0.9}, None),  # it takes best
        ({"act": "mean", "temperature": 0.9}, None, False, {"temperature": 0.9}, None),
        ({"name": "imitation"}, None, True, {"discount": 0.9}, "planner=imitation, which tries all tokens"),
        ({"name": "imitation"}, None, True, {"horizon": 2, "beam_width": 5, "decoder": "eager"}, None),
    ],
)
def test_options_without_effect_are_refused(
    options: dict[str, Any], value_r2: float | None, by_token: bool, given: dict[str, Any], message: str | None
) -> None:
    settings = replace(PlannerConfig(**options), **{name: given[name] for name in given if name != "act"})
    found = settings.resolve_act(value_r2, by_return=True, pretrained=False)
    if message is None:
        found.require_used(given, by_token)
        return
    with pytest.raises(UserError) as refused:
        found.require_used(given, by_token)
    assert f"has no effect with {message}" in str(refused.value)
    if name := next((name for name in given if "which chose" in str(refused.value)), None):
        # What the message advises is what auto does, but for the given option.
        advised = dict(re.findall(r"planner\.(\w+)=(\S+)", str(refused.value).rpartition("or add ")[2]))
        parsed = {option: yaml.safe_load(value) for option, value in advised.items()}
        assert replace(settings, **parsed, **{name: getattr(found, name)}) == found
    assert str(refused.value).startswith(f"planner.{next(iter(given))} ")
