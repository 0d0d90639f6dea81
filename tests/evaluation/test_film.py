"""Frames with plans: ghosts are at predicted positions, text is correct, and episodes do not change."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gymnasium
import mujoco
import numpy as np
import pytest

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.environments.batch import EnvironmentBatch, make_environments
from trajectory_transformer.evaluation import film as module
from trajectory_transformer.evaluation.film import BEAMS, GHOSTS, BodyView, Foresight, MazeView, PlanFilm, captioned
from trajectory_transformer.evaluation.ghosts import GhostScene, find_renderer
from trajectory_transformer.evaluation.records import RolloutOptions
from trajectory_transformer.evaluation.rollout import run_episodes

from .scripted import WALK, ScriptedAgent, maze_spec
from .test_real_agent import untrained_agent

MUJOCO: Any = mujoco  # whose stubs leave out what is written in C


class Viewer:
    """Notes the shapes of the next picture."""

    def __init__(self) -> None:
        self.shapes: list[dict[str, Any]] = []
        self.scn = SimpleNamespace(flags=np.ones(20))

    def add_marker(self, **shape: Any) -> None:
        self.shapes.append(shape)


class Renderer:
    """A ``MujocoRenderer`` that draws nothing, so that no OpenGL is needed."""

    def __init__(self, model: Any) -> None:
        self.model, self.viewer, self.max_geom = model, None, 1000

    def render(self, mode: str) -> None:
        assert mode == "rgb_array"
        self.viewer = Viewer()


@pytest.fixture
def renderers(monkeypatch: pytest.MonkeyPatch) -> list[Renderer]:
    """The requested renderers; pictures of environments are grey."""
    made: dict[int, Renderer] = {}

    def find(simulation: Any) -> Renderer | None:
        real = find_renderer(simulation)
        return None if real is None else made.setdefault(id(real), Renderer(real.model))

    monkeypatch.setattr(module, "find_renderer", find)
    monkeypatch.setattr(EnvironmentBatch, "render", lambda *_: np.full((480, 480, 3), 90, np.uint8))
    return made.values()  # pyright: ignore[reportReturnType] - a list of what is to come


def shapes_of(scene: GhostScene) -> list[dict[str, Any]]:
    return scene._renderer.viewer.shapes


@pytest.mark.parametrize("env_id", ["Hopper-v5", "HalfCheetah-v5", "Humanoid-v5"])
def test_a_ghost_stands_where_the_body_would(env_id: str) -> None:
    with gymnasium.make(env_id) as environment:
        environment.reset(seed=0)
        simulation: Any = environment.unwrapped
        model, data = simulation.model, simulation.data
        scene = GhostScene(Renderer(model))
        before = data.qpos.copy(), data.geom_xpos.copy()
        moved = data.qpos + 0.1
        scene.add_body(moved, (0.0, 0.5, 1.0, 0.25))
        np.testing.assert_array_equal(data.qpos, before[0])  # it is another body that moves
        np.testing.assert_array_equal(data.geom_xpos, before[1])
        simulation.set_state(moved, data.qvel)
        bodies = [geom for geom in range(model.ngeom) if model.geom_bodyid[geom] > 0]
        assert len(shapes_of(scene)) == len(bodies) > 3
        for shape, geom in zip(shapes_of(scene), bodies, strict=True):
            np.testing.assert_allclose(shape["pos"], data.geom_xpos[geom], atol=1e-9)
            np.testing.assert_allclose(shape["mat"], data.geom_xmat[geom], atol=1e-9)
            np.testing.assert_array_equal(shape["size"], model.geom_size[geom])
            assert shape["type"] == model.geom_type[geom]
            np.testing.assert_allclose(shape["rgba"], [0.0, 0.5, 1.0, 0.25])
        np.testing.assert_allclose(scene.torso(moved), data.xpos[1], atol=1e-9)


def test_a_line_reaches_from_point_to_point() -> None:
    model = MUJOCO.MjModel.from_xml_string("<mujoco/>")
    scene = GhostScene(Renderer(model))
    points = np.array([[0.0, 0.0, 1.0], [0.0, 3.0, 5.0], [0.0, 3.0, 5.0], [1.0, 3.0, 5.0]])
    scene.add_line(points, 0.1, (0.0, 0.0, 0.0, 1.0))
    first, last = shapes_of(scene)  # nothing between two equal points
    np.testing.assert_allclose(first["pos"], [0.0, 1.5, 3.0])
    np.testing.assert_allclose(first["size"][:2], [0.1, 2.5])
    np.testing.assert_allclose(first["mat"].reshape(3, 3)[:, 2], [0.0, 0.6, 0.8], atol=1e-9)
    np.testing.assert_allclose(last["mat"].reshape(3, 3)[:, 2], [1.0, 0.0, 0.0], atol=1e-9)


class Bodies:
    """A scene that notes the positions of what is added."""

    def __init__(self) -> None:
        self.bodies: list[tuple[np.ndarray, float]] = []
        self.lines: list[np.ndarray] = []
        self.dots: list[np.ndarray] = []

    def add_body(self, position: np.ndarray, color: tuple[float, ...]) -> None:
        self.bodies.append((position, color[3]))

    def torso(self, position: np.ndarray) -> np.ndarray:
        return position[:3]

    def add_line(self, points: np.ndarray, radius: float, color: Any) -> None:
        self.lines.append(points)

    def add_dot(self, place: np.ndarray, radius: float, color: Any) -> None:
        self.dots.append(place)


def as_scene(scene: Bodies) -> Any:
    return scene


def test_what_is_drawn_of_a_plan_is_still_to_come() -> None:
    """The observations of a real episode, used as a plan, give back its positions."""
    with gymnasium.make("Hopper-v5") as environment:
        first, _ = environment.reset(seed=3)
        simulation: Any = environment.unwrapped
        scene = Bodies()
        view = BodyView(as_scene(scene), simulation, hidden=1)
        environment.action_space.seed(0)
        for _ in range(20):  # so that it has come some way
            first, *_ = environment.step(environment.action_space.sample())
        origin, observations, positions = view.origin(), [first], [simulation.data.qpos.copy()]
        for _ in range(9):
            observations.append(environment.step(environment.action_space.sample())[0])
            positions.append(simulation.data.qpos.copy())
        chosen = np.array(observations)
        plan = Foresight(chosen, chosen[None, [0, 4, 8]])
        for age, drawn in ((0, (9, 7, 5, 3)), (6, (9, 8, 7)), (8, (9,)), (9, ()), (30, ())):
            scene.bodies.clear()
            scene.lines.clear()
            view.add(plan, origin, age)
            ghosts = [position for position, opacity in scene.bodies if opacity > 0.2]
            assert len(ghosts) == len(drawn) <= GHOSTS
            for ghost, index in zip(ghosts, sorted(drawn), strict=True):
                np.testing.assert_allclose(ghost[1:], positions[index][1:], atol=1e-5)
                assert abs(ghost[0] - positions[index][0]) < 0.02  # integrated
            assert len(scene.bodies) - len(ghosts) == (1 if drawn else 0)  # the other sequence's end
            assert len(scene.lines[0]) == max(len(chosen) - age, 0)


def test_the_way_through_a_maze_is_drawn_where_the_observation_holds_it(renderers: list[Renderer]) -> None:
    # 0 and 1 are the position, as are 4 and 5; 2 and 3 the goal; 6 and 7 the velocity
    for first, seen in ((0, None), (2, (2, 3, 4, 5)), (None, (2, 3, 6, 7))):
        spec = replace(maze_spec("PointMaze_UMaze-v3", max_episode_steps=3), observation_indices=seen)
        agent = ScriptedAgent(spec, PlannerConfig(horizon=4))
        agent.reset(1, [0])
        with make_environments(spec, 1, render=True) as batch:
            film = PlanFilm(agent, batch)
            batch.reset(0, 5)
            film.begin(0)
            agent.act(batch.observations, np.array([True]))
            film.planned(0, 0)
            film.frame(0, 0, 0.0, ended=False)
        view = film._views[0]
        if first is None:
            assert view is None
            continue
        assert isinstance(view, MazeView)
        shapes = shapes_of(view._scene)
        dots = np.array([shape["pos"] for shape in shapes if shape["type"] == MUJOCO.mjtGeom.mjGEOM_SPHERE])
        np.testing.assert_allclose(dots[:, :2], agent.last_plan.observations[0, 1:, first : first + 2], rtol=1e-5)
        assert len([shape for shape in shapes if shape["type"] == MUJOCO.mjtGeom.mjGEOM_CAPSULE]) == 3


@pytest.mark.parametrize("env_id", ["Hopper-v5", "PointMaze_UMaze-v3", WALK])
def test_films_change_nothing_that_is_played(renderers: list[Renderer], env_id: str) -> None:
    class Recorder:
        frames = 0

        def capture(self, episode: int, step: int, render: Callable[[], object]) -> None:
            self.frames += 1
            picture = np.asarray(render())
            assert picture.shape[1] == 480
            assert picture.shape[0] > 480

    spec = maze_spec(env_id, max_episode_steps=12)
    recorder, quiet = Recorder(), RolloutOptions(progress=False)
    plain, filmed = (
        run_episodes(ScriptedAgent(spec, PlannerConfig(horizon=5, plan_freq=2)), spec, 3, 2, 9, options).episodes
        for options in (quiet, replace(quiet, recorder=recorder))
    )
    assert plain == filmed
    assert recorder.frames == sum(episode.length + 1 for episode in filmed)
    drawn = [renderer.viewer.shapes for renderer in renderers if renderer.viewer is not None]
    assert [bool(shapes) for shapes in drawn] == [env_id != WALK] * len(drawn)


def test_the_words_say_step_return_and_what_the_plan_predicts(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[list[str]] = []
    monkeypatch.setattr(module, "captioned", lambda picture, words: (said.append(words), picture)[1])
    agent = untrained_agent()
    predicted: list[float] = []
    act = agent.act

    def noting(*given: Any, **named: Any) -> Any:
        action = act(*given, **named)
        predicted.append(float(agent.last_plan.predicted_return(0.99)[0]))
        return action

    monkeypatch.setattr(agent, "act", noting)
    recorder: Any = SimpleNamespace(capture=lambda episode, step, render: render())
    record = run_episodes(agent, agent.environment, 1, 1, 3, RolloutOptions(progress=False, recorder=recorder))
    (episode,) = record.episodes
    assert agent.settings.plan_freq == 2
    assert [words[0] for words in said] == [f"step {step}" for step in range(episode.length + 1)]
    assert said[0][1] == "return so far 0.0"
    assert said[-1][1] == f"return so far {episode.episode_return:.1f}"
    assert said[0][2] == f"plan: {predicted[0]:.1f} to come"
    assert said[1][2] == f"plan 1 step old: {predicted[1]:.1f} to come"
    assert said[-1][2] == ""  # of an episode that has ended nothing is to come


@pytest.mark.parametrize(("width", "lines"), [(480, 1), (200, 3)])
def test_words_stand_below_the_picture(width: int, lines: int) -> None:
    picture = np.random.default_rng(0).integers(0, 256, (100, width, 3)).astype(np.uint8)
    framed = captioned(picture, ["step 1", "return so far -12.5", "plan: 3.0 to come"])
    np.testing.assert_array_equal(framed[:100], picture)
    assert framed.shape == captioned(picture, ["step 1000", "", ""]).shape  # a film's frames are all of one size
    assert framed.dtype == np.uint8
    inked = (framed[100:] < 128).any(axis=(1, 2))
    assert np.diff(np.flatnonzero(np.diff(inked.astype(int)) == 1)).size + 1 >= lines


def test_beams_are_drawn_beside_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = untrained_agent()
    with make_environments(agent.environment, 1) as batch:
        film = PlanFilm(agent, batch)
        batch.reset(0, 0)
        agent.reset(1, [0])
        agent.act(batch.observations)
        plan = film._foresight(0)
    assert plan is not None
    assert plan.beams.shape == (min(BEAMS, 4) - 1, 3, 2)
    np.testing.assert_array_equal(plan.beams[:, 0], np.broadcast_to(plan.chosen[0], (3, 2)))
    np.testing.assert_array_equal(plan.beams[:, 1:], agent.beams(0, 4)[1:])
