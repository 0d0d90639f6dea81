"""The agent: its past, its random numbers, and its independence from neighbours in the batch."""

import copy
import math
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.checkpoint import Checkpoint, DatasetRecord
from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import DataConfig, PlannerConfig
from trajectory_transformer.data.discretizer import Discretizer, QuantileDiscretizer
from trajectory_transformer.environments.spec import SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import SearchResult, SearchStep, return_weights
from trajectory_transformer.planning.objectives import Return, WeightedSum, make_objective
from trajectory_transformer.planning.plan import Plan
from trajectory_transformer.planning.planner import BeamPlanner
from trajectory_transformer.planning.trained_transformer import planner_settings

from ..specs import box
from .conftest import ACTION_DIM, BINS, ENVIRONMENT, OBSERVATION_DIM, PLANNER, WIDTH


def interact(agent: Agent, seeds: list[int], steps: int, ends: dict[int, int] | None = None) -> np.ndarray:
    """Actions (step, environment, action_dim) in environments whose observations depend on seed and step alone."""
    agent.reset(len(seeds), seeds)
    actions = []
    for step in range(steps):
        observations = np.stack([np.random.default_rng((s, step)).normal(size=OBSERVATION_DIM) for s in seeds])
        actions.append(agent.act(observations.astype(np.float32)))
        done = np.array([(ends or {}).get(i) == step for i in range(len(seeds))])
        agent.observe(actions[-1], observations[:, 0].astype(np.float32), done)
    return np.stack(actions)


@pytest.mark.parametrize("options", [{}, {"window": "sliding", "horizon": 5}, {"plan_freq": 2}, {"context": 1}])
def test_neighbours_change_nothing(make_agent, options: dict[str, Any]) -> None:
    agent = make_agent(**options)
    together = interact(agent, [7, 8, 9], steps=6, ends={1: 2})
    alone = interact(agent, [9], steps=6)
    np.testing.assert_array_equal(together[:, 2:], alone)
    np.testing.assert_array_equal(together, interact(agent, [7, 8, 9], steps=6, ends={1: 2}))


def test_seeds_matter(make_agent) -> None:
    agent = make_agent(cdf_act=None)
    agent.reset(2, [0, 1])
    same = []
    for step in range(6):
        actions = agent.act(np.full((2, OBSERVATION_DIM), step / 5, dtype=np.float32))
        agent.observe(actions, np.zeros(2), np.zeros(2, dtype=bool))
        same.append(np.array_equal(actions[0], actions[1]))
    assert not all(same)


def test_the_past_is_what_happened(make_agent, discretizer: Discretizer) -> None:
    """The prefix of the search holds the last context - 1 transitions as observed, then the present."""
    agent = make_agent()
    seen: list[torch.Tensor] = []
    plan = agent._planner.plan
    agent._planner.plan = lambda prefix, *rest: (seen.append(prefix.clone()), plan(prefix, *rest))[1]
    rng = np.random.default_rng(0)
    agent.reset(1)
    expected: list[torch.Tensor] = []
    for _ in range(5):
        observation = rng.normal(size=(1, OBSERVATION_DIM)).astype(np.float32)
        taken, reward = rng.normal(size=(1, ACTION_DIM)).astype(np.float32), rng.normal(size=1).astype(np.float32)
        agent.act(observation)
        agent.observe(taken, reward, np.array([False]))
        row = np.concatenate([observation[0], taken[0], reward, [1e6]]).astype(np.float32)
        expected.append(discretizer.encode(torch.from_numpy(row)))
        past = torch.cat([*expected[-3:-1], expected[-1][:OBSERVATION_DIM]])
        assert seen[-1][0].tolist() == past.tolist()


def test_a_finished_episode_is_forgotten(make_agent) -> None:
    agent = make_agent()
    observation = np.full((1, OBSERVATION_DIM), 0.3, dtype=np.float32)
    agent.reset(1, [5])
    first = agent.act(observation)
    agent.observe(first, np.zeros(1), np.array([True]))
    agent.begin_episode(0, 5)
    np.testing.assert_array_equal(agent.act(observation), first)


def test_the_past_of_a_finished_environment_alone_is_forgotten(make_agent) -> None:
    """Of two environments with the same past, the one that ended plans like a new one; planning is deterministic."""
    agent, fresh = make_agent(name="imitation"), make_agent(name="imitation")
    first, second = (np.full((2, OBSERVATION_DIM), value, dtype=np.float32) for value in (0.9, -0.4))
    agent.reset(2)
    agent.act(first)
    agent.observe(np.ones((2, ACTION_DIM)), np.ones(2), np.array([True, False]))
    agent.act(second)
    fresh.reset(2)
    fresh.act(second)
    plan, expected = agent.last_plan, fresh.last_plan
    np.testing.assert_array_equal(plan.actions[0], expected.actions[0])
    np.testing.assert_array_equal(plan.score[0], expected.score[0])
    assert abs(plan.score[1] - expected.score[1]) > 1e-3  # the other one's past still matters


def test_plan_freq_follows_the_plan_open_loop(make_agent) -> None:
    agent = make_agent(plan_freq=3)
    agent.reset(1)
    observation = np.zeros((1, OBSERVATION_DIM), dtype=np.float32)
    agent.act(observation)
    planned = agent.last_plan.actions[0]
    for step in range(3):
        action = agent.act(observation)
        np.testing.assert_array_equal(action[0], planned[step])
        agent.observe(action, np.zeros(1), np.array([False]))
    agent.act(observation)
    assert not np.array_equal(agent.last_plan.actions[0], planned)


def test_the_plan_begins_with_the_present(make_agent, discretizer: Discretizer) -> None:
    agent = make_agent()
    observation = np.array([[0.1, -0.4, 0.9]], dtype=np.float32)
    agent.reset(1)
    action = agent.act(observation)
    plan = agent.last_plan
    columns = slice(0, OBSERVATION_DIM)
    present = discretizer.decode(discretizer.encode(torch.from_numpy(observation), columns), columns)
    np.testing.assert_allclose(plan.observations[:, 0], present.numpy())
    np.testing.assert_array_equal(plan.actions[:, 0], action)
    discounts = 0.95 ** np.arange(4)
    total = np.concatenate([plan.rewards[0], plan.value]) @ discounts
    np.testing.assert_allclose(plan.score[0], total, rtol=1e-5)


def test_inactive_rows_neither_plan_nor_remember(make_agent) -> None:
    agent = make_agent()
    agent.reset(2, [0, 1])
    observations = np.zeros((2, OBSERVATION_DIM), dtype=np.float32)
    observations[1] = np.nan
    actions = agent.act(observations, active=np.array([True, False]))
    assert actions[1].tolist() == [0.0, 0.0]
    agent.observe(actions, np.zeros(2), np.zeros(2, dtype=bool))
    assert agent._past_length.tolist() == [1, 0]
    assert np.isnan(agent.last_plan.score[1])


def test_observations_that_are_not_finite_are_refused_by_row(make_agent) -> None:
    agent = make_agent()
    agent.reset(3)
    observations = np.zeros((3, OBSERVATION_DIM), dtype=np.float32)
    observations[1, 2] = np.nan
    with pytest.raises(UserError, match=r"environment \[1\] has NaN"):
        agent.act(observations)


def test_observations_outside_the_fitted_range_count_as_its_end(make_agent, discretizer: Discretizer) -> None:
    agent = make_agent()
    agent.reset(2, [3, 3])
    largest = discretizer.edges[:OBSERVATION_DIM, -1].numpy()
    actions = agent.act(np.stack([largest, largest + 100]))
    np.testing.assert_array_equal(actions[0], actions[1])


def test_tensors_come_back_as_tensors(make_agent) -> None:
    agent = make_agent()
    agent.reset(1, [0])
    observation = torch.zeros(1, OBSERVATION_DIM)
    action = agent.act(observation)
    assert isinstance(action, torch.Tensor)
    agent.observe(action, torch.zeros(1), torch.zeros(1, dtype=torch.bool))


def test_wrong_width_is_refused(make_agent) -> None:
    with pytest.raises(UserError, match=r"observations have shape \(1, 4\), expected \(1, 3\)"):
        make_agent().act(np.zeros((1, 4), dtype=np.float32))


def test_plans_longer_than_the_model_sees_are_refused(make_agent) -> None:
    with pytest.raises(UserError, match=r"planner\.context=3 and planner\.horizon=7 need 9 transitions, but .* see 8"):
        make_agent(horizon=7)
    with pytest.raises(UserError, match=r"planner\.context=9 exceeds the 8 transitions"):
        make_agent(context=9)


def test_a_discretiser_of_another_model_is_refused(model: TrajectoryTransformerModel) -> None:
    values = torch.randn(50, WIDTH + 1)
    settings = PlannerConfig(**PLANNER)
    with pytest.raises(UserError, match="the discretiser has 8 dimensions, the model 7"):
        BeamPlanner(model, QuantileDiscretizer(BINS).fit(values), settings)
    with pytest.raises(UserError, match="the discretiser has 5 bins, the model 12"):
        BeamPlanner(model, QuantileDiscretizer(5).fit(values[:, :WIDTH]), settings)


def test_an_environment_of_other_dimensions_is_refused(
    model: TrajectoryTransformerModel, discretizer: Discretizer
) -> None:
    planner = BeamPlanner(model, discretizer, PlannerConfig(**PLANNER))
    with pytest.raises(UserError, match="4 observation and 2 action dimensions, the model 3 and 2"):
        Agent(planner, replace(ENVIRONMENT, observation=box(4)))


def test_planned_says_whether_the_last_act_planned(make_agent) -> None:
    agent = make_agent(plan_freq=2)
    agent.reset(1)
    planned = []
    for _ in range(4):
        actions = agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
        agent.observe(actions, np.zeros(1), np.zeros(1, dtype=bool))
        planned += agent.planned.tolist()
    assert planned == [True, False, True, False]


def test_from_checkpoint_restores_the_agent(
    make_agent, model: TrajectoryTransformerModel, discretizer: Discretizer, tmp_path: Path
) -> None:
    recorded: dict[str, Any] = PLANNER | {"discount": None}
    contents: dict[str, Any] = {
        "state_dict": {f"model.{name}": value for name, value in model.state_dict().items()},
        "trajectory_transformer": {
            "format": 1,
            "model": model.config.to_dict(),
            "discretizer": discretizer.to_dict(),
            "environment": ENVIRONMENT.to_dict(),
            "data": asdict(DataConfig(discount=0.95)),
            "dataset": DatasetRecord(("test/data-v0",), "abc", torch.zeros(1), None, "none").to_dict(),
            "seed": 0,
            "planner": asdict(PlannerConfig(**recorded)),
        },
    }
    path = tmp_path / "best.ckpt"
    write_checkpoint(path, contents)
    restored = Agent.from_checkpoint(path)
    np.testing.assert_array_equal(interact(restored, [1, 2], 4), interact(make_agent(), [1, 2], 4))
    assert restored.environment == ENVIRONMENT
    assert Agent.from_checkpoint(path, horizon=2).settings.horizon == 2
    assert Agent.from_checkpoint(path, precision=32).settings.precision == "32"
    with pytest.raises(UserError, match="no option horizn; it has name, horizon"):
        Agent.from_checkpoint(path, horizn=2)
    with pytest.raises(UserError, match=r"planner\.beam_width=0 must be at least 1"):
        Agent.from_checkpoint(path, beam_width=0)
    section = contents["trajectory_transformer"]
    pretrained = {"numerical_embedding": 8, "numerical_pretraining": 3.0}
    for value_r2, options, act, cdf, temperature in (
        (1.0, pretrained, "conditioned", None, 1.0),
        (0.85, pretrained | {"numerical_embedding": None}, "best", 0.3, 0.9),
        (0.85, {}, "best", 0.3, 0.9),
        (0.84, {}, "conditioned", None, 1.0),
        (0.65, pretrained, "conditioned", None, 1.0),
        (0.64, pretrained, "mean", None, 0.6),
        (None, {}, "mean", None, 0.6),
    ):
        section |= {
            "value_r2": value_r2,
            "model": model.config.to_dict() | options,
            "planner": asdict(PlannerConfig(**(recorded | {"act": "auto", "cdf_act": 0.3, "temperature": 0.9}))),
        }
        checkpoint = Checkpoint.from_contents(contents)
        found, _ = planner_settings(checkpoint, {})
        assert (found.act, found.cdf_act, found.temperature) == (act, cdf, temperature)
        assert planner_settings(checkpoint, {"act": "best"})[0].cdf_act == 0.3
        assert planner_settings(checkpoint, {"name": "imitation"})[0].act == "best"
    section |= {"model": model.config.to_dict(), "value_r2": 0.9}
    assert Agent.of(Checkpoint.from_contents(contents)).settings.act == "best"
    other = {"name": "other", "objective": WeightedSum({"a": {"weight": 1.0, "objective": Return()}})}
    for value_r2, act, cdf, temperature in ((0.85, "best", 0.3, 0.9), (0.84, "elite", None, 1.0)):
        section |= {"value_r2": value_r2}
        found = Agent.of(Checkpoint.from_contents(contents), **other)  # auto for another objective than the return
        assert (found.settings.act, found.settings.cdf_act, found.settings.temperature) == (act, cdf, temperature)
    section |= {"model": {"vocab_size": BINS}}
    with pytest.raises(UserError, match="do not fit together"):
        Agent.of(Checkpoint.from_contents(contents))
    contents["trajectory_transformer"] |= {"planner": {"horizon": 3, "depth": 9}}
    with pytest.raises(UserError, match=r"do not fit together.*depth"):
        Agent.of(Checkpoint.from_contents(contents))


# ---- vector environments: what happens after an episode's end ----


class Short(gymnasium.Env[np.ndarray, np.ndarray]):
    """Random observations for one to five steps; remembers the transitions of the present episode."""

    observation_space = gymnasium.spaces.Box(-1.0, 1.0, (OBSERVATION_DIM,), np.float32)
    action_space = gymnasium.spaces.Box(-9.0, 9.0, (ACTION_DIM,), np.float32)

    def _observation(self) -> np.ndarray:
        self.present = self.np_random.uniform(-1, 1, OBSERVATION_DIM).astype(np.float32)
        return self.present

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[np.ndarray, dict[str, Any]]:
        super().reset(seed=seed)
        self.history: list[np.ndarray] = []
        self.steps = int(self.np_random.integers(1, 6))
        return self._observation(), {}

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        reward = float(self.np_random.uniform(-1, 1))
        self.history.append(np.concatenate([self.present, action, [reward, 1e6]]).astype(np.float32))
        return self._observation(), reward, len(self.history) == self.steps, False, {}


@pytest.mark.parametrize("mode", list(AutoresetMode))
@pytest.mark.parametrize("told", [True, False])
def test_no_transition_of_the_past_is_false(
    make_agent, discretizer: Discretizer, mode: AutoresetMode, told: bool
) -> None:
    """The past is the environment's episode; with unknown autoreset, without the first transition of later episodes."""
    spec = EnvSpec("Short-v0", entry_point=f"{__name__}:Short", disable_env_checker=True)
    envs = gymnasium.make_vec(spec, 2, "sync", {"autoreset_mode": mode})
    assert isinstance(envs, SyncVectorEnv)
    agent = make_agent(context=5, plan_freq=3)
    agent.reset(2, autoreset=envs.metadata["autoreset_mode"] if told else None)
    observations, _ = envs.reset(seed=0)
    done, episodes = np.zeros(2, dtype=bool), np.zeros(2)
    for _ in range(30):
        actions = agent.act(observations)
        for row, environment in enumerate(envs.envs):
            if done[row] and mode == AutoresetMode.NEXT_STEP:  # of which the environment takes no notice
                assert agent.planned[row] != told
                continue
            episode = environment.unwrapped
            assert isinstance(episode, Short)
            lost = int(not told and episodes[row] > 0 and mode != AutoresetMode.NEXT_STEP)
            expected = [discretizer.encode(torch.from_numpy(one)).tolist() for one in episode.history[lost:][-4:]]
            assert agent._past[row, : agent._past_length[row]].tolist() == expected
            if len(episode.history) == 0:
                assert agent.planned[row]  # nothing is left of the last episode's plan
            elif told:
                assert agent.planned[row] == (len(episode.history) % 3 == 0)
        observations, rewards, terminated, truncated, _ = envs.step(actions)
        done = terminated | truncated
        agent.observe(actions, rewards, done)
        episodes += done
        if mode == AutoresetMode.DISABLED and done.any():
            observations, _ = envs.reset(options={"reset_mask": done})
    assert (episodes >= 4).all()


def test_only_gymnasiums_modes_are_known(make_agent) -> None:
    with pytest.raises(UserError, match=r"autoreset='NextSteps' is not one of .* did you mean 'NextStep'"):
        make_agent().reset(1, autoreset="NextSteps")
    with pytest.raises(UserError, match="2 seeds for 1 environments"):
        make_agent().reset(1, [0, 1])


# ---- copies, and other threads and processes ----


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda agent: pickle.loads(pickle.dumps(agent))])
@pytest.mark.parametrize("options", [{}, {"decoder": "eager"}, {"name": "imitation"}, {"deadline_ms": 1e6}])
def test_a_copy_goes_on_as_the_agent_does(make_agent, copied: Callable[[Agent], Agent], options: dict) -> None:
    agent = make_agent(**options)
    interact(agent, [3, 4], steps=2)
    other = copied(agent)
    random = np.random.default_rng(0)
    for _ in range(3):
        observations = random.normal(size=(2, OBSERVATION_DIM)).astype(np.float32)
        actions = agent.act(observations)
        np.testing.assert_array_equal(other.act(observations), actions)
        for one in (agent, other):
            one.observe(actions, np.ones(2), np.zeros(2, dtype=bool))
    interact(agent, [5], steps=1)
    assert len(other._generators) == 2  # nothing is shared


def test_threads_that_share_an_agent_wait_for_each_other(make_agent) -> None:
    agent = make_agent(context=1, k_act=1, k_obs=1, n_expand=1, horizon=5)  # nothing is drawn at random
    agent.reset(2)
    batches = np.random.default_rng(0).normal(size=(40, 2, OBSERVATION_DIM)).astype(np.float32)
    expected = [agent.act(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        np.testing.assert_array_equal(list(pool.map(agent.act, batches)), expected)


# ---- what is done: the best plan's action, or a mean ----


def followed(found: SearchResult, beam: int) -> list[list[int]]:
    """Action tokens of one of the finally kept sequences, traced back by hand."""
    actions, kept = [], [step.kept[0].tolist() for step in found.steps]
    for t in reversed(range(len(kept))):
        candidate = kept[t][beam]
        actions.append(found.steps[t].tokens[0, candidate, :ACTION_DIM].tolist())
        beam = candidate // (found.steps[t].tokens.shape[1] // (len(kept[t - 1]) if t else 1))
    return actions[::-1]


@pytest.mark.parametrize("window", ["growing", "sliding"])
@pytest.mark.parametrize(("act", "share", "beams"), [("best", 1.0, 1), ("elite", 1.0, 4), ("elite", 0.4, 2)])
def test_means_are_over_the_best_sequences_of_the_end(
    make_agent, discretizer: Discretizer, window: str, act: str, share: float, beams: int
) -> None:
    agent = make_agent(act=act, elite_share=share, cdf_act=None, plan_freq=3, window=window)
    found: list[SearchResult] = []
    plan = agent._planner.plan
    agent._planner.plan = lambda *arguments: (found.append(plan(*arguments)), found[-1])[1]
    agent.reset(1)
    done = []
    for _ in range(3):
        done.append(agent.act(np.full((1, OBSERVATION_DIM), 0.2, dtype=np.float32)))
        agent.observe(done[-1], np.zeros(1), np.array([False]))
    columns = slice(OBSERVATION_DIM, OBSERVATION_DIM + ACTION_DIM)
    tokens = torch.tensor([followed(found[0], beam) for beam in range(beams)])
    assert len(tokens.flatten(1).unique(dim=0)) == beams  # so that a mean is another thing than the best
    expected = discretizer.decode(tokens, columns).mean(dim=0)
    np.testing.assert_allclose(np.concatenate(done), expected.numpy(), atol=1e-6)
    np.testing.assert_array_equal(agent.last_plan.actions[0], np.concatenate(done))
    assert followed(found[0], 0) == found[0].tokens[0, :, columns].tolist()


def test_the_mean_is_over_all_candidates(make_agent, discretizer: Discretizer) -> None:
    agent = make_agent(act="mean", cdf_act=None)
    found: list[SearchResult] = []
    plan = agent._planner.plan
    agent._planner.plan = lambda *arguments: (found.append(plan(*arguments)), found[-1])[1]
    agent.reset(2)
    action = agent.act(np.full((2, OBSERVATION_DIM), 0.2, dtype=np.float32))
    columns = slice(OBSERVATION_DIM, OBSERVATION_DIM + ACTION_DIM)
    for t in range(3):
        expected = discretizer.decode(found[0].steps[t].tokens[:, :, :ACTION_DIM], columns)
        assert expected.shape == (2, 8, ACTION_DIM)
        np.testing.assert_allclose(agent.last_plan.actions[:, t], expected.mean(dim=1).numpy(), atol=1e-6)
    np.testing.assert_array_equal(agent.last_plan.actions[:, 0], action)


@pytest.mark.parametrize("window", ["growing", "sliding"])
@pytest.mark.parametrize("decoder", ["native", "eager"])
def test_a_conditioned_mean_is_weighted_by_the_chance_of_a_high_return(
    make_agent, discretizer: Discretizer, decoder: str, window: str
) -> None:
    """Predictions are the model's for each whole sequence; what is weighted is enumerated (return_weights' tests)."""
    agent = make_agent(act="conditioned", top_share=0.2, cdf_act=None, window=window, decoder=decoder, horizon=1)
    found: list[SearchResult] = []
    plan, prefixes = agent._planner.plan, []
    agent._planner.plan = lambda *a: (prefixes.append(a[0]), found.append(plan(*a)), found[-1])[2]
    agent.reset(2)
    action = agent.act(np.random.default_rng(0).normal(size=(2, OBSERVATION_DIM)).astype(np.float32))
    (step,), model = found[0].steps, agent._planner.model
    columns = slice(OBSERVATION_DIM, OBSERVATION_DIM + ACTION_DIM)
    for environment in range(2):
        tokens = step.tokens[environment, :, :-1]
        whole = torch.cat([prefixes[0][environment].expand(len(tokens), -1), tokens], dim=1)
        with torch.no_grad():
            bins = model(whole, return_dict=True).logits[:, -1].softmax(-1)[:, :-1]
        torch.testing.assert_close(step.tensors["value_probabilities"][environment], bins, atol=1e-5, rtol=0)
        discount, centers = agent.settings.discount, discretizer.centers[-1]
        weights = torch.tensor(enumerated(step.rewards[environment], bins, discount * centers, 0.2))
        actions = discretizer.decode(step.tokens[environment, :, :ACTION_DIM], columns)
        expected = (weights.unsqueeze(1) * actions).sum(dim=0) / weights.sum()
        np.testing.assert_allclose(action[environment], expected.numpy(), atol=1e-4)
        assert np.abs(action[environment] - actions.mean(dim=0).numpy()).max() > 1e-3  # another thing than the mean


def enumerated(rewards: torch.Tensor, bins: torch.Tensor, values: torch.Tensor, share: float) -> list[float]:
    """Each candidate's probability of the highest returns, which together have a mean probability of ``share``."""
    bins = bins / bins.sum(dim=1, keepdim=True)
    returns = [
        (float(reward + value), candidate, float(p))
        for candidate, (reward, row) in enumerate(zip(rewards, bins, strict=True))
        for value, p in zip(values, row, strict=True)
    ]
    wanted, reached, threshold = share * float(bins.sum()), 0.0, math.inf
    for total, _, p in sorted(returns, reverse=True):
        if reached >= wanted * (1 - 1e-5):
            break
        reached, threshold = reached + p, total
    found = [0.0] * len(rewards)
    for total, candidate, p in returns:
        found[candidate] += p * (total >= threshold - 1e-5)
    return found


@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("few", [False, True], ids=["many returns", "few equal returns"])
def test_return_weights_are_those_of_an_enumeration(share: float, few: bool) -> None:
    generator = torch.Generator().manual_seed(4)
    discount, width, expand, num_bins = 0.7, 3, 4, 6
    centers = torch.randn(num_bins, generator=generator).sort().values
    rewards = torch.randn(2, 2, width * expand, generator=generator)
    if few:
        centers, rewards = centers.round(), rewards.round() * 0
    probabilities = torch.randn(2, 2, width * expand, num_bins + 1, generator=generator).mul(2).softmax(-1)[..., :-1]
    kept = torch.stack([torch.randperm(width * expand, generator=generator)[:width] for _ in range(4)]).view(2, 2, -1)
    none = torch.zeros(2, width * expand, ACTION_DIM + 2, dtype=torch.int64)
    steps = [SearchStep(none, r, r, k, p) for r, k, p in zip(rewards, kept, probabilities, strict=True)]
    found = return_weights(steps, centers, discount, share)
    for environment in range(2):
        first, second = rewards[:, environment]
        both = first[kept[0, environment]].repeat_interleave(expand) + discount * second
        for t, totals in enumerate((first, both)):
            of_values = discount ** (t + 1) * centers
            expected = enumerated(totals, probabilities[t, environment], of_values, share)
            assert found[environment, :, t].tolist() == pytest.approx(expected, abs=1e-4)


def test_candidates_of_broken_predictions_have_no_weight() -> None:
    probabilities = torch.tensor([[[0.9, 0.1], [torch.nan, torch.nan], [0.1, 0.9]]])
    rewards = torch.tensor([[0.0, torch.nan, 0.0]])
    tokens, kept = torch.zeros(1, 3, ACTION_DIM + 2, dtype=torch.int64), torch.tensor([[0]])
    step = SearchStep(tokens, rewards, rewards, kept, probabilities)
    found = return_weights([step], torch.tensor([0.0, 10.0]), 1.0, 0.3)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([0.1, 0.0, 0.9]))


@pytest.mark.parametrize(("elite_share", "kept"), [(0.01, 1), (0.5, 2), (0.75, 3), (1.0, 4)])
def test_only_the_likeliest_candidates_keep_their_weight(elite_share: float, kept: int) -> None:
    """Of equal weights all do."""
    high = [0.3, 0.8, 0.5, 0.8]
    probabilities = torch.tensor([[[1 - p, p] for p in high]])
    step = SearchStep(torch.zeros(1, 4, 3), torch.zeros(1, 4), torch.zeros(1, 4), torch.tensor([[0]]), probabilities)
    found = return_weights([step], torch.tensor([0.0, 10.0]), 1.0, 0.3, elite_share)
    least = sorted(high, reverse=True)[kept - 1]
    expected = [p if p >= least else 0.0 for p in high]
    assert found[0, :, 0].tolist() == pytest.approx(expected, abs=1e-6)


def test_an_agent_averages_the_likeliest_candidates(make_agent) -> None:
    """The mean, by weight, of what it found; with one of them, that candidate's action."""
    agent = make_agent(cdf_act=None, act="conditioned", top_share=0.3, elite_share=0.01, horizon=1)
    agent.reset(1)
    [action] = agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    found, _ = agent._searches[0]
    centers = agent._discretizer.centers[agent._layout.value]
    best = return_weights(found.steps, centers, 0.95, 0.3)[0, :, 0].argmax()
    tokens = found.steps[0].tokens[0, best, :ACTION_DIM]
    np.testing.assert_allclose(action, agent._discretizer.decode(tokens, agent._layout.action), atol=1e-6)


def test_a_conditioned_mean_of_all_returns_is_the_mean(make_agent) -> None:
    mean = interact(make_agent(cdf_act=None, act="mean"), [3, 4], steps=3)
    conditioned = interact(make_agent(cdf_act=None, act="conditioned", top_share=1.0), [3, 4], steps=3)
    np.testing.assert_allclose(conditioned, mean, atol=1e-5)


def test_of_a_discrete_space_the_action_of_the_largest_weight_is_taken(make_agent, discretizer: Discretizer) -> None:
    space = SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (5.0,)),))
    agent = make_agent(act="conditioned", top_share=0.25, beam_width=5)
    agent.environment = replace(ENVIRONMENT, action=space)
    tokens = torch.zeros(1, 5, ACTION_DIM + 2, dtype=torch.int64)
    tokens[0, :, 0] = torch.tensor([7, 7, 7, 2, 9])
    probabilities = torch.zeros(1, 5, BINS)
    high = torch.tensor([0.1, 0.2, 0.05, 0.5, 0.45])  # of the highest return
    probabilities[0, :, -1], probabilities[0, :, 0] = high, 1 - high
    step = SearchStep(tokens, torch.zeros(1, 5), torch.zeros(1, 5), torch.arange(5).unsqueeze(0), probabilities)
    nothing = torch.zeros(1, 1)
    result = SearchResult(torch.zeros(1, 1, WIDTH, dtype=torch.int64), nothing, nothing[0], nothing[0], [step], 5)
    centers = discretizer.centers[OBSERVATION_DIM]
    assert int((centers == agent._actions([result])[0][0, 0, 0]).nonzero()) == 2


def test_of_a_discrete_space_the_most_frequent_action_is_taken(make_agent, discretizer: Discretizer) -> None:
    space = SpaceSpec((SpaceLeaf((), "discrete", (), (0.0,), (5.0,)),))
    agent = make_agent(act="mean", beam_width=5)
    agent.environment = replace(ENVIRONMENT, action=space)

    def taken(firsts: list[int]) -> float:
        tokens = torch.zeros(1, 5, ACTION_DIM + 2, dtype=torch.int64)
        tokens[0, :, 0] = torch.tensor(firsts)
        step = SearchStep(tokens, torch.zeros(1, 5), torch.zeros(1, 5), torch.arange(5).unsqueeze(0))
        nothing = torch.zeros(1, 1)
        result = SearchResult(torch.zeros(1, 1, WIDTH, dtype=torch.int64), nothing, nothing[0], nothing[0], [step], 5)
        action = agent._actions([result])[0][0, 0, 0]
        centers = discretizer.centers[OBSERVATION_DIM]
        return int((centers == action).nonzero())

    assert taken([3, 7, 7, 2, 1]) == 7
    assert taken([9, 4, 4, 9, 1]) == 9  # of two the better one's
    assert taken([5, 4, 3, 2, 1]) == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"act": "median"}, "act"),
        ({"act": "mean", "name": "imitation"}, "samples none"),
        ({"elite_share": 0.0}, r"must lie in \(0, 1\]"),
        ({"elite_share": 1.5}, "elite_share"),
        ({"top_share": 0.0}, r"must lie in \(0, 1\]"),
        ({"act": "conditioned", "name": "imitation"}, "samples none"),
        (
            {"act": "conditioned", "objective": WeightedSum({"a": {"weight": 1.0, "objective": Return()}})},
            "needs planner=return",
        ),
    ],
)
def test_other_ways_to_act_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(PlannerConfig(**options))


@pytest.mark.parametrize("decoder", ["eager", "auto"])
def test_the_beams_are_what_the_search_kept(make_agent, decoder: str, discretizer: Discretizer) -> None:
    """Traced forwards: each sequence is extended by its own candidates; the first beam is the plan."""
    agent = make_agent(decoder=decoder, horizon=4, beam_width=5, n_expand=3, k_obs=None, cdf_act=None)
    found: list[SearchResult] = []
    plan = agent._planner.plan
    agent._planner.plan = lambda *given: (found.append(plan(*given)), found[-1])[1]
    agent.reset(2, [3, 4])
    assert agent.beams(1, 9).shape == (0, 0, OBSERVATION_DIM)  # nothing was planned yet
    agent.act(np.random.default_rng(0).normal(size=(2, OBSERVATION_DIM)).astype(np.float32))
    for row in range(2):
        ways: list[list[torch.Tensor]] = [[]]  # by beam: the states after the present
        for step, observations in zip(found[0].steps, [None, *found[0].observations], strict=True):
            if observations is not None:
                ways = [[*way, observations[row, beam]] for beam, way in enumerate(ways)]
            candidates = step.tokens.shape[1] // len(ways)
            ways = [ways[int(candidate) // candidates] for candidate in step.kept[row]]
            expected = torch.stack([torch.stack(way) if way else torch.zeros(0, OBSERVATION_DIM) for way in ways])
            transitions = expected.shape[1] + 1
            if transitions > 1:
                decoded = discretizer.decode(expected, slice(0, OBSERVATION_DIM)).numpy()
                np.testing.assert_array_equal(agent.beams(row, 9, transitions), decoded)
        beams = agent.beams(row, 9)
        assert beams.shape == (5, 3, OBSERVATION_DIM)
        assert len(np.unique(beams.reshape(5, -1), axis=0)) > 1
        np.testing.assert_array_equal(beams[0], agent.last_plan.observations[row, 1:])
        np.testing.assert_array_equal(agent.beams(row, 2), beams[:2])
    assert len(copy.deepcopy(agent).beams(0, 9)) == 0


@pytest.mark.parametrize("options", [{"horizon": 1}, {"name": "imitation"}])
def test_where_no_states_were_searched_there_are_no_beams(make_agent, options: dict[str, Any]) -> None:
    agent = make_agent(**options)
    agent.act(np.zeros((1, OBSERVATION_DIM), dtype=np.float32))
    assert agent.beams(0, 9).size == 0


def test_a_predicted_return_worked_out_by_hand() -> None:
    nan, nothing = np.nan, np.zeros((3, 3, 1))
    rewards = np.array([[1.0, 2.0, 4.0], [1.0, 2.0, nan], [nan, nan, nan]])  # whole, cut short, for likelihood
    plan = Plan(nothing, nothing, rewards, value=np.array([8.0, 8.0, nan]), score=np.zeros(3))
    np.testing.assert_array_equal(plan.predicted_return(0.5), [1 + 1 + 1 + 1, 1 + 1 + 2, nan])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (np.zeros((1, ACTION_DIM)), 0.0, False),
            r"^rewards have shape \(\), expected \(1,\): one row for each environment$",
        ),
        ((np.zeros(ACTION_DIM), [0.0], [False]), r"^actions have shape \(2,\), expected \(1, 2\)"),
        ((np.zeros((1, 1)), [0.0], [False]), r"^actions have shape \(1, 1\), expected \(1, 2\)"),
        ((np.zeros((1, ACTION_DIM)), [0.0], False), r"^done have shape"),
        (
            (np.zeros((1, ACTION_DIM)), [math.nan], [False]),
            r"^the rewards of environment \[0\] have NaN or infinite values$",
        ),
        ((np.full((1, ACTION_DIM), math.inf), [0.0], [False]), r"^the actions of environment \[0\] have NaN"),
    ],
)
def test_a_transition_of_a_wrong_form_is_refused(make_agent, given: tuple[Any, ...], message: str) -> None:
    agent = make_agent()
    agent.act(np.zeros((1, OBSERVATION_DIM)))
    with pytest.raises(UserError, match=message):
        agent.observe(*given)
    agent.observe(np.zeros((1, ACTION_DIM)), [0.0], [False])


def test_values_of_inactive_environments_may_be_anything(make_agent) -> None:
    agent = make_agent()
    agent.reset(2)
    agent.act(np.zeros((2, OBSERVATION_DIM)), active=np.array([True, False]))
    agent.observe(np.array([[0.0, 0.0], [math.nan, 0.0]]), np.array([0.0, math.nan]), np.zeros(2, dtype=bool))


def test_observations_of_more_environments_than_were_begun(make_agent) -> None:
    message = r"shape \(4, 3\), expected \(1, 3\): call reset\(num_envs=4\) first$"
    with pytest.raises(UserError, match=message):
        make_agent().act(np.zeros((4, OBSERVATION_DIM)))
    with pytest.raises(UserError, match=r"^observations are a list, not an array or a tensor$"):
        make_agent().act([[0.0] * OBSERVATION_DIM])
