"""The trained models in ``models`` load and plan."""

from pathlib import Path

import numpy as np
import pytest

from trajectory_transformer import Agent
from trajectory_transformer.evaluation.records import RolloutOptions
from trajectory_transformer.evaluation.rollout import run_episodes

MODELS = sorted((Path(__file__).parent.parent / "models").glob("*.ckpt"))


def test_there_are_models() -> None:
    assert MODELS


@pytest.mark.parametrize("path", MODELS, ids=lambda path: path.stem)
def test_a_shipped_model_acts(path: Path) -> None:
    assert path.stat().st_size < 2_500_000
    agent = Agent.from_checkpoint(path)
    options = RolloutOptions(progress=False, max_episode_steps=10)
    (episode,) = run_episodes(agent, agent.environment, 1, 1, 0, options).episodes
    assert np.isfinite(episode.episode_return)
