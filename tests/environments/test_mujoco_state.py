"""States of MuJoCo environments from their observations."""

from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest

from tests.evaluation.scripted import environment_spec
from trajectory_transformer.environments.mujoco_state import hidden_positions, states_of


@pytest.mark.parametrize(
    ("env_id", "hidden"), [("Hopper-v5", 1), ("HalfCheetah-v5", 1), ("Walker2d-v5", 1), ("Humanoid-v5", 2)]
)
def test_observations_give_back_the_state_that_made_them(env_id: str, hidden: int) -> None:
    """Except for the position along the way, which is integrated from the velocities at the ends of steps."""
    spec, environment = environment_spec(env_id), gymnasium.make(env_id)
    simulation: Any = environment.unwrapped
    first, _ = environment.reset(seed=1)
    assert hidden_positions(simulation, first, spec) == hidden
    begin = simulation.data.qpos.copy()
    observations, positions, velocities = [first], [begin], [simulation.data.qvel.copy()]
    environment.action_space.seed(0)
    for _ in range(5):
        observation, *_ = environment.step(0.3 * environment.action_space.sample())
        observations.append(observation)
        positions.append(simulation.data.qpos.copy())
        velocities.append(simulation.data.qvel.copy())
    states = states_of(np.array(observations), hidden, simulation)
    for (position, velocity), real_position, real_velocity in zip(states, positions, velocities, strict=True):
        np.testing.assert_allclose(position[hidden:], real_position[hidden:], atol=1e-6)
        np.testing.assert_allclose(velocity, np.clip(real_velocity, -10, 10), atol=1e-6)
    assert (states[0][0][:hidden] == 0).all()
    travelled = np.cumsum([velocity[:hidden] for velocity in velocities[1:]], axis=0)[-1] * simulation.dt
    np.testing.assert_allclose(states[-1][0][:hidden], travelled, atol=1e-6)
    environment.close()


def test_where_observations_do_not_say_the_state() -> None:
    spec, environment = environment_spec("Hopper-v5"), gymnasium.make("Hopper-v5")
    observation, _ = environment.reset(seed=0)
    selected = replace(spec, observation_indices=tuple(range(11)))
    assert hidden_positions(environment.unwrapped, observation, selected) is None
    assert hidden_positions(environment.unwrapped, observation[::-1], spec) is None
    assert hidden_positions(environment.unwrapped, observation[:7], spec) is None
    environment.close()
