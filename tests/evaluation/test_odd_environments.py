"""Odd environments of users: each is acted in rightly, or refused in one sentence that names it.

``Odd`` is an environment whose episodes have three steps with the rewards 0, 1 and 2. Each kind changes something.
"""

import ctypes
import multiprocessing
import re
import sys
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.spaces import (
    Box,
    Dict,
    Discrete,
    Graph,
    MultiBinary,
    MultiDiscrete,
    OneOf,
    Sequence,
    Space,
    Text,
    Tuple,
)
from typing_extensions import override

from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.environments.batch import make_environments
from trajectory_transformer.environments.make import environment_spec
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.evaluate import evaluate
from trajectory_transformer.evaluation.records import EpisodeRecord, RolloutOptions
from trajectory_transformer.evaluation.rollout import limit_episodes, run_episodes

from .scripted import ScriptedAgent, request_of

NAME = "Odd-v0"
PAIR = np.zeros(2, np.float32)
BIG = 10**400
BOOL: Any = bool


def raising(error: BaseException) -> Callable[..., Any]:
    def act(*_: Any, **__: Any) -> Any:
        raise error

    return act


class Odd(gym.Env):
    """Observes zeros unless ``observe`` says otherwise; fails if an action is not of its space."""

    observation_space: Space = Box(-1.0, 1.0, (2,))
    action_space: Space = Box(-1.0, 1.0, (1,))
    observe: Any = PAIR
    step_of: Callable[..., Any] | None = None  # of this and the good result
    reset_of: Callable[..., Any] | None = None
    begun = 0  # episodes, of all instances

    def __init__(self) -> None:
        self.time = 0

    @override
    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        type(self).begun += 1
        self.time = 0
        good = self.observe, {}
        return good if self.reset_of is None else type(self).reset_of(self, good)  # pyright: ignore[reportOptionalCall]

    @override
    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), f"not of the space: {action!r}"
        reward, self.time = float(self.time), self.time + 1
        good = self.observe, reward, self.time == 3, False, {}
        return good if self.step_of is None else type(self).step_of(self, good)  # pyright: ignore[reportOptionalCall]


def with_spaces(observation: Space | None = None, action: Space | None = None, observe: Any = None) -> dict[str, Any]:
    """Changes of spaces; by default a sample is observed."""
    changes: dict[str, Any] = {}
    if observation is not None:
        observation.seed(0)
        changes = {"observation_space": observation, "observe": observation.sample() if observe is None else observe}
    return changes if action is None else changes | {"action_space": action}


def returning(place: int, value: Any, at: int = 0) -> dict[str, Any]:
    """Changes by which each step after the first ``at`` ones returns another part."""

    def changed(self: Odd, good: tuple[Any, ...]) -> Any:
        return (*good[:place], value, *good[place + 1 :]) if self.time > at else good

    return {"step_of": changed}


def info(value: Any) -> dict[str, Any]:
    return returning(4, value)


RIGHT = {  # kind -> changes
    "as Gymnasium has it": {},
    "float64 throughout": with_spaces(Box(-1, 1, (2,), np.float64), Box(-1, 1, (1,), np.float64)),
    "float16": with_spaces(Box(-1, 1, (2,), np.float16), Box(-1, 1, (1,), np.float16)),
    "bytes": with_spaces(Box(0, 255, (3,), np.uint8), Box(0, 255, (2,), np.uint8)),
    "integer box": with_spaces(Box(-3, 3, (2,), np.int32), Box(0, 20, (2,), np.int64)),
    "all integers": with_spaces(action=Box(np.iinfo(np.int64).min, np.iinfo(np.int64).max, (1,), np.int64)),
    "box of booleans": with_spaces(Box(0, 1, (2,), BOOL), Box(0, 1, (2,), BOOL)),
    "matrices": with_spaces(Box(-1, 1, (2, 3)), Box(-1, 1, (2, 2))),
    "a single number": with_spaces(Box(-1, 1, ()), Box(-1, 1, ())),
    "unbounded": with_spaces(Box(-np.inf, np.inf, (2,)), Box(-np.inf, np.inf, (1,))),
    "half bounded": with_spaces(Box(0, np.inf, (2,)), Box(0, np.inf, (1,))),
    "Discrete": with_spaces(Discrete(4), Discrete(3)),
    "Discrete from 5": with_spaces(Discrete(4, start=5), Discrete(3, start=5)),
    "Discrete below 0": with_spaces(Discrete(4, start=-2), Discrete(3, start=-1)),
    "Discrete of one": with_spaces(Discrete(1), Discrete(1)),
    "Discrete of int32": with_spaces(Discrete(4, dtype=np.int32), Discrete(3, dtype=np.int32)),
    "Discrete as an array": with_spaces(Discrete(4), observe=np.array(3)),
    "nested Dict": with_spaces(Dict(b=Box(-1, 1, (1,)), a=Dict(c=Discrete(3), d=Box(0, 9, (2,), np.int8)))),
    "more keys than its space": with_spaces(Dict(a=Box(-1, 1, (1,))), observe={"a": [0.5], "word": "x", "z": None}),
    "goals": with_spaces(Dict({k: Box(-1, 1, (2,)) for k in ("observation", "desired_goal", "achieved_goal")})),
    "lists": {"observe": [0.0, 1.0]},
    "tensors": {"observe": torch.zeros(2)},
    "observations out of the space": {"observe": np.array([-7.0, 99.0])},
    "a reward of one element": returning(1, np.array([[2.0]])),
    "a reward that is a boolean": returning(1, True),
    "a reward in a list": returning(1, [2]),
    "a reward as a tensor": returning(1, torch.tensor(2.0)),
    "flags of numpy": returning(3, np.array([False])),
    "success not told": info({"success": None}),
    "success of several parts": info({"success": [False, True]}),
}  # fmt: skip
RETURNS = {
    "a reward of one element": 6.0,
    "a reward that is a boolean": 3.0,
    "a reward in a list": 6.0,
    "a reward as a tensor": 6.0,
}

SPACE = "only Box, Discrete and Dict spaces become tokens"
NO_TOKENS = {  # spaces that are refused when the environment is asked for them
    "MultiDiscrete actions": (with_spaces(action=MultiDiscrete([3, 2])), SPACE),
    "MultiDiscrete": (with_spaces(MultiDiscrete([3, 2])), SPACE),
    "MultiBinary": (with_spaces(MultiBinary(4)), SPACE),
    "MultiBinary actions": (with_spaces(action=MultiBinary(4)), SPACE),
    "Text": (with_spaces(Text(5)), SPACE),
    "Tuple": (with_spaces(Tuple([Discrete(2), Box(-1, 1)])), SPACE),
    "Tuple in a Dict": (with_spaces(Dict(a=Tuple([Discrete(2)]))), "key 'a' is a Tuple space"),
    "Graph": (with_spaces(Graph(Discrete(3), None)), SPACE),
    "Sequence": (with_spaces(Sequence(Discrete(3))), SPACE),
    "OneOf": (with_spaces(OneOf([Discrete(3), Box(-1, 1)])), SPACE),
    "no dimension": (with_spaces(Box(-1, 1, (0,))), "has no dimension"),
    "an empty Dict": (with_spaces(Dict({})), r"cannot be made \(An empty Dict"),
    "keys that are numbers": (with_spaces(Dict({1: Discrete(2)})), "key 1 of the space is not a text"),  # pyright: ignore[reportArgumentType]
    "no spaces": ({"observation_space": None}, "observation space does not inherit"),
    "raises when it is made": ({"__init__": raising(RuntimeError("no licence"))}, r"cannot be made \(no licence\)"),
    "ends the process when it is made": ({"__init__": raising(SystemExit(0))}, "end the process with exit code 0"),
}

SHAPE = "does not fit its space"
REFUSED = {  # kind -> changes, words of the sentence by which it is refused before training
    "no reward": (returning(1, None), "reward is None, which is not a number"),
    "NaN": (returning(1, np.nan), "reward is nan"),
    "infinity": (returning(1, -np.inf), "reward is -inf"),
    "too large to be squared": (returning(1, 1e30), r"reward is 1e\+30, beyond"),
    "ragged rewards": (returning(1, [[1.0], [1.0, 2.0]]), r"reward is \[\[1.0\], \[1.0, 2.0\]\], which is not"),
    "two rewards": (returning(1, np.ones(2)), "reward is array"),
    "a reward with a gradient": (returning(1, torch.ones(1, requires_grad=True)), "reward is tensor"),
    "a reward with an imaginary part": (returning(1, 1j), "reward is 1j"),
    "a reward that is a text": (returning(1, "1.0"), "reward is '1.0'"),
    "a decimal reward": (returning(1, Decimal(1)), "reward is Decimal"),
    "an endless integer": (returning(1, BIG), "reward is 1000"),
    "a reward for each agent": (returning(1, {"a": 1.0}), "reward is {'a': 1.0}"),
    "NaN for a flag": (returning(2, np.nan), "terminated is nan"),
    "no flag": (returning(3, None), "truncated is None"),
    "info that is no dict": (info([]), r"info is \[\], which is not a dict"),
    "no info": (info(None), "info is None"),
    "success as a text": (info({"success": "no"}), "'no', which is not a flag"),
    "success NaN": (info({"is_success": np.nan}), r"info\['is_success'\] is nan, which is not a flag"),
    "ragged success": (info({"success": [[1], [1, 2]]}), "which is not a flag"),
    "the former four values": ({"step_of": lambda _, good: (*good[:3], good[4])}, "expected 5, got 4"),
    "nothing": ({"step_of": lambda *_: None}, "cannot unpack .*None"),
    "reset without info": ({"reset_of": lambda _, good: good[0]}, "returns a ndarray, expected"),
    "reset without a seed": ({"reset": lambda self: (PAIR, {})}, "unexpected keyword argument 'seed'"),
    "reset that raises": ({"reset_of": raising(OSError("no display"))}, r"OSError: no display \(.*py:\d+\)"),
    "step that raises": ({"step_of": raising(KeyError())}, r"KeyError: \(.*\.py:\d+\)"),
    "reset that ends the process": ({"reset_of": raising(SystemExit(0))}, "end the process with exit code 0"),
    "step that ends the process": ({"step_of": raising(SystemExit("bye"))}, "end the process with exit code bye"),
    "observations of another shape": ({"observe": np.zeros(3)}, rf"{SHAPE}: .*shape \(3,\), expected \(2,\)"),
    "no observation": ({"observe": None}, SHAPE),
    "ragged observations": ({"observe": [[0.0], [0.0, 1.0]]}, SHAPE),
    "texts": ({"observe": ["0.5", "1.0"]}, f"{SHAPE}: .* type <U3, expected real numbers"),
    "imaginary parts": ({"observe": np.array([1j, 0])}, f"{SHAPE}: .* type complex128"),
    "integers without end": ({"observe": [BIG, 0]}, f"{SHAPE}: .* type object"),
    "beyond float32": ({"observe": np.array([1e300, 0])}, "observation has NaN or infinite values"),
    "NaN observed": ({"observe": np.array([0, np.nan])}, "observation has NaN or infinite values"),
    "a state that is none": (with_spaces(Discrete(4), observe=4), "is 4, outside the Discrete space's 0 to 3"),
    "between two states": (with_spaces(Discrete(4), observe=1.5), "is 1.5, outside the Discrete space's 0 to 3"),
    "a missing key": (with_spaces(Dict(a=Discrete(3)), observe={"b": 1}), f"{SHAPE}: key 'a' is missing"),
    "goals of another shape": (
        with_spaces(Dict(desired_goal=Box(-1, 1, (2,))), observe={"desired_goal": np.zeros(3)}), SHAPE,
    ),
}  # fmt: skip


class Agent(ScriptedAgent):
    """Draws actions beyond bounded spaces, too."""

    @override
    def act(self, observations: np.ndarray, active: np.ndarray | None = None) -> np.ndarray:
        self.planned, self.last_observations = np.ones(len(observations), dtype=bool), observations
        return self.generators[0].uniform(-30, 30, (len(observations), self.environment.action_dim))


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., type[Odd]]]:
    """Registers a changed environment as ``Odd-v0``, as a user does who calls ``gymnasium.register``."""
    with monkeypatch.context() as patch:

        def register(changes: dict[str, Any], limit: int | None = 10) -> type[Odd]:
            kind: Any = type("Kind", (Odd,), changes)
            patch.delitem(gym.registry, NAME, raising=False)
            gym.register(NAME, kind, max_episode_steps=limit)
            return kind

        yield register
    gym.registry.pop(NAME, None)


def tried() -> EnvironmentSpec:
    """Do as before training: read the spaces, make one environment, and try one step."""
    spec = environment_spec(NAME)
    with make_environments(spec, 1) as batch:
        limit_episodes(batch, 3)
        batch.try_out(np.zeros(spec.action_dim))
    return spec


def played(spec: EnvironmentSpec, finished: Callable[[EpisodeRecord], None] | None = None) -> list[EpisodeRecord]:
    agent = Agent(spec, PlannerConfig(horizon=1))
    options = RolloutOptions(progress=False, longest_episode=3, finished=finished)
    return list(run_episodes(agent, spec, 4, 2, 0, options).episodes)


@pytest.mark.filterwarnings("ignore::UserWarning")  # Gymnasium's own, about some of the spaces
@pytest.mark.parametrize("kind", RIGHT)
def test_what_is_only_unusual_is_acted_in(registered: Callable[..., type[Odd]], kind: str) -> None:
    made = registered(RIGHT[kind])
    spec = tried()
    with make_environments(spec, 1) as batch:
        batch.reset(0, seed=0)
        if isinstance(made.observation_space, Box | Discrete):
            expected = np.ravel(np.asarray(made.observe)).astype(np.float32)
            np.testing.assert_array_equal(batch.observations[0], expected)
    episodes = played(spec)
    assert [episode.episode_return for episode in episodes] == [RETURNS.get(kind, 3.0)] * 4
    assert [episode.length for episode in episodes] == [3] * 4
    assert {episode.success for episode in episodes} == {True if "several parts" in kind else None}


def test_an_episode_without_an_end_ends_as_the_data_s_longest(registered: Callable[..., type[Odd]]) -> None:
    registered(returning(2, False), limit=None)
    assert [(episode.length, episode.terminated) for episode in played(tried())] == [(3, False)] * 4


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", NO_TOKENS)
def test_spaces_that_cannot_become_tokens_are_refused(registered: Callable[..., type[Odd]], kind: str) -> None:
    changes, words = NO_TOKENS[kind]
    registered(changes)
    with pytest.raises(UserError, match=words) as caught:
        environment_spec(NAME)
    assert "\n" not in str(caught.value)
    assert NAME in str(caught.value)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_is_refused_before_training(registered: Callable[..., type[Odd]], kind: str) -> None:
    changes, words = REFUSED[kind]
    registered(changes)
    with pytest.raises(UserError, match=rf"^environment 'Odd-v0': (reset|step)\(.*{words}.*evaluation\.episodes=0$"):
        tried()


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", [kind for kind in REFUSED if "reset" not in kind and "former" not in kind])
def test_what_goes_wrong_later_keeps_the_finished_episodes(registered: Callable[..., type[Odd]], kind: str) -> None:
    """The third episode of a row is the one that goes wrong."""
    changes = REFUSED[kind][0]
    registered({name: change for name, change in changes.items() if name == "observation_space"} | with_good(changes))
    spec = tried()
    broken = registered(changes)
    bad_step, bad_observation = broken.step_of, broken.observe
    good = with_good(changes)["observe"]

    def step_of(self: Odd, result: tuple[Any, ...]) -> Any:
        if type(self).begun < 3:
            return result
        return (bad_observation, *result[1:]) if bad_step is None else bad_step(self, result)

    broken.observe, broken.step_of = good, step_of
    kept: list[EpisodeRecord] = []
    with pytest.raises(UserError, match=r"^environment 'Odd-v0' failed at step 1 of episode [23] \(seed [23]\): .*"):
        played(spec, kept.append)
    assert [(episode.length, episode.episode_return) for episode in kept[:2]] == [(3, 3.0)] * 2


def with_good(changes: dict[str, Any]) -> dict[str, Any]:
    """The observation of an environment with these spaces that is right."""
    space = changes.get("observation_space", Odd.observation_space)
    space.seed(0)
    return {"observe": space.sample()}


def exiting(directory: Path) -> None:
    """Evaluate an environment that ends the process in its third episode, without asking."""

    def exits(self: Odd, good: tuple[Any, ...]) -> Any:
        return ctypes.CDLL(None)._exit(7) if self.begun == 3 else good

    kind: Any = type("Kind", (Odd,), {"step_of": exits})
    gym.register(NAME, kind, max_episode_steps=10)
    spec = environment_spec(NAME)
    evaluate(Agent(spec, PlannerConfig(horizon=1)), request_of(4, 1, 0), directory)


@pytest.mark.skipif(sys.platform == "win32", reason="forks")
def test_an_environment_that_ends_the_process_at_once_leaves_the_finished_episodes(tmp_path: Path) -> None:
    process = multiprocessing.get_context("fork").Process(target=exiting, args=(tmp_path,))
    process.start()
    process.join(60)
    assert process.exitcode == 7
    rows = (tmp_path / "episodes.csv").read_text().splitlines()
    assert [re.split(",", row)[:3] for row in rows[1:]] == [["0", "3.0", "3"], ["1", "3.0", "3"]]
    assert not (tmp_path / "results.json").exists()
