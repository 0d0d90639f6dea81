import json

import gymnasium as gym
import numpy as np
import pytest

from trajectory_transformer.environments.make import space_spec
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf


def maze_like(indices: tuple[int, ...] | None = None) -> EnvironmentSpec:
    goal = gym.spaces.Box(-np.inf, np.inf, (2,), np.float64)
    body = gym.spaces.Box(-np.inf, np.inf, (4,), np.float64)
    observation = gym.spaces.Dict({"observation": body, "achieved_goal": goal, "desired_goal": goal})
    action = gym.spaces.Box(-1.0, 1.0, (2,), np.float32)
    return EnvironmentSpec("PointMaze_UMaze-v3", "{}", space_spec(observation), space_spec(action), indices)


def test_survives_json_with_infinite_bounds():
    spec = maze_like((0, 3))
    assert EnvironmentSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec


def test_observations_are_flattened_in_the_documented_order_then_selected():
    values = {
        "observation": np.array([[5, 6, 7, 8]]),
        "achieved_goal": np.array([[1, 2]]),
        "desired_goal": np.array([[3, 4]]),
    }
    full, selected = maze_like(), maze_like((7, 2))
    assert (full.observation_dim, selected.observation_dim, full.action_dim) == (8, 2, 2)
    np.testing.assert_array_equal(full.observations(values), [[1, 2, 3, 4, 5, 6, 7, 8]])
    np.testing.assert_array_equal(selected.observations(values), [[8, 3]])
    assert full.observations(values).dtype == np.float32


def test_names_each_dimension_once():
    names = maze_like().observation.names()
    assert names[:4] == ["achieved_goal[0]", "achieved_goal[1]", "desired_goal[0]", "desired_goal[1]"]
    assert len(set(names)) == 8


def test_flatten_refuses_a_missing_key_and_a_wrong_shape():
    spec = maze_like().observation
    with pytest.raises(KeyError, match="achieved_goal"):
        spec.flatten({"observation": np.zeros((1, 4)), "desired_goal": np.zeros((1, 2))})
    with pytest.raises(ValueError, match=r"desired_goal has shape \(3,\), expected \(2,\)"):
        spec.flatten(
            {"observation": np.zeros((1, 4)), "achieved_goal": np.zeros((1, 2)), "desired_goal": np.zeros((1, 3))}
        )


def test_box_actions_are_clipped_and_reshaped():
    low, high = (np.array(bound, dtype=np.float32) for bound in ([[-1], [0]], [[1], [2]]))
    spec = space_spec(gym.spaces.Box(low, high))
    actions = spec.to_environment(np.array([[-3.0, 1.5], [0.5, 9.0]]))
    np.testing.assert_array_equal(actions, [[[-1.0], [1.5]], [[0.5], [2.0]]])
    assert actions.dtype == np.float32


def test_discrete_actions_are_rounded_to_indices_of_the_space():
    spec = space_spec(gym.spaces.Discrete(3, start=1))
    actions = spec.to_environment(np.array([[0.2], [1.6], [7.0]]))
    assert actions.tolist() == [1, 2, 3]
    assert actions.dtype == np.int64


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64, np.uint8, np.int32])
def test_box_actions_keep_the_type_of_their_space(dtype: type):
    box = gym.spaces.Box(0, 20, (2,), dtype)
    spec = space_spec(box)
    actions = spec.to_environment(np.array([[7.6, 2.2], [-3.0, 99.0]], dtype=np.float32))
    assert actions.dtype == dtype
    assert all(box.contains(action) for action in actions)
    whole = np.issubdtype(dtype, np.integer)
    np.testing.assert_allclose(actions, [[8.0, 2.0] if whole else [7.6, 2.2], [0.0, 20.0]], rtol=1e-6)


def test_types_survive_json_and_are_not_missed_in_earlier_checkpoints():
    spec = EnvironmentSpec(
        "", None, space_spec(gym.spaces.Discrete(3)), space_spec(gym.spaces.Box(0, 5, (1,), np.int64))
    )
    stored = json.loads(json.dumps(spec.to_dict()))
    assert EnvironmentSpec.from_dict(stored).action.to_environment(np.array([[1.7]])).dtype == np.int64
    for leaf in (stored["observation"]["leaves"][0], stored["action"]["leaves"][0]):
        del leaf["dtype"]
    old = EnvironmentSpec.from_dict(stored)
    assert old == spec
    assert old.observation.to_environment(np.array([[1.7]])).tolist() == [2]
    assert old.action.to_environment(np.array([[1.7]])).dtype == np.float32


@pytest.mark.parametrize("dtype", ["O", "U8", "f4,f4", "no such type"])
def test_a_type_without_numbers_is_refused(dtype: str):
    with pytest.raises((ValueError, TypeError)):
        SpaceLeaf((), "box", (1,), (0.0,), (1.0,), dtype)


def test_dimensions_of_whole_numbers():
    box, integers = gym.spaces.Box(-1.0, 1.0, (2,)), gym.spaces.Box(0, 5, (1,), np.int16)
    spec = space_spec(gym.spaces.Dict({"a": box, "b": gym.spaces.Discrete(3), "c": integers}))
    assert spec.discrete.tolist() == [False, False, True, False]
    assert spec.whole.tolist() == [False, False, True, True]
