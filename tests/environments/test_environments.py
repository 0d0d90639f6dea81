"""Environments are rebuilt as recorded in the data set, refused if they do not fit, and run no foreign code."""

import json
import re
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from trajectory_transformer.environments.batch import EnvironmentBatch, environment_title, make_environments
from trajectory_transformer.environments.make import make_environment, space_spec
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError

from ..evaluation.scripted import DISCRETE_WALK, WALK, environment_spec, maze_spec


def with_json(spec: EnvironmentSpec, **changes: object) -> EnvironmentSpec:
    """``spec`` with fields of its stored JSON replaced."""
    assert spec.spec_json is not None
    return replace(spec, spec_json=json.dumps(json.loads(spec.spec_json) | changes))


def test_arguments_and_time_limit_come_from_the_stored_spec() -> None:
    spec = with_json(environment_spec(WALK, reports_success=False), max_episode_steps=7)
    with make_environments(spec, 2) as batch:
        assert batch.max_episode_steps == 7
        assert [environment.get_wrapper_attr("reports_success") for environment in batch.environments] == [False, False]


@pytest.mark.parametrize(("render", "mode"), [(False, None), (True, "rgb_array")])
def test_the_stored_render_mode_is_not_ours(render: bool, mode: str | None) -> None:
    with make_environments(with_json(environment_spec(WALK), kwargs={"render_mode": "human"}), 1, render) as batch:
        assert batch.environments[0].render_mode == mode


@pytest.mark.parametrize(
    ("env_id", "camera"), [("HalfCheetah-v5", "track"), ("Hopper-v5", None), ("Humanoid-v5", None)]
)
def test_the_camera_follows_a_running_body(env_id: str, camera: str | None) -> None:
    """HalfCheetah's free camera would stay where it starts; Hopper's follows the body that Gymnasium names."""
    made = gymnasium.make(env_id)
    spec = EnvironmentSpec(env_id, None, space_spec(made.observation_space), space_spec(made.action_space))
    made.close()
    with make_environments(spec, 1, render=True) as batch:
        simulation: Any = batch.environments[0].unwrapped
        chosen, model, data = simulation.mujoco_renderer.camera_id, simulation.model, simulation.data
        if camera is None:
            assert chosen is None  # -1 would make it MuJoCo's free camera, which stays where it is
            config, library = simulation.mujoco_renderer.default_cam_config, cast(Any, mujoco)  # stubs lack what is C
            assert config["trackbodyid"] > 0
            assert config["type"] == library.mjtCamera.mjCAMERA_TRACKING
            return
        assert model.camera(chosen).name == camera
        batch.reset(0, seed=0)
        position, velocity = data.qpos.copy(), data.qvel.copy()
        seen = []
        for place in (0.0, 7.0):
            position[0] = place
            simulation.set_state(position, velocity)
            seen.append(data.subtree_com[1][0] - data.cam_xpos[chosen][0])
        assert seen[0] == pytest.approx(seen[1], abs=1e-9)


def test_stored_wrappers_are_applied() -> None:
    wrapped = gymnasium.wrappers.ClipAction(gymnasium.make("Hopper-v5"))
    stored = wrapped.spec
    assert stored is not None
    spec = EnvironmentSpec(
        "Hopper-v5", stored.to_json(), space_spec(wrapped.observation_space), space_spec(wrapped.action_space)
    )
    wrapped.close()
    with make_environments(spec, 1) as batch:
        assert isinstance(batch.environments[0], gymnasium.wrappers.ClipAction)


def test_robotics_environment_is_registered_when_needed_and_leaves_no_file(
    capfd: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with make_environments(maze_spec("PointMaze_UMaze-v3"), 1) as batch:
        batch.reset(0, seed=0)
        assert batch.observations.shape == (1, 8)
        assert np.any(batch.observations)
    assert capfd.readouterr().err == ""
    assert list(tmp_path.iterdir()) == []


def test_our_mazes_are_registered_when_needed_in_a_fresh_process() -> None:
    spec = maze_spec("trajectory_transformer/PairMaze_Medium-v0", pairs="held_out")
    code = (
        "import json, sys; from trajectory_transformer.environments.spec import EnvironmentSpec\n"
        "from trajectory_transformer.environments.batch import make_environments\n"
        "with make_environments(EnvironmentSpec.from_dict(json.load(sys.stdin)), 1) as batch:\n"
        "    print(batch.environments[0].get_wrapper_attr('pair'), batch.max_episode_steps)"
    )
    command = [sys.executable, "-W", "error", "-c", code]
    done = subprocess.run(command, input=json.dumps(spec.to_dict()), capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("((1, 1), (1, 6)) 100\n", "")


def test_a_part_that_does_not_exist_is_a_user_error() -> None:
    spec = maze_spec("trajectory_transformer/PairMaze_UMaze-v0")
    with pytest.raises(UserError, match="pairs='test' is not one of train, held_out, all"):
        make_environments(with_json(spec, kwargs={"pairs": "test"}), 1)


def test_observations_are_flattened_and_selected() -> None:
    spec = replace(environment_spec(WALK), observation_indices=(1,))  # keys in order: clock, position
    with make_environments(spec, 2) as batch:
        batch.reset(1, seed=3)
        assert batch.observations.shape == (2, 1)
        assert batch.observations[0, 0] == 0.0
        expected = np.random.default_rng(3).uniform(-0.5, 0.5)
        assert batch.observations[1, 0] == pytest.approx(expected)


def test_keys_that_the_data_leave_out_are_not_looked_at() -> None:
    spec = environment_spec(WALK)
    kept = spec.observation.under(["position"])
    with make_environments(replace(spec, observation=kept), 1) as batch:
        batch.reset(0, seed=3)
        assert batch.observations.shape == (1, 1)
        assert batch.observations[0, 0] == pytest.approx(np.random.default_rng(3).uniform(-0.5, 0.5))


def test_goals_are_kept_where_the_data_leave_them_out() -> None:
    spec = maze_spec("PointMaze_UMaze-v3")
    with make_environments(replace(spec, observation=spec.observation.under(["observation"])), 1) as batch:
        batch.reset(0, seed=0)
        assert batch.observations.shape == (1, 4)
        assert batch.desired_goals is not None
        assert batch.desired_goals.any()


def test_goals_are_kept_beside_what_the_model_sees() -> None:
    spec = replace(maze_spec("PointMaze_UMaze-v3"), observation_indices=(0, 1, 6, 7))
    twin = make_environment("PointMaze_UMaze-v3")
    with make_environments(spec, 2) as batch:
        assert batch.desired_goals is not None
        assert batch.achieved_goals is not None
        batch.reset(1, seed=3)
        observation, _ = twin.reset(seed=3)
        for _ in range(5):
            np.testing.assert_array_equal(batch.desired_goals[1], observation["desired_goal"].astype(np.float32))
            np.testing.assert_array_equal(batch.achieved_goals[1], observation["achieved_goal"].astype(np.float32))
            batch.step(np.array([[0.0, 0.0], [1.0, -0.5]]), np.array([False, True]))
            observation, *_ = twin.step(np.array([1.0, -0.5], dtype=np.float32))
        assert not batch.desired_goals[0].any()
        before = batch.desired_goals[1].copy()
        batch.reset(1, seed=4)
        assert np.any(batch.desired_goals[1] != before)
    twin.close()


def test_without_goals_there_are_none() -> None:
    with make_environments(environment_spec(WALK), 1) as batch:
        assert batch.desired_goals is None
        assert batch.achieved_goals is None


def test_only_active_rows_are_stepped_and_actions_are_clipped() -> None:
    with make_environments(environment_spec(WALK), 2) as batch:
        batch.reset(0, seed=0)
        batch.reset(1, seed=1)
        before = batch.observations.copy()
        result = batch.step(np.array([[5.0], [5.0]]), np.array([False, True]))
    np.testing.assert_array_equal(batch.observations[0], before[0])
    assert batch.observations[1, 0] == 1.0  # the clock
    np.testing.assert_array_equal(result.actions, [[0.0], [1.0]])
    assert result.rewards[0] == 0.0
    assert result.successes[0] is None


def test_discrete_actions_are_indices() -> None:
    with make_environments(environment_spec(DISCRETE_WALK), 2) as batch:
        batch.reset(0, seed=0)
        batch.reset(1, seed=1)
        result = batch.step(np.array([[6.7], [-3.0]]), np.array([True, True]))
    np.testing.assert_array_equal(result.actions, [[7.0], [5.0]])


def box(*shape: int, low: float = -1.0, path: tuple[str, ...] = ()) -> SpaceSpec:
    size = int(np.prod(shape))
    return SpaceSpec((SpaceLeaf(path, "box", shape, (low,) * size, (1.0,) * size),))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"observation": box(17)}, ["observation", "Hopper-v5", "Box(11,)", "Box(17,)"]),
        ({"observation": box(11, path=("state",))}, ["observation", "state Box(11,)"]),
        ({"action": box(6)}, ["action", "Box(3,)", "Box(6,)"]),
        ({"action": box(3, low=-2.0)}, ["action", "bounds"]),
        ({"action": SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (2.0,)),))}, ["action", "Discrete(0 to 2)"]),
    ],
)
def test_other_spaces_are_refused(changes: dict[str, SpaceSpec], words: list[str]) -> None:
    spec = environment_spec("Hopper-v5")
    changed = EnvironmentSpec(
        spec.env_id, None, changes.get("observation", spec.observation), changes.get("action", spec.action)
    )
    with pytest.raises(UserError, match="does not match that of the data") as caught:
        make_environments(changed, 1)
    assert all(word in str(caught.value) for word in words), caught.value


@pytest.mark.parametrize(
    ("env_id", "entry_point", "words"),
    [
        ("Unheard-v1", None, ["Unheard-v1", "install the package", "environment.modules=[my_module]"]),
        ("Hopper-v99", "gymnasium.envs.mujoco.hopper_v5:HopperEnv", ["Hopper-v99", "gymnasium[mujoco]"]),
        ("minigrid/Maze-v0", "minigrid.envs:Maze", ["minigrid/Maze-v0", "if it is of a package, pip install minigrid"]),
        ("Line-v0", "my_line:Line", ["my_line is not on", "set PYTHONPATH", "environment.modules=[my_line]"]),
        ("FetchFly-v9", "gymnasium_robotics.envs.fetch:Fly", ["FetchFly-v9", "pip install gymnasium-robotics"]),
        ("no_such_package:Thing-v0", None, ["no_such_package"]),
        ("", None, ["names no environment"]),
    ],
)
def test_environment_that_cannot_be_made(env_id: str, entry_point: str | None, words: list[str]) -> None:
    spec = environment_spec(WALK)
    stored = None if entry_point is None else with_json(spec, id=env_id, entry_point=entry_point, kwargs={}).spec_json
    with pytest.raises(UserError) as caught:
        make_environments(replace(spec, env_id=env_id, spec_json=stored), 1)
    assert all(word in str(caught.value) for word in words), caught.value


def test_of_what_is_importable_no_package_is_to_be_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_environments.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    unknown = with_json(environment_spec(WALK), id="Own-v0", entry_point="own_environments:Own", kwargs={})
    with pytest.raises(
        UserError, match=r"if your module own_environments .* environment\.modules=\[own_environments\]"
    ):
        make_environments(replace(unknown, env_id="Own-v0"), 1)
    assert "own_environments" not in sys.modules
    broken = with_json(environment_spec(WALK), kwargs={"unheard_of": 1}, entry_point="own_environments:Own")
    with pytest.raises(UserError, match=r"unexpected keyword argument 'unheard_of' [^(]*\(\{'unheard_of': 1\}\)$"):
        make_environments(broken, 1)


def test_wrong_argument_is_a_user_error() -> None:
    with pytest.raises(UserError, match=r"'evaluation-tests/Walk-v0' cannot be made.*unheard_of"):
        make_environments(with_json(environment_spec(WALK), kwargs={"unheard_of": 1}), 1)


def test_unreadable_spec_is_a_user_error() -> None:
    with pytest.raises(UserError, match="stored spec"):
        make_environments(replace(environment_spec(WALK), spec_json="{"), 1)


def test_a_stored_entry_point_is_never_called(tmp_path: Path) -> None:
    target = tmp_path / "made-by-the-checkpoint"
    hostile = with_json(environment_spec(WALK), entry_point="os:system", kwargs={"command": f"touch {target}"})
    with pytest.raises(UserError, match="cannot be made"):
        make_environments(hostile, 1)
    assert not target.exists()


@pytest.mark.parametrize("entry_point", ["os:system", "gymnasium.wrappers.common:deepcopy", "gymnasiumevil:Wrapper"])
def test_a_stored_wrapper_is_only_ever_a_gymnasium_wrapper(entry_point: str) -> None:
    wrapper = {"name": "Wrapper", "entry_point": entry_point, "kwargs": {}}
    with pytest.raises(UserError, match="is not one of Gymnasium's"):
        make_environments(with_json(environment_spec(WALK), additional_wrappers=[wrapper]), 1)


@pytest.mark.parametrize(
    "entry_point",
    [
        "stable_baselines3.common.monitor:Monitor",
        "gymnasium.wrappers.common:RecordEpisodeStatistics",
        "gymnasium.wrappers.rendering:RecordVideo",
        "minari.data_collector.data_collector:DataCollector",
    ],
)
def test_recorders_are_left_out_with_one_line(entry_point: str, caplog: pytest.LogCaptureFixture) -> None:
    """Minari's mujoco/humanoidstandup/medium-v0 has Stable-Baselines3's Monitor."""
    names = [entry_point, "gymnasium.wrappers.common:OrderEnforcing", entry_point]
    wrappers = [{"name": name.rpartition(":")[2], "entry_point": name, "kwargs": None} for name in names]
    with make_environments(with_json(environment_spec(WALK), additional_wrappers=wrappers), 2) as batch:
        outer: Any = batch.environments[0]
        assert isinstance(outer, gymnasium.wrappers.OrderEnforcing)
        assert isinstance(outer.env, gymnasium.wrappers.TimeLimit)
    said = [record.getMessage() for record in caplog.records]
    assert said == [f"environment '{WALK}' is made without its wrapper '{entry_point}', which only records"]


def test_other_wrappers_are_named_with_the_way_on() -> None:
    wrapper = {"name": "Monitor", "entry_point": "my_package.monitor:Monitor", "kwargs": {}}
    with pytest.raises(UserError, match=r"'my_package\.monitor:Monitor'.* train with evaluation\.episodes=0"):
        make_environments(with_json(environment_spec(WALK), additional_wrappers=[wrapper]), 1)


def test_title_falls_back_to_the_stored_spec() -> None:
    spec = environment_spec(WALK)
    assert environment_title(spec) == environment_title(replace(spec, env_id="")) == WALK
    assert environment_title(replace(spec, env_id="", spec_json=None)) == "unknown"


def test_a_file_does_not_choose_what_is_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Gymnasium imports what stands before the colon of an id."""
    (tmp_path / "chosen_by_a_file.py").write_text("raise SystemExit")
    monkeypatch.syspath_prepend(tmp_path)
    spec = environment_spec(WALK)
    for named in (
        replace(spec, env_id="chosen_by_a_file:Walk-v0", spec_json=None),
        replace(with_json(spec, id="chosen_by_a_file:Walk-v0"), env_id=""),
    ):
        with pytest.raises(UserError, match="must not choose what is imported"):
            make_environments(named, 1)
    assert "chosen_by_a_file" not in sys.modules


class Told(gymnasium.Env):
    """Returns the values in ``changes`` instead of the right ones: parts by name, or whole results."""

    def __init__(self, changes: dict[str, Any] | None = None, action_space: Any = None) -> None:
        self.changes = changes or {}
        self.observation_space = gymnasium.spaces.Box(-9.0, 9.0, (2,))
        self.action_space = action_space or gymnasium.spaces.Box(0, 20, (1,), np.int64)
        self.given: list[Any] = []

    def reset(self, **_: Any) -> Any:
        at_reset = self.changes.get("first", np.zeros(2, np.float32))
        return self.changes.get("reset", (at_reset, self.changes.get("first_info", {})))

    def step(self, action: Any) -> Any:
        self.given.append(action)
        if "error" in self.changes:
            raise self.changes["error"]
        parts = {"observation": np.ones(2), "reward": 1.0, "terminated": False, "truncated": False, "info": {}}
        return self.changes.get("step", tuple((parts | self.changes)[name] for name in parts))


def told(**changes: Any) -> EnvironmentBatch:
    environment = Told(changes)
    spaces = space_spec(environment.observation_space), space_spec(environment.action_space)
    return EnvironmentBatch([environment], EnvironmentSpec("Told-v0", None, *spaces))


def test_a_trial_steps_with_a_sampled_and_with_a_decoded_action() -> None:
    batch = told()
    batch.try_out(np.array([3.7]))
    environment: Any = batch.environments[0]
    sampled, decoded = environment.given
    assert environment.action_space.contains(sampled)
    assert environment.action_space.contains(decoded)
    assert decoded.tolist() == [4]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"error": AssertionError("integer action expected")},
            [r"step\(array", "AssertionError: integer", r"\.py:\d+"],
        ),
        ({"reset": np.zeros(2)}, [r"reset\(seed=0\) returns a ndarray, expected \(observation, info\)"]),
        ({"step": (np.zeros(2), 1.0, False, {})}, ["returns 4 values, expected .*terminated, truncated"]),
        ({"reward": None}, ["returns an invalid result: its reward is None, which is not a number"]),
        ({"reward": np.zeros(2)}, ["its reward is array.*, which is not a number"]),
        ({"reward": np.nan}, ["its reward is nan"]),
        ({"terminated": "no"}, ["its terminated is 'no', which is not a number"]),
        ({"info": None}, ["its info is None, which is not a dict"]),
        ({"first": np.array([0.0, np.nan])}, ["reset.* its observation has NaN or infinite values"]),
        ({"observation": np.zeros(3)}, [r"its observation does not fit its space: .* shape \(3,\), expected \(2,\)"]),
        ({"observation": {"a": np.zeros(2)}}, ["returns "]),
    ],
    ids=str,
)
def test_what_is_not_as_gymnasium_has_it_is_refused_in_the_trial(changes: dict[str, Any], words: list[str]) -> None:
    with pytest.raises(UserError, match=r"^environment 'Told-v0': .*evaluation\.episodes=0$") as caught:
        told(**changes).try_out(np.array([3.0]))
    assert all(re.search(word, str(caught.value)) for word in words), caught.value


class Talking(Told):
    """Adds a word to its observation, which cannot be a token."""

    def __init__(self) -> None:
        super().__init__(
            {"first": {"seen": np.zeros(2), "word": "go"}, "observation": {"seen": np.ones(2), "word": ""}}
        )
        self.observation_space = gymnasium.spaces.Dict(
            {"seen": gymnasium.spaces.Box(-9.0, 9.0, (2,)), "word": gymnasium.spaces.Text(3)}
        )


def test_an_environment_that_says_words_is_acted_in_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "Talking-v0", EnvSpec("Talking-v0", f"{__name__}:Talking"))
    talking = Talking()
    kept = space_spec(talking.observation_space).under(["seen"])
    spec = EnvironmentSpec("Talking-v0", None, kept, space_spec(talking.action_space))
    with make_environments(spec, 1) as batch:
        batch.try_out(np.array([3.0]))
        assert batch.observations.tolist() == [[1.0, 1.0]]


def test_rewards_and_flags_as_arrays_of_one_element_are_taken() -> None:
    batch = told(reward=np.array([0.5]), terminated=np.array([True]), truncated=np.bool_(False))
    batch.try_out(np.array([3.0]))
    result = batch.step(np.array([[3.0]]), np.array([True]))
    assert (result.rewards[0], result.terminated[0], result.truncated[0]) == (0.5, True, False)


def test_the_environments_own_type_of_actions_is_used_with_earlier_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(gymnasium.registry, "Told-v0", EnvSpec("Told-v0", f"{__name__}:Told"))
    spec = told().spec
    (leaf,) = spec.action.leaves
    earlier = replace(spec, action=SpaceSpec((replace(leaf, dtype=""),)))
    with make_environments(earlier, 1) as batch:
        batch.reset(0, seed=0)
        batch.step(np.array([[3.7]]), np.array([True]))
        assert batch.environments[0].unwrapped.given[0].tolist() == [4]  # pyright: ignore[reportAttributeAccessIssue]
