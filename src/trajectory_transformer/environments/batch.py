"""Batches of environments rebuilt from a checkpoint's records."""

import contextlib
import functools
import importlib.util
import json
import logging
import math
import reprlib
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.registration import EnvSpec, load_env_creator
from gymnasium.wrappers import TimeLimit

from ..configuration import LARGEST
from ..ending import EXITS_BY_SIGNAL
from ..errors import UserError
from .make import make_environment, space_spec
from .spec import EnvironmentSpec, SpaceSpec
from .watcher import Call

# Wrappers are rebuilt from these packages only: a checkpoint must not choose what code runs.
_WRAPPER_PACKAGES = ("gymnasium.", "gymnasium_robotics.")
# Package and class of wrappers that only record, changing neither spaces nor rewards; they are left out.
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
    """The outcome of a step of the active rows; inactive rows hold 0, False and an empty info."""

    actions: np.ndarray  # (env, action_dim) float32, as executed: clipped to the bounds, or rounded to an index
    rewards: np.ndarray  # (env,) float64
    terminated: np.ndarray  # (env,) bool
    truncated: np.ndarray  # (env,) bool
    successes: list[bool | None]  # of each row: what its info says; None if that says nothing


class EnvironmentFailure(Exception):
    """Failure of an environment in a step, a reset or rendering.

    Attributes:
        row: index of the environment.
        reason: the failure in one line.
        own: exception of its code, or None if it returned something invalid.
    """

    def __init__(self, row: int, reason: str, own: BaseException | None = None) -> None:
        super().__init__(reason)
        self.row, self.reason, self.own = row, " ".join(reason.split()), own


class EnvironmentBatch:
    """Equal environments, stepped one after the other; each row is reset by the caller with its own seed.

    Gymnasium's ``SyncVectorEnv`` chooses its own seeds on resets, or refuses to step while a row is finished.

    Attributes:
        observations: (env, observation_dim) float32, the latest of each row; 0 before a row's first reset.
        desired_goals, achieved_goals: (env, goal_dim) float32, the latest goal and achieved goal (such as the position)
            of each row, whether the model sees them or not; None if observations hold none.
        place: (row, function such as "step()") -> words such as "episode 3, step 17", named if the call hangs.
    """

    def __init__(self, environments: list[gymnasium.Env], spec: EnvironmentSpec) -> None:
        self.environments = environments
        self.spec = spec
        self.place: Callable[[int, str], str] = lambda row, function: ""
        self._title = environment_title(spec)
        self.observations = np.zeros((len(environments), spec.observation_dim), dtype=np.float32)
        self.desired_goals, self.achieved_goals = self._goals("desired_goal"), self._goals("achieved_goal")
        chosen = spec.observation_indices
        seen = slice(None) if chosen is None else list(chosen)
        self._discrete, self._low, self._high = (
            values[seen] for values in (spec.observation.discrete, spec.observation.low, spec.observation.high)
        )

    def __enter__(self) -> "EnvironmentBatch":
        return self

    def __exit__(self, *_: object) -> None:
        for row, environment in enumerate(self.environments):
            try:
                with self._calling(row, "close()"):
                    environment.close()
            except EnvironmentFailure as failure:  # the results are already there
                log.warning("closing environment '%s' failed: %s", environment_title(self.spec), failure.reason)

    @property
    def max_episode_steps(self) -> int | None:
        """Steps after which an episode is truncated, or None without a declared limit."""
        spec = self.environments[0].spec
        return None if spec is None else spec.max_episode_steps

    def limit(self, max_episode_steps: int) -> None:
        """Truncate episodes after ``max_episode_steps`` steps."""
        self.environments = [TimeLimit(environment, max_episode_steps) for environment in self.environments]

    def reset(self, row: int, seed: int) -> None:
        """Begin an episode in ``row``, determined by ``seed``; may raise :class:`EnvironmentFailure`."""
        with self._calling(row, "reset()"):
            observation, _ = self.environments[row].reset(seed=seed)
        self._look(row, observation)

    def render(self, row: int) -> Any:
        """Render ``row``; may raise :class:`EnvironmentFailure`."""
        with self._calling(row, "render()"):
            return self.environments[row].render()

    def try_out(self, action: np.ndarray) -> None:
        """Test the first row: reset it, and step it with a sampled action and with a flat one (action_dim,).

        Raises:
            UserError: it raises an exception, or returns an invalid result: the wrong number of values, a reward or
                flag that is not one number, or an observation that has another shape or is not finite.
        """
        environment, self.place = self.environments[0], lambda row, function: "trying it before training"
        (decoded,) = self._decoded(np.asarray(action)[None])
        environment.action_space.seed(0)
        for kind, given in (("sampled", environment.action_space.sample()), ("decoded", decoded)):
            self._try("reset(seed=0)", ("observation", "info"), functools.partial(environment.reset, seed=0))
            parts = ("observation", "reward", "terminated", "truncated", "info")
            self._try(f"step({given!r}), a {kind} action,", parts, functools.partial(environment.step, given))

    def _try(self, call: str, parts: tuple[str, ...], made: Callable[[], Any]) -> None:
        """Make a call, and raise UserError if it fails or does not return valid ``parts``."""
        remedy = "; correct it, or train without acting in it: evaluation.episodes=0"
        place = f"environment '{environment_title(self.spec)}': {call}"
        try:
            with self._calling(0, call.partition("(")[0] + "()"):
                returned = made()
        except EnvironmentFailure as failure:
            own = failure.own or failure
            frame = traceback.extract_tb(own.__traceback__)[-1]
            raise UserError(f"{place} fails: {failure.reason} ({frame.filename}:{frame.lineno}){remedy}") from own
        if not isinstance(returned, tuple) or len(returned) != len(parts):
            what = f"{len(returned)} values" if isinstance(returned, tuple) else f"a {type(returned).__name__}"
            raise UserError(f"{place} returns {what}, expected ({', '.join(parts)}){remedy}")
        observation, *numbers, info = returned
        try:
            for name, value in zip(parts[1:], numbers, strict=False):
                _number(name, value)
            _success(info)
            self._look(0, observation)
        except (UserError, EnvironmentFailure) as error:
            raise UserError(f"{place} returns an invalid result: {error}{remedy}") from error

    def step(self, actions: np.ndarray, active: np.ndarray) -> StepResult:
        """Step the rows that are ``active``, (env,) bool, with flat actions (env, action_dim).

        Raises:
            EnvironmentFailure: one of them raised an exception, tried to end the process, or returned an invalid
                result.
        """
        count = len(self.environments)
        executed = self._decoded(actions)
        shown = np.where(active[:, None], np.reshape(executed, (count, -1)), 0).astype(np.float32)
        rewards, terminated, truncated = np.zeros(count), np.zeros(count, dtype=bool), np.zeros(count, dtype=bool)
        successes: list[bool | None] = [None] * count
        for row in map(int, np.flatnonzero(active)):
            with self._calling(row, "step()"):
                observation, reward, ended, cut, info = self.environments[row].step(executed[row])
            try:
                rewards[row] = _number("reward", reward)
                terminated[row], truncated[row] = bool(_number("terminated", ended)), bool(_number("truncated", cut))
                successes[row] = _success(info)
            except UserError as error:
                raise EnvironmentFailure(row, str(error)) from None
            self._look(row, observation)
        return StepResult(shown, rewards, terminated, truncated, successes)

    @contextlib.contextmanager
    def _calling(self, row: int, function: str) -> Iterator[None]:
        """Call a row's environment: exceptions become EnvironmentFailure, and the watcher reports a call that hangs."""
        with Call(self._title, function, self.place(row, function)), _blaming(row):
            yield

    def _decoded(self, actions: np.ndarray) -> list[Any]:
        """Return the environments' actions for flat ones (env, action_dim): arrays for a Box, integers for Discrete."""
        decoded = self.spec.action.to_environment(actions)
        is_box = self.spec.action.leaves[0].kind == "box"
        return [decoded[row, ...] if is_box else decoded[row] for row in range(len(decoded))]

    def _goals(self, key: str) -> np.ndarray | None:
        """Return zeros (env, goal_dim) for the goals in raw observations under ``key``; None if there are none."""
        space = space_spec(self.environments[0].observation_space)
        leaf = next((leaf for leaf in space.leaves if leaf.path == (key,)), None)
        return None if leaf is None else np.zeros((len(self.environments), leaf.size), dtype=np.float32)

    def _look(self, row: int, observation: Any) -> None:
        try:
            with np.errstate(over="ignore"):  # such numbers are refused as infinite
                self.observations[row] = seen = self.spec.observations(_batch_of_one(observation))[0]
                for key, goals in (("desired_goal", self.desired_goals), ("achieved_goal", self.achieved_goals)):
                    if goals is not None:
                        goals[row] = np.ravel(observation[key])
        except Exception as error:  # objects of third-party code raise any exception when they are converted
            missing = isinstance(error, KeyError)
            reason = f"key {error.args[0]!r} is missing" if missing else f"{error or type(error).__name__}"
            raise EnvironmentFailure(row, f"its observation does not fit its space: {reason}") from None
        if not np.isfinite(seen).all():
            raise EnvironmentFailure(row, "its observation has NaN or infinite values")
        for index in np.flatnonzero(self._discrete):
            low, high = self._low[index], self._high[index]
            if seen[index] != np.rint(seen[index]) or not low <= seen[index] <= high:
                name = self.spec.observation_names[index]
                found = f"its {name} is {seen[index]:g}, outside the Discrete space's {low:g} to {high:g}"
                raise EnvironmentFailure(row, found)


@contextlib.contextmanager
def _blaming(row: int) -> Iterator[None]:
    """Convert exceptions of an environment's code into EnvironmentFailure, except those raised by signals."""
    try:
        yield
    except SystemExit as exit:
        if exit.code in EXITS_BY_SIGNAL:
            raise
        raise EnvironmentFailure(row, f"it tried to end the process with exit code {exit.code}", exit) from exit
    except Exception as error:  # third-party code raises any exception
        raise EnvironmentFailure(row, f"{type(error).__name__}: {error}", error) from error


def make_environments(
    spec: EnvironmentSpec, num_envs: int, render: bool = False, max_episode_steps: int | None = None
) -> EnvironmentBatch:
    """Make ``num_envs`` environments of ``spec``; with ``render``, they render (height, width, 3) uint8 frames.

    ``max_episode_steps`` replaces the environment's own limit.

    Raises:
        UserError: the environment cannot be made, or its spaces differ from those of ``spec``.
    """
    with contextlib.ExitStack() as closing:
        environments = [closing.enter_context(_make(spec, render, max_episode_steps)) for _ in range(num_envs)]
        action = _require_same_spaces(spec, environments[0])
        closing.pop_all()
    return EnvironmentBatch(environments, replace(spec, action=action))


def _make(spec: EnvironmentSpec, render: bool, max_episode_steps: int | None) -> gymnasium.Env:
    """Make one environment of Gymnasium's registry; only arguments, time limit and wrappers come from the stored spec.

    ``gymnasium.make(EnvSpec.from_json(…))`` would call any function named as entry point by a checkpoint.
    """
    stored = _stored_spec(spec)
    env_id = spec.env_id or (stored.id if stored is not None else "")
    if not env_id:
        raise UserError("the data set names no environment to act in; train with evaluation.episodes=0")
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
    except Exception as error:  # third-party constructors raise any exception
        message = f"environment '{env_id}' cannot be made: {error}{_advice(stored, env_id)}"
        is_missing = isinstance(error, (gymnasium.error.Error, ImportError))
        raise (UserError(message) if is_missing else UserError.of_own_code(message, error)) from error
    return environment


def _follow(simulation: Any) -> None:
    """Make the camera follow a moving body.

    Gymnasium's camera (1.4) is fixed, even if it names a body to follow. If it names none, as for HalfCheetah and Ant,
    the model has a tracking camera.
    """
    if not type(simulation).__module__.startswith("gymnasium.envs.mujoco."):
        return
    renderer = simulation.mujoco_renderer
    if "trackbodyid" in (renderer.default_cam_config or {}):
        library: Any = mujoco  # its stubs lack the parts written in C
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
            f"the data of environment '{env_id}' were recorded with the wrapper '{entry_point}', which is not one of "
            "Gymnasium's and is not loaded, because a file must not choose what is imported; train with "
            "evaluation.episodes=0, and act by Agent.from_checkpoint in an environment that you make"
        )
    return wrapper(env=environment, **arguments)


@functools.cache
def _say_left_out(env_id: str, entry_point: str) -> None:
    """Warn once per process about a wrapper that is left out."""
    log.warning("environment '%s' is made without its wrapper '%s', which only records", env_id, entry_point)


def _advice(stored: EnvSpec | None, env_id: str) -> str:
    """Return a hint on the package to install or the module to import; empty if neither is missing."""
    entry_point = "" if stored is None else stored.entry_point
    package = entry_point.split(":")[0].split(".")[0] if isinstance(entry_point, str) else ""
    if not package:
        return (
            " (install the package that registers it, such as gymnasium-robotics, or add "
            "environment.modules=[my_module] if a module of yours does)"
        )
    installed_as = {"gymnasium": "'gymnasium[mujoco]'", "gymnasium_robotics": "gymnasium-robotics"}
    if package in installed_as:
        return f" (pip install {installed_as[package]})"
    modules = f"environment.modules=[{package}]"
    if importlib.util.find_spec(package) is not None:
        registers = f" (if your module {package} registers it, add {modules}, or import it first)"
        return "" if env_id in gymnasium.registry else registers
    return (
        f" (its module {package} is not on Python's path: if it is yours, set PYTHONPATH to the folder that holds it "
        f"and add {modules}; if it is of a package, pip install {package})"
    )


def _number(name: str, value: Any) -> float:
    """Return a number; an array of one element, a frequent and harmless mistake, is accepted."""
    array = _array(value)
    if array is None or array.size != 1:
        raise UserError(f"its {name} is {reprlib.repr(value)}, which is not a number")
    number = float(array.item())
    if not math.isfinite(number):
        raise UserError(f"its {name} is {number}: its simulation has become unstable")
    if abs(number) > LARGEST:
        raise UserError(f"its {name} is {number:g}, beyond ±{LARGEST:g}: scale it down")
    return number


def _success(info: Any) -> bool | None:
    """Return whether any success flag in the info is set; None without such a flag, or if it is None."""
    if not isinstance(info, Mapping):
        raise UserError(f"its info is {reprlib.repr(info)}, which is not a dict")
    key = next((key for key in ("success", "is_success") if info.get(key) is not None), None)
    if key is None:
        return None
    array = _array(info[key])
    if array is None or np.isnan(array).any():
        raise UserError(f"its info[{key!r}] is {reprlib.repr(info[key])}, which is not a flag")
    return bool(array.any())


def _array(value: Any) -> np.ndarray | None:
    """Return an array of real numbers, or None if the value is something else."""
    try:
        array = np.asarray(value)
    except Exception:  # ragged lists, tensors that need gradients and so on
        return None
    return array if array.dtype.kind in "biuf" else None


def _require_same_spaces(spec: EnvironmentSpec, environment: gymnasium.Env) -> SpaceSpec:
    """Raise UserError for spaces unlike the data's; returns the action space, whose type old checkpoints lack."""
    actual = spec.action
    for name, expected, space in (
        ("observation", spec.observation, environment.observation_space),
        ("action", spec.action, environment.action_space),
    ):
        actual = space_spec(space)
        misfit = f"the {name} space of environment '{spec.env_id}' does not match that of the data: "
        there = actual if name == "action" else actual.under([leaf.key for leaf in expected.leaves])
        if there.structure != expected.structure:  # further observations are ignored
            raise UserError(f"{misfit}it has {_describe(actual)}, the data have {_describe(expected)}")
        if name == "action" and not (np.allclose(actual.low, expected.low) and np.allclose(actual.high, expected.high)):
            raise UserError(
                f"{misfit}its bounds are {actual.low} to {actual.high}, those of the data {expected.low} to "
                f"{expected.high}"
            )
    return actual


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
    """Return the environment's id for display: the data set's, else that of the stored spec, else "unknown"."""
    return spec.env_id or str(json.loads(spec.spec_json or "{}").get("id", "unknown"))
