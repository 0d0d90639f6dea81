"""Checkpoints written by a704477, before learners, objectives and sources were classes, act as before."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trajectory_transformer.app.experiment import load_agent
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.learners.ensemble_network import read_ensemble

FOLDER = Path(__file__).parent / "golden" / "version_0_1"
ACTIONS = np.load(FOLDER / "actions.npz", allow_pickle=False)


@pytest.mark.parametrize("case", ["transformer_return", "transformer_imitation", "transformer_critic", "iql_policy"])
def test_they_act_as_they_did(case: str) -> None:
    learner, planner = case.split("_")
    options: dict[str, Any] = {"name": planner, "decoder": "eager"} if learner == "transformer" else {}
    if planner == "critic":
        options["objective"] = {"critic": str(FOLDER / "iql.ckpt")}
    agent = load_agent(FOLDER / f"{learner}.ckpt", "cpu", options).agent
    agent.reset(3)
    for observations, expected in zip(ACTIONS["observations"], ACTIONS[case], strict=True):
        actions = agent.act(observations)
        np.testing.assert_allclose(actions, expected, atol=1e-6)
        agent.observe(actions, np.zeros(3), np.zeros(3, dtype=bool))


def test_an_ensemble_is_read() -> None:
    assert read_ensemble(Checkpoint.read(FOLDER / "ensemble.ckpt")).num_members == 5
