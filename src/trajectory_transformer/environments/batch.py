"""Environments rebuilt from what a checkpoint says of them, and stepped side by side."""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from ..configuration import require
from ..ending import EXITS_BY_SIGNAL
from ..errors import UserError
from .make import make_environment, space_spec
from .spec import EnvironmentSpec, SpaceLeaf, SpaceSpec

# Wrappers are rebuilt from these packages only: a checkpoint must not choose what code runs.
_WRAPPER_PACKAGES = ("gymnasium.", "gymnasium_robotics.")
# Package and class of wrappers that record, and change neither spaces nor rewards: left out, as no recording is wanted.
_RECORDERS = {
    ("gymnasium", "HumanRendering"),
    ("gymnasium", "RecordEpisodeStatistics"),
    ("gymnasium", "RecordVideo"),
    ("gymnasium", "RenderCollection"),
    ("minari", "DataCollector"),
    ("stable_baselines3", "Monitor"),
}

log = logging.getLogger(__name__)


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

    def try_out(self, action: np.ndarray) -> None:
        """Reset the first row, and step it with a sampled action and with a flat one (action_dim,) as agents give it.

        Raises:
            UserError: it raises, or returns what nothing can be learnt from: not as many things as Gymnasium has, a
                reward or flag that is not one number, an observation of another shape, or one that is not finite.
        """
        environment = self.environments[0]
        environment.action_space.seed(0)
        decoded = self.spec.action.to_environment(np.asarray(action)[None])[0]
        for kind, given in (("sampled", environment.action_space.sample()), ("decoded", decoded)):
            self._try("reset(seed=0)", ("observation", "info"), functools.partial(environment.reset, seed=0))
            parts = ("observation", "reward", "terminated", "truncated", "info")
            self._try(f"step({given!r}), a {kind} action,", parts, functools.partial(environment.step, given))

    def _try(self, call: str, parts: tuple[str, ...], made: Callable[[], Any]) -> None:
        """Make a call, and refuse what it raises, or returns for ``parts``."""
        remedy = "; mend it, or train without acting in it: evaluation.episodes=0"
        place = f"environment '{environment_title(self.spec)}': {call}"
        try:
            returned = made()
        except Exception as error:  # whatever a third party's code raises
            frame = traceback.extract_tb(error.__traceback__)[-1]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise UserError(f"{place} raises {reason} ({frame.filename}:{frame.lineno}){remedy}") from error
        if not isinstance(returned, tuple) or len(returned) != len(parts):
            what = f"{len(returned)} things" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
            raise UserError(f"{place} returns {what}, expected ({', '.join(parts)}){remedy}")
        observation, *numbers, info = returned
        try:
            for name, value in zip(parts[1:], numbers, strict=False):
                require(np.isfinite(_number(name, value)), f"its {name} is {value!r}")
            require(isinstance(info, Mapping), f"its info is {info!r}, which is no dict")
            self._look(0, observation)
        except (UserError, EnvironmentFailure) as error:
            raise UserError(f"{place} returns nonsense: {error}{remedy}") from error

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
                observation, reward, ended, cut, infos[row] = self.environments[row].step(executed[row])
            try:
                rewards[row] = _number("reward", reward)
                terminated[row], truncated[row] = bool(_number("terminated", ended)), bool(_number("truncated", cut))
            except UserError as error:
                raise EnvironmentFailure(row, str(error)) from None
            if not math.isfinite(rewards[row]):
                raise EnvironmentFailure(row, f"its reward is {rewards[row]}: its simulation has broken down")
            if not isinstance(infos[row], Mapping):
                raise EnvironmentFailure(row, f"its info is {infos[row]!r}, which is no dict")
            self._look(row, observation)
        return StepResult(shown, rewards, terminated, truncated, infos)

    def _goals(self, key: str) -> np.ndarray | None:
        """Zeros (env, goal_dim) for the goals that observations hold under ``key``, whether they are data or not."""
        space = space_spec(self.environments[0].observation_space)
        leaf = next((leaf for leaf in space.leaves if leaf.path == (key,)), None)
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
        action = _require_same_spaces(spec, environments[0])
        closing.pop_all()
    return EnvironmentBatch(environments, replace(spec, action=action))


def _make(spec: EnvironmentSpec, render: bool, max_episode_steps: int | None) -> gymnasium.Env:
    """One environment. Its class comes from Gymnasium's registry; the stored spec gives arguments and time limit only.

    ``gymnasium.make(EnvSpec.from_json(…))`` would call any function that a checkpoint names as entry point.
    """
    stored = _stored_spec(spec)
    env_id = spec.env_id or (stored.id if stored is not None else "")
    if not env_id:
        raise UserError("the data set names no environment, so there is none to act in")
    arguments = {} if stored is None else {k: v for k, v in stored.kwargs.items() if k != "render_mode"}
    limit = max_episode_steps or (None if stored is None else stored.max_episode_steps)
    mode = {"render_mode": "rgb_array"} if render else {}
    try:
        environment = make_environment(env_id, max_episode_steps=limit, disable_env_checker=True, **arguments, **mode)
        for wrapper in () if stored is None else stored.additional_wrappers:
            environment = _wrap(environment, env_id, wrapper.entry_point, wrapper.kwargs or {})
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
    """Let the camera go with a running body.

    Gymnasium's camera stays behind, as of 1.4 also where it names the body to follow. Where it names none, as for
    HalfCheetah and Ant, the model has a camera of its own.
    """
    if not type(simulation).__module__.startswith("gymnasium.envs.mujoco."):
        return
    renderer = simulation.mujoco_renderer
    if "trackbodyid" in (renderer.default_cam_config or {}):
        library: Any = mujoco  # whose stubs leave out what is written in C
        renderer.default_cam_config = {**renderer.default_cam_config, "type": library.mjtCamera.mjCAMERA_TRACKING}
        renderer.camera_id = None
        return
    cameras = [simulation.model.camera(index).name for index in range(simulation.model.ncam)]
    if "track" in cameras:
        renderer.camera_id = cameras.index("track")


def _stored_spec(spec: EnvironmentSpec) -> EnvSpec | None:
    if spec.spec_json is None:
        return None
    try:
        return EnvSpec.from_json(spec.spec_json)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(f"the stored spec of environment '{spec.env_id}' cannot be read: {error}") from error


def _wrap(environment: gymnasium.Env, env_id: str, entry_point: str, arguments: dict[str, Any]) -> gymnasium.Env:
    if (entry_point.partition(".")[0], entry_point.rpartition(":")[2]) in _RECORDERS:
        _say_left_out(env_id, entry_point)
        return environment
    wrapper = load_env_creator(entry_point) if entry_point.startswith(_WRAPPER_PACKAGES) else None
    if not (isinstance(wrapper, type) and issubclass(wrapper, gymnasium.Wrapper)):
        raise UserError(
            f"the data of environment '{env_id}' were recorded within the wrapper '{entry_point}', which is not one of "
            "Gymnasium's and is not loaded, as a file must not choose what is imported; evaluation.episodes=0 trains "
            "without acting, and Agent.from_checkpoint then acts in an environment that you make"
        )
    return wrapper(env=environment, **arguments)


@functools.cache
def _say_left_out(env_id: str, entry_point: str) -> None:
    """Say it once in a process, however many environments are made."""
    log.warning("environment '%s' is made without its wrapper '%s', which only records", env_id, entry_point)


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


def _number(name: str, value: Any) -> float:
    """One number, which may come as an array of one element: a frequent slip that does no harm."""
    array = np.asarray(value)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise UserError(f"its {name} is {value!r}, which is no number")
    return float(array.item())


def _require_same_spaces(spec: EnvironmentSpec, environment: gymnasium.Env) -> SpaceSpec:
    """Refuse spaces that are not those of the data; returns that of actions, whose type old checkpoints do not tell."""
    actual = spec.action
    for name, expected, space in (
        ("observation", spec.observation, environment.observation_space),
        ("action", spec.action, environment.action_space),
    ):
        actual = space_spec(space)
        misfit = f"the {name} space of environment '{spec.env_id}' does not fit the data to learn from: "
        there = actual if name == "action" else actual.under([leaf.key for leaf in expected.leaves])
        if _structure(there) != _structure(expected):  # what else is observed does no harm
            raise UserError(f"{misfit}it has {_describe(actual)}, the data have {_describe(expected)}")
        if name == "action" and not (np.allclose(actual.low, expected.low) and np.allclose(actual.high, expected.high)):
            raise UserError(
                f"{misfit}its bounds are {actual.low} to {actual.high}, those of the data {expected.low} to "
                f"{expected.high}"
            )
    return actual


def _structure(space: SpaceSpec) -> list[SpaceLeaf]:
    """The leaves without the bounds of a Box."""
    return [replace(leaf, low=(), high=()) if leaf.kind == "box" else leaf for leaf in space.leaves]


def _describe(space: SpaceSpec) -> str:
    parts = []
    for leaf in space.leaves:
        kind = f"Box{leaf.shape}" if leaf.kind == "box" else leaf.kind
        if leaf.kind == "discrete":
            kind = f"Discrete({leaf.low[0]:.0f} to {leaf.high[0]:.0f})"
        parts.append(f"{leaf.key} {kind}".lstrip())
    return f"{', '.join(parts)} ({space.size} dimensions)"


def _batch_of_one(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _batch_of_one(entry) for key, entry in value.items()}
    return np.asarray(value)[None]


def environment_title(spec: EnvironmentSpec) -> str:
    """The id to show: the data set's, else the one in its stored spec, else "unknown"."""
    return spec.env_id or str(json.loads(spec.spec_json or "{}").get("id", "unknown"))
