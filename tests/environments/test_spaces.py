import gymnasium as gym
import numpy as np
import pytest

from trajectory_transformer.environments.make import space_spec
from trajectory_transformer.errors import UserError


def test_box_is_one_leaf_with_a_bound_for_each_flattened_dimension():
    spec = space_spec(gym.spaces.Box(np.array([[-1, -2], [-3, -np.inf]]), np.array([[1, 2], [3, 4]]), dtype=np.float64))
    (leaf,) = spec.leaves
    assert (leaf.path, leaf.kind, leaf.shape) == ((), "box", (2, 2))
    assert leaf.low == (-1.0, -2.0, -3.0, -np.inf)
    assert leaf.high == (1.0, 2.0, 3.0, 4.0)


def test_box_without_axes_is_one_dimension():
    spec = space_spec(gym.spaces.Box(0.0, 1.0, ()))
    assert spec.size == 1
    np.testing.assert_array_equal(spec.flatten(np.array([0.25, 0.5])), [[0.25], [0.5]])


def test_discrete_is_one_dimension_bounded_by_its_first_and_last_index():
    spec = space_spec(gym.spaces.Discrete(3, start=5))
    (leaf,) = spec.leaves
    assert (leaf.kind, leaf.shape, leaf.low, leaf.high) == ("discrete", (), (5.0,), (7.0,))
    np.testing.assert_array_equal(spec.flatten(np.array([5, 7])), [[5.0], [7.0]])


def test_dict_keys_are_taken_alphabetically_depth_first():
    box = gym.spaces.Box(-1.0, 1.0, (2,))
    inner = gym.spaces.Dict([("z", gym.spaces.Discrete(4)), ("a", box)])
    spec = space_spec(gym.spaces.Dict([("observation", box), ("achieved", inner)]))
    assert spec.names() == ["achieved.a[0]", "achieved.a[1]", "achieved.z", "observation[0]", "observation[1]"]
    flat = spec.flatten({"observation": np.array([[1, 2]]), "achieved": {"z": np.array([3]), "a": np.array([[4, 5]])}})
    np.testing.assert_array_equal(flat, [[4, 5, 3, 1, 2]])


@pytest.mark.parametrize(
    ("space", "message"),
    [
        (gym.spaces.MultiBinary(3), "the space is a MultiBinary space"),
        (gym.spaces.Dict({"a": gym.spaces.Dict({"mission": gym.spaces.Text(8)})}), "key 'a.mission' is a Text space"),
        (gym.spaces.Tuple((gym.spaces.Discrete(2),)), "the space is a Tuple space"),
        (gym.spaces.Dict({}), "no dimension"),
    ],
)
def test_other_spaces_are_refused_by_name(space: gym.Space, message: str):
    with pytest.raises(UserError, match=message):
        space_spec(space)
