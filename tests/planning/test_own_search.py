"""A search of the user's own in place of the beam search."""

import copy
import pickle
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.planning.conftest import ACTION_DIM, BINS, OBSERVATION_DIM, PLANNER, TRANSITIONS
from trajectory_transformer import Agent
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.environments.spec import SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.learners.transformer_module import TrajectoryModule
from trajectory_transformer.model.gpt import TrajectoryTransformer
from trajectory_transformer.planning.beam_search import SearchResult
from trajectory_transformer.planning.planner import BeamPlanner
from trajectory_transformer.planning.search import Search, SearchProblem
from trajectory_transformer.planning.trained_transformer import planner_settings
from trajectory_transformer.training.fit import make_module

from ..training.small_run import small_config, small_datamodule, small_fit
from .decoders import make_model
from .test_agent import ENVIRONMENT

SHOOTING = {"_target_": "random_shooting.RandomShooting"}


@pytest.fixture(autouse=True)
def example(monkeypatch: pytest.MonkeyPatch) -> None:
    """The example is on Python's path, and not imported."""
    monkeypatch.delitem(sys.modules, "random_shooting", raising=False)
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "examples"))


def prefix_of(model: TrajectoryTransformer, environments: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randint(model.config.vocab_size, (environments, model.layout.observation_dim), generator=generator)


def found_by(model: TrajectoryTransformer, discretizer: Discretizer, **options: Any) -> SearchResult:
    planner = BeamPlanner(model, discretizer, PlannerConfig(**(PLANNER | options)))
    prefix = prefix_of(model)
    return planner.plan(prefix, [torch.Generator().manual_seed(seed) for seed in range(len(prefix))])


@pytest.mark.parametrize("decoder", ["native", "eager"])
def test_of_one_transition_random_shooting_is_the_beam_search(
    model: TrajectoryTransformer, discretizer: Discretizer, decoder: str
) -> None:
    options = {"horizon": 1, "context": 1, "decoder": decoder}
    beam, shooting = (found_by(model, discretizer, **options, search=search) for search in (None, SHOOTING))
    for name in ("tokens", "rewards", "value", "score"):
        torch.testing.assert_close(getattr(shooting, name), getattr(beam, name), msg=name)


def test_plans_are_those_of_the_model(model: TrajectoryTransformer, discretizer: Discretizer) -> None:
    """Rewards, values and scores of plans of three transitions, from one forward pass and the bins' centres."""
    found = found_by(model, discretizer, horizon=3, context=1, search=SHOOTING)
    layout, centers = model.layout, torch.nn.functional.pad(discretizer.centers, (0, 1))
    output: Any = model(found.tokens.flatten(1)[:, :-1], return_dict=True)
    probability = torch.softmax(output.logits, dim=-1)
    places = [t * layout.transition_dim + layout.reward - 1 for t in range(3)]
    rewards = torch.stack([(probability[:, place] * centers[layout.reward]).sum(dim=1) for place in places], dim=1)
    value = (probability[:, places[-1] + 1] * centers[layout.value]).sum(dim=1)
    discount = PLANNER["discount"]
    torch.testing.assert_close(found.rewards, rewards, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(found.value, value, rtol=1e-3, atol=1e-3)
    expected = rewards @ (discount ** torch.arange(3.0)) + discount**3 * value
    torch.testing.assert_close(found.score, expected, rtol=1e-3, atol=1e-3)
    assert (found.tokens[:, 0, layout.observation] == prefix_of(model)).all()


@dataclass
class Constant(Search):
    """Executes an action of its own, whatever its plan says."""

    action: float = 0.25
    asks: int = 3

    def draws(self, settings: PlannerConfig, layout: Any) -> tuple[int, ...]:
        return (self.asks,)

    def __call__(self, problem: SearchProblem) -> SearchResult:
        assert problem.uniforms.shape == (len(problem.prefix), self.asks)
        size = len(problem.prefix), problem.settings.horizon
        zeros = torch.zeros(size, dtype=torch.float64)  # any floating type will do
        tokens = torch.zeros(*size, problem.layout.transition_dim, dtype=torch.int64)
        actions = torch.full((*size, problem.layout.action_dim), self.action, dtype=torch.float64)
        return SearchResult(tokens, zeros, zeros[:, 0], zeros[:, 0], [], 1, actions=actions)


class OfSize(Constant):
    """Executes an action that depends on the model."""

    def __call__(self, problem: SearchProblem) -> SearchResult:
        problem.decoder.prefill(problem.prefix)
        size = problem.decoder.logits.square().mean(dim=(1, 2))
        found = super().__call__(problem)
        assert found.actions is not None
        return replace(found, actions=found.actions + size[:, None, None])


def test_the_actions_of_its_result_are_executed(model: TrajectoryTransformer, discretizer: Discretizer) -> None:
    settings = PlannerConfig(**(PLANNER | {"search": Constant(0.5), "horizon": 2, "plan_freq": 2}))
    agent = Agent(BeamPlanner(model, discretizer, settings), ENVIRONMENT)
    agent.reset(2)
    assert (agent.act(np.zeros((2, model.layout.observation_dim), dtype=np.float32)) == 0.5).all()
    assert (agent.last_plan.actions == 0.5).all()
    assert agent.beams(0, 3).size == 0
    recorded = {"_target_": f"{__name__}.Constant", "action": 0.5, "asks": 3}
    assert agent.settings.search == recorded
    for again in (copy.deepcopy(agent), pickle.loads(pickle.dumps(agent))):
        assert again.settings.search == recorded
        assert (again.act(np.zeros((2, model.layout.observation_dim), dtype=np.float32)) == 0.5).all()


@pytest.mark.parametrize(
    ("changed", "pattern"),
    [
        ({"rewards": torch.zeros(3)}, r"returns rewards of shape \(3,\), expected \(3, 2\)"),
        ({"tokens": torch.zeros(3, 2, 1)}, r"returns tokens of shape \(3, 2, 1\), expected \(3, 2, \d\)"),
        ({"value": None}, r"returns value of shape \(\), expected \(3,\)"),
        ({"actions": torch.zeros(3, 2, 9)}, r"returns actions of shape \(3, 2, 9\), expected \(3, 2, \d\)"),
        ({"tokens": torch.full((3, 2, 7), 99)}, r"returns tokens from 99 to 99, expected 0 to \d+$"),
        ({"actions": torch.full((3, 2, 2), torch.nan)}, r"returns actions that are not finite$"),
        ({"tokens": "float"}, r"returns tokens of type torch\.float32, expected torch\.int64$"),
        (None, r"test_own_search\.Wrong returns a NoneType, no SearchResult$"),
    ],
)
def test_a_wrong_result_is_refused(
    model: TrajectoryTransformer, discretizer: Discretizer, changed: dict[str, Any] | None, pattern: str
) -> None:
    class Wrong(Constant):
        def __call__(self, problem: SearchProblem) -> Any:
            right = super().__call__(problem)
            floats = {"tokens": right.tokens.float()} if changed == {"tokens": "float"} else changed
            return None if floats is None else replace(right, **floats)

    Wrong.__qualname__ = "Wrong"
    with pytest.raises(UserError, match=rf"^planner\.search: .*{pattern}"):
        found_by(model, discretizer, horizon=2, search=Wrong())


@pytest.mark.parametrize("options", [{"act": "elite"}, {"act": "conditioned"}, {"deadline_ms": 5.0}])
def test_what_only_the_beam_search_has_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=r"planner\.search replaces it"):
        PlannerConfig(**options, search=SHOOTING)
    with pytest.raises(UserError, match=r"^planner\.search=5 is neither a search nor a mapping of options$"):
        PlannerConfig(search=5)


@pytest.mark.parametrize("search", [SHOOTING, {"_target_": f"{__name__}.OfSize"}])
def test_the_mean_over_models_is_executed(discretizer: Discretizer, search: dict[str, Any]) -> None:
    """Each model plans with its own random numbers; actions as tokens, and as real values."""
    models = [make_model(OBSERVATION_DIM, ACTION_DIM, TRANSITIONS, BINS, spread=0.4, seed=seed) for seed in (4, 5)]
    settings = PlannerConfig(**(PLANNER | {"search": search, "horizon": 2, "act": "mean"}))
    planners = [BeamPlanner(model, discretizer, settings) for model in models]
    columns, alone = planners[0].layout.action, list[np.ndarray]()
    generators, seen = [torch.Generator().manual_seed(seed) for seed in (1, 2)], np.zeros((2, 3), dtype=np.float32)
    tokens = discretizer.encode(torch.from_numpy(seen), planners[0].layout.observation)
    for planner in planners:
        found = planner.plan(tokens, generators)
        actions = discretizer.decode(found.tokens[:, 0, columns], columns)
        alone.append((actions if found.actions is None else found.actions[:, 0]).numpy())
    assert np.abs(alone[0] - alone[1]).max() > 1e-3
    agent = Agent(planners[0], ENVIRONMENT, others=planners[1:])
    agent.reset(2, [1, 2])
    np.testing.assert_allclose(agent.act(seen), (alone[0] + alone[1]) / 2, rtol=1e-6)
    discrete = SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (5.0,)),) * 2)
    first = Agent(planners[0], replace(ENVIRONMENT, action=discrete), others=planners[1:])
    first.reset(2, [1, 2])
    np.testing.assert_array_equal(first.act(seen), alone[0])


def test_the_mean_over_models_has_no_correction_by_default_and_may_look_ahead() -> None:
    settings = PlannerConfig(act="mean", search=SHOOTING, horizon=3)
    assert settings.uses_members
    assert not settings.looks_ahead_in_vain
    assert settings.resolve_improvement(by_return=True, available=True).improvement == 0.0
    assert not replace(settings, act="auto").uses_members


def test_more_sequences_than_the_decoder_has_room_for_are_refused(
    model: TrajectoryTransformer, discretizer: Discretizer
) -> None:
    class Many(Constant):
        def __call__(self, problem: SearchProblem) -> SearchResult:
            problem.decoder.prefill(problem.prefix)
            problem.decoder.expand(1 + problem.settings.beam_width * problem.settings.n_expand)
            return super().__call__(problem)

    with pytest.raises(ValueError, match=r"sequences exceed planner\.beam_width \* planner\.n_expand = \d+$"):
        found_by(model, discretizer, decoder="eager", search=Many())


def test_it_is_recorded_and_built_where_it_is_trusted(tmp_path: Path) -> None:
    config = small_config(max_steps=2)
    config.model.members = 2
    config.planner = PlannerConfig(horizon=2, act="auto", search={**SHOOTING, "values": 0.5})
    module = make_module(TransformerLearner(), config, small_datamodule(config))
    assert isinstance(module, TrajectoryModule)
    assert len(module.members) == 1  # a search plans with one model
    last = small_fit(tmp_path, config).last
    with pytest.raises(
        UserError, match=r"planner\.search names the class random_shooting\..*allow=\[random_shooting\]"
    ):
        Agent.from_checkpoint(last)
    agent = Agent.from_checkpoint(last, allow=["random_shooting"])
    assert (agent.settings.act, agent.settings.search) == ("best", {**SHOOTING, "values": 0.5})
    agent.reset(2)
    assert np.isfinite(agent.act(np.zeros((2, 1), dtype=np.float32))).all()
    changed = Agent.from_checkpoint(last, allow=["random_shooting"], search={"values": 2.0})
    assert changed.settings.search == {**SHOOTING, "values": 2.0}
    assert Agent.from_checkpoint(last, search={"_target_": f"{__name__}.Constant"}).settings.search["asks"] == 3
    checkpoint = Checkpoint.read(last)
    assert planner_settings(checkpoint, {"search": None, "act": "mean"})[0].search is None
    config.planner.search = None
    plain = Checkpoint.read(small_fit(tmp_path / "plain", config).last)
    with pytest.raises(UserError, match=r"^planner\.search has no class: give planner\.search\._target_="):
        planner_settings(plain, {"search": {"values": 2.0}})


class Drawing(Constant):
    """Draws by PyTorch's own generator."""

    def __call__(self, problem: SearchProblem) -> SearchResult:
        found = super().__call__(problem)
        return replace(found, tokens=torch.randint(10, found.tokens.shape))


class Failing(Constant):
    """Has a mistake."""

    def __call__(self, problem: SearchProblem) -> SearchResult:
        return problem.missing  # pyright: ignore


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("Drawing", r"Drawing finds other plans when it is called again with the same random numbers"),
        ("Failing", r"Failing fails when it is tried before training: AttributeError: .*missing"),
        ("Missing", r"^planner\.search\._target_=.*Missing: there is no such class"),
    ],
)
def test_a_mistake_shows_before_training(name: str, pattern: str) -> None:
    config, state = small_config(), torch.get_rng_state()
    config.planner = PlannerConfig(horizon=2, search={"_target_": f"{__name__}.{name}"})
    with pytest.raises(UserError, match=pattern):
        TransformerLearner().check_data(config, small_datamodule(config))
    assert torch.get_rng_state().equal(state)
    config.planner = PlannerConfig(horizon=2, search=SHOOTING)
    TransformerLearner().check_data(config, small_datamodule(config))


def test_the_search_of_the_page_finds_what_it_should(
    model: TrajectoryTransformer, discretizer: Discretizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At a very low temperature it executes the best candidate's action, which is the beam search's."""
    page = (Path(__file__).parents[2] / "docs" / "own_search.md").read_text(encoding="utf-8")
    (tmp_path / "page_searches.py").write_text(page.split("```python")[1].split("```")[0])
    monkeypatch.syspath_prepend(tmp_path)
    options = {"horizon": 1, "context": 1}
    search = {"_target_": "page_searches.SoftmaxOfValues", "temperature": 1e-6}
    beam, own = (found_by(model, discretizer, **options, search=spec) for spec in (None, search))
    columns = model.layout.action
    assert own.actions is not None
    torch.testing.assert_close(own.actions, discretizer.decode(beam.tokens[:, :, columns], columns))
    assert torch.equal(own.tokens, beam.tokens)
