"""The README's animation, of an agent with random weights and without OpenGL."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.evaluation.scripted import environment_spec
from tests.evaluation.test_film import Renderer
from tools import plan_animation
from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import UniformDiscretizer
from trajectory_transformer.environments.batch import EnvironmentBatch
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.planner import BeamPlanner


@pytest.fixture
def agent() -> Agent:
    """An agent for Hopper that plans as in the animation, with fewer sequences."""
    torch.manual_seed(0)
    config = TrajectoryTransformerConfig(
        vocab_size=10, block_size=63, observation_dim=11, action_dim=3, transition_dim=16, n_layer=1, n_head=1, n_embd=8
    )
    discretizer = UniformDiscretizer(10).fit(torch.tensor([[-1.0], [1.5]]).expand(2, 16).contiguous())
    settings = PlannerConfig(**{**plan_animation.PLANNER, "beam_width": 8, "discount": 0.99})
    return Agent(BeamPlanner(TrajectoryTransformerModel(config), discretizer, settings), environment_spec("Hopper-v5"))


def test_each_plan_is_shown_while_it_is_made_and_while_it_is_followed(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, shapes, words = plan_animation.find_renderer, [], []

    def find(simulation: Any) -> Any:
        found = real(simulation)
        assert found is not None
        if not hasattr(simulation, "drawn"):
            simulation.drawn = Renderer(found.model)
            simulation.drawn.default_cam_config = {}  # type: ignore[attr-defined]  # a stand-in's
        return simulation.drawn

    def render(batch: EnvironmentBatch, row: int) -> np.ndarray:
        viewer = find(batch.environments[row].unwrapped).viewer
        shapes.append(len(viewer.shapes))
        viewer.shapes.clear()
        return np.zeros((plan_animation.HEIGHT, plan_animation.WIDTH, 3), np.uint8)

    monkeypatch.setattr(plan_animation, "find_renderer", find)
    monkeypatch.setattr(EnvironmentBatch, "render", render)
    monkeypatch.setattr(plan_animation, "captioned", lambda picture, said: (words.append(said), picture)[1])
    monkeypatch.setattr(plan_animation, "SKIPPED", 6)
    monkeypatch.setattr(plan_animation, "PLANS", 1)
    pictures = list(plan_animation.frames(agent, seed=0))
    ahead = [f"planning {number} steps ahead" for number in (2, 4, 6, 8, 10, 12, 14, 14)]
    assert [said[2] for said in words] == [*ahead, "the best plan", "the best plan", *["following the plan"] * 5]
    assert [said[0] for said in words] == [*["step 6"] * 10, *(f"step {step}" for step in range(7, 12))]
    assert all(shapes)
    assert shapes[8] > shapes[-1]  # the nearer the plan's end, the less of it is to come
    assert len(pictures) == 15


def test_a_gif_holds_all_pictures_and_repeats() -> None:
    pictures = [np.full((20, 30, 3), (shade, 0, 0), np.uint8) for shade in (0, 100, 200)]
    with Image.open(io.BytesIO(plan_animation.gif(pictures))) as image:
        assert getattr(image, "n_frames", 1) == 3
        assert image.info["loop"] == 0
        assert image.info["duration"] == plan_animation.MILLISECONDS
        image.seek(1)
        assert abs(np.asarray(image.convert("RGB"))[5, 5, 0].astype(int) - 100) < 8


def test_the_stored_animation_is_small_enough_for_a_front_page() -> None:
    size = (plan_animation.Path(__file__).parents[2] / "docs" / "images" / "plan.gif").stat().st_size
    assert 100_000 < size < 3_000_000
