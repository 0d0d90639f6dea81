"""Environments rebuilt from what a checkpoint says of them, and stepped side by side."""

import contextlib
import importlib.util
import json
import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from ..errors import EXITS_BY_SIGNAL, UserError
from .make import make_environment, space_spec
from .spec import EnvironmentSpec, SpaceLeaf, SpaceSpec

log = logging.getLogger(__name__)
# Wrappers are rebuilt from these packages only: a checkpoint must not choose what code runs.
_WRAPPER_PACKAGES = ("gymnasium.", "gymnasium_robotics.")


@dataclass(frozen=True)
class StepResult:
    """Outcome of one step of the active rows; rows that were not active hold 0, False and no info."""

    actions: np.ndarray  # (env, action_dim) float32, as executed: clipped to the bounds, or an index
    rewards: np.ndarray  # (env,) float64
    terminated: np.ndarray  # (env,) bool
    truncated: np.ndarray  # (env,) bool
    infos: list[Mapping[str, Any]]  # one for each row


class EnvironmentFailure(Exception):
    """What an environment did in place of a step, of a reset or of drawing.

    Attributes:
        row: which environment.
        reason: one line.
        own: what its own code raised, or None where what it returned makes no sense.
    """

    def __init__(self, row: int, reason: str, own: BaseException | None = None) -> None:
        super().__init__(reason)
        self.row, self.reason, self.own = row, " ".join(reason.split()), own


class EnvironmentBatch:
    """Environments of one kind stepped one after the other, each row reset with its own seed when the caller says so.

    Gymnasium's ``SyncVectorEnv`` resets with seeds of its own, or refuses to step while a row is finished.

    Attributes:
        observations: (env, observation_dim) float32, the latest of each row; 0 before a row's first reset.
        desired_goals, achieved_goals: (env, goal_dim) float32, the latest goal of each row and what it has achieved,
            such as its position, whether the model sees them or not; None where observations hold none.
    """

    def __init__(self, environments: list[gymnasium.Env], spec: EnvironmentSpec) -> None:
        self.environments = environments
        self.spec = spec
        self.observations = np.zeros((len(environments), spec.observation_dim), dtype=np.float32)
        self.desired_goals, self.achieved_goals = self._goals("desired_goal"), self._goals("achieved_goal")

    def __enter__(self) -> "EnvironmentBatch":
        return self

    def __exit__(self, *_: object) -> None:
        for environment in self.environments:
            try:
                environment.close()
            except Exception as error:  # whatever a third party's code raises; what was done before counts
                log.warning("closing environment '%s' failed: %s", environment_title(self.spec), error)

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated, or None where no limit is declared."""
        spec = self.environments[0].spec
        return None if spec is None else spec.max_episode_steps

    def limit(self, max_episode_steps: int) -> None:
        """Truncate episodes after so many steps."""
        self.environments = [TimeLimit(environment, max_episode_steps) for environment in self.environments]

    def reset(self, row: int, seed: int) -> None:
        """Begin an episode in ``row``, wholly determined by ``seed``; may raise :class:`EnvironmentFailure`."""
        with _blaming(row):
            observation, _ = self.environments[row].reset(seed=seed)
        self._look(row, observation)

    def render(self, row: int) -> Any:
        """A picture of ``row``; may raise :class:`EnvironmentFailure`."""
        with _blaming(row):
            return self.environments[row].render()

    def step(self, actions: np.ndarray, active: np.ndarray) -> StepResult:
        """Step the rows that are ``active``, (env,) bool, with flat actions (env, action_dim).

        Raises:
            EnvironmentFailure: one of them raised something, wanted to end the process, or returned what is no outcome
                of a step.
        """
        count = len(self.environments)
        executed = self.spec.action.to_environment(actions)
        shown = np.where(active[:, None], executed.reshape(count, -1), 0).astype(np.float32)
        rewards, terminated, truncated = np.zeros(count), np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        infos: list[Mapping[str, Any]] = [{}] * count
        for row in map(int, np.flatnonzero(active)):
            with _blaming(row):
                outcome = self.environments[row].step(executed[row])
                observation, reward, terminated[row], truncated[row], infos[row] = outcome
            try:
                rewards[row] = float(reward)
            except (TypeError, ValueError):
                raise EnvironmentFailure(row, f"its reward is {reward!r}, which is no number") from None
            if not math.isfinite(rewards[row]):
                raise EnvironmentFailure(row, f"its reward is {rewards[row]}: its simulation has broken down")
            if not isinstance(infos[row], Mapping):
                raise EnvironmentFailure(row, f"its info is {infos[row]!r}, which is no dict")
            self._look(row, observation)
        return StepResult(shown, rewards, terminated, truncated, infos)

    def _goals(self, key: str) -> np.ndarray | None:
        """Zeros (env, goal_dim) for the goals that observations hold under ``key``."""
        leaf = next((leaf for leaf in self.spec.observation.leaves if leaf.path == (key,)), None)
        return None if leaf is None else np.zeros((len(self.environments), leaf.size), dtype=np.float32)

    def _look(self, row: int, observation: Any) -> None:
        try:
            self.observations[row] = self.spec.observations(_batch_of_one(observation))[0]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise EnvironmentFailure(row, f"its observation does not fit its space: {error}") from None
        if not np.isfinite(self.observations[row]).all():
            raise EnvironmentFailure(row, "its observation has NaN or infinite values")
        for key, goals in (("desired_goal", self.desired_goals), ("achieved_goal", self.achieved_goals)):
            if goals is not None:
                goals[row] = np.ravel(observation[key])


@contextlib.contextmanager
def _blaming(row: int) -> Iterator[None]:
    """Say that what is raised here is the environment's doing; but what a signal makes this process raise is not."""
    try:
        yield
    except SystemExit as exit:
        if exit.code in EXITS_BY_SIGNAL:
            raise
        raise EnvironmentFailure(row, f"it wanted to end the process, with exit code {exit.code}", exit) from exit
    except Exception as error:  # whatever a third party's code raises
        raise EnvironmentFailure(row, f"{type(error).__name__}: {error}", error) from error


def make_environments(
    spec: EnvironmentSpec, num_envs: int, render: bool = False, max_episode_steps: int | None = None
) -> EnvironmentBatch:
    """Make ``num_envs`` environments of the checkpoint's kind; for ``render``, with (height, width, 3) uint8 frames.

    ``max_episode_steps`` take the place of the environment's own limit.

    Raises:
        UserError: the environment cannot be made, or its spaces are not the checkpoint's.
    """
    with contextlib.ExitStack() as closing:
        environments = [closing.enter_context(_make(spec, render, max_episode_steps)) for _ in range(num_envs)]
        _require_same_spaces(spec, environments[0])
        closing.pop_all()
    return EnvironmentBatch(environments, spec)


def _make(spec: EnvironmentSpec, render: bool, max_episode_steps: int | None) -> gymnasium.Env:
    """One environment. Its class comes from Gymnasium's registry; the stored spec gives arguments and time limit only.

    ``gymnasium.make(EnvSpec.from_json(…))`` would call any function that a checkpoint names as entry point.
    """
    stored = _stored_spec(spec)
    env_id = spec.env_id or (stored.id if stored is not None else "")
    if not env_id:
        raise UserError("the checkpoint's data set names no environment, so there is nothing to plan in")
    arguments = {} if stored is None else {k: v for k, v in stored.kwargs.items() if k != "render_mode"}
    limit = max_episode_steps or (None if stored is None else stored.max_episode_steps)
    mode = {"render_mode": "rgb_array"} if render else {}
    try:
        environment = make_environment(env_id, max_episode_steps=limit, disable_env_checker=True, **arguments, **mode)
        for wrapper in () if stored is None else stored.additional_wrappers:
            environment = _wrap(environment, wrapper.entry_point, wrapper.kwargs or {})
        if render:
            _follow(environment.unwrapped)
    except UserError:
        raise
    except Exception as error:  # whatever a third party's constructor raises
        message = f"environment '{env_id}' cannot be made: {error}{_advice(stored, env_id)}"
        is_missing = isinstance(error, (gymnasium.error.Error, ImportError))
        raise (UserError(message) if is_missing else UserError.of_own_code(message, error)) from error
    return environment


def _follow(simulation: Any) -> None:
    """Film a running body with its model's own camera where Gymnasium's stays behind, as HalfCheetah's and Ant's do."""
    if not type(simulation).__module__.startswith("gymnasium.envs.mujoco."):
        return
    renderer = simulation.mujoco_renderer
    cameras = [simulation.model.camera(index).name for index in range(simulation.model.ncam)]
    if "track" in cameras and "trackbodyid" not in (renderer.default_cam_config or {}):
        renderer.camera_id = cameras.index("track")


def _stored_spec(spec: EnvironmentSpec) -> EnvSpec | None:
    if spec.spec_json is None:
        return None
    try:
        return EnvSpec.from_json(spec.spec_json)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the stored spec of environment '{spec.env_id}' cannot be read: {error}") from error


def _wrap(environment: gymnasium.Env, entry_point: str, arguments: dict[str, Any]) -> gymnasium.Env:
    wrapper = load_env_creator(entry_point) if entry_point.startswith(_WRAPPER_PACKAGES) else None
    if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
        raise UserError(f"the environment's wrapper '{entry_point}' is not one of Gymnasium's, and is not loaded")
    return wrapper(env=environment, **arguments)


def _advice(stored: EnvSpec | None, env_id: str) -> str:
    """The package to install, or the module to import; nothing where neither is missing."""
    entry_point = "" if stored is None else stored.entry_point
    package = entry_point.split(":")[0].split(".")[0] if isinstance(entry_point, str) else ""
    if not package:
        return " (install the package that registers it, such as gymnasium-robotics)"
    if package not in ("gymnasium", "gymnasium_robotics") and importlib.util.find_spec(package) is not None:
        registers = f" (if your module {package} registers it, add environment.modules=[{package}], or import it first)"
        return "" if env_id in gymnasium.registry else registers
    installed_as = {"gymnasium": "'gymnasium[mujoco]'", "gymnasium_robotics": "gymnasium-robotics"}
    return f" (pip install {installed_as.get(package, package)})"


def _require_same_spaces(spec: EnvironmentSpec, environment: gymnasium.Env) -> None:
    for name, expected, space in (
        ("observation", spec.observation, environment.observation_space),
        ("action", spec.action, environment.action_space),
    ):
        actual = space_spec(space)
        misfit = f"the {name} space of environment '{spec.env_id}' does not fit the checkpoint: "
        if _structure(actual) != _structure(expected):
            raise UserError(f"{misfit}it has {_describe(actual)}, the model was trained on {_describe(expected)}")
        same = np.allclose(actual.low, expected.low) and np.allclose(actual.high, expected.high)
        if name == "action" and not same:
            raise UserError(
                f"{misfit}its bounds are {actual.low} to {actual.high}, the model was trained on {expected.low} to "
                f"{expected.high}"
            )


def _structure(space: SpaceSpec) -> list[SpaceLeaf]:
    """The leaves without the bounds of a Box."""
    return [replace(leaf, low=(), high=()) if leaf.kind == "box" else leaf for leaf in space.leaves]


def _describe(space: SpaceSpec) -> str:
    parts = []
    for leaf in space.leaves:
        kind = f"Box{leaf.shape}" if leaf.kind == "box" else f"Discrete({leaf.low[0]:.0f} to {leaf.high[0]:.0f})"
        parts.append(f"{'.'.join(leaf.path)} {kind}".lstrip())
    return f"{', '.join(parts)} ({space.size} dimensions)"


def _batch_of_one(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _batch_of_one(entry) for key, entry in value.items()}
    return np.asarray(value)[None]


def environment_title(spec: EnvironmentSpec) -> str:
    """The id to show: the data set's, else the one in its stored spec, else "unknown"."""
    return spec.env_id or str(json.loads(spec.spec_json or "{}").get("id", "unknown"))
