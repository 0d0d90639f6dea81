"""The Decision Transformer: its network against that of ``transformers``, its training, and its agent's past."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trajectory_transformer.building import TYPED_BY_USER
from trajectory_transformer.checkpoint import Checkpoint
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceLeaf, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.learners.dt import ReturnConditioned
from trajectory_transformer.learners.dt_agent import DecisionAgent, DecisionSettings
from trajectory_transformer.learners.dt_module import ReturnDataModule
from trajectory_transformer.learners.dt_network import DecisionTransformer
from trajectory_transformer.training.fit import fit, make_module
from trajectory_transformer.training.learner import make_learner

from ..specs import box, spec_of
from ..training.small_run import small_config, small_data, small_datamodule

GOLDEN = np.load(Path(__file__).parents[1] / "golden" / "decision_transformer.npz", allow_pickle=False)
SPACES = EnvironmentSpec("Walk-v0", None, box(2, -9.0, 9.0), box(1, -2.0, 6.0))


def weights_of_transformers() -> dict[str, Tensor]:
    """The golden weights under our names; its maps of the blocks are transposed, and q, k, v are one."""
    names = {"embed_timestep": "step_embedding", "embed_return": "return_embedding", "embed_ln": "ln_in",
             "embed_state": "observation_embedding", "embed_action": "action_embedding", "predict_action.0": "head",
             "encoder.ln_f": "ln_f"}  # fmt: skip
    parts = {"ln_1": "ln1", "ln_2": "ln2", "attn.c_proj": "attn.proj", "mlp.c_fc": "l1", "mlp.c_proj": "l2"}
    found = {}
    for key in (key.removeprefix("weights/") for key in GOLDEN if key.startswith("weights/")):
        name, _, kind = key.rpartition(".")
        value = torch.from_numpy(GOLDEN[f"weights/{key}"])
        if name in names:
            found[f"{names[name]}.{kind}"] = value
            continue
        layer, part = name.removeprefix("encoder.h.").split(".", 1)
        value = value.T if value.ndim == 2 else value
        if part == "attn.c_attn":
            split = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {f"blocks.{layer}.attn.{ours}.{kind}": third for ours, third in split}
        else:
            found[f"blocks.{layer}.{parts[part]}.{kind}"] = value
    return found


@pytest.fixture
def golden_network() -> DecisionTransformer:
    options = ReturnConditioned(context=4, n_layer=2, n_head=2, n_embd=8)
    network = DecisionTransformer(EnvironmentSpec("Walk-v0", None, box(3), box(2)), options, longest_episode=9)
    left = network.load_state_dict(weights_of_transformers(), strict=False)
    assert not left.unexpected_keys
    assert all("embedding" not in name and "blocks" not in name for name in left.missing_keys)  # buffers
    return network.eval()


def golden_inputs() -> list[Tensor]:
    return [torch.from_numpy(GOLDEN[name]) for name in ("returns", "states", "actions", "timesteps")]


def test_it_predicts_what_transformers_does(golden_network: DecisionTransformer) -> None:
    with torch.no_grad():
        predicted = golden_network(*golden_inputs())
    np.testing.assert_allclose(predicted.numpy(), GOLDEN["predicted"], atol=1e-6)
    assert np.abs(GOLDEN["predicted"]).max() > 0.3  # which is no prediction of nothing


def test_inputs_are_normalised_and_actions_are_in_their_own_units(golden_network: DecisionTransformer) -> None:
    """The same network under other units, and numbers of steps past the longest episode."""
    returns, observations, actions, steps = golden_inputs()
    options = golden_network.options
    bounds = SpaceSpec((SpaceLeaf((), "box", (2,), (0.0, -4.0), (8.0, -2.0)),))
    network = DecisionTransformer(EnvironmentSpec("Walk-v0", None, box(3), bounds), options, longest_episode=9).eval()
    network.load_state_dict(weights_of_transformers(), strict=False)
    shift, size = torch.tensor([1.0, -2.0, 3.0]), torch.tensor([2.0, 0.5, 4.0])
    data = torch.tensor([[-1.0], [1.0]]) * size + shift  # whose mean and deviation they are
    network.normalize_like(data, torch.tensor([3.0, -50.0, 20.0]), None)
    middle, half = torch.tensor([4.0, -3.0]), torch.tensor([4.0, 1.0])
    with torch.no_grad():
        predicted = network(50.0 * returns, size * observations + shift, half * actions + middle, steps)
        late = golden_network(returns, observations, actions, steps + 100)
        last = golden_network(returns, observations, actions, torch.full_like(steps, 8))
    expected = GOLDEN["predicted"] * half.numpy() + middle.numpy()
    np.testing.assert_allclose(predicted.numpy(), expected, atol=1e-5)
    assert torch.equal(late, last)
    network.normalize_like(data, torch.tensor([3.0]), 1000.0)
    assert network.return_scale.item() == 1000.0
    network.normalize_like(data, torch.zeros(3), None)
    assert network.return_scale.item() == 1.0


def test_a_steps_own_action_and_what_follows_are_unseen(golden_network: DecisionTransformer) -> None:
    inputs = golden_inputs()
    before = golden_network(*inputs)
    returns, observations, actions, _ = inputs
    actions[:, 2:] += 1.0
    returns[:, 3:] += 1.0
    observations[:, 3:] += 1.0
    after = golden_network(*inputs)
    assert torch.equal(before[:, :3], after[:, :3])
    assert not torch.equal(before[:, 3], after[:, 3])


class TestAgent:
    """The agent against the network, given each episode as a whole."""

    CONTEXT = 3

    @pytest.fixture
    def agent(self) -> DecisionAgent:
        torch.manual_seed(0)
        options = ReturnConditioned(context=self.CONTEXT, n_layer=1, n_embd=8)
        network = DecisionTransformer(SPACES, options, longest_episode=5).eval()
        agent = DecisionAgent(network.requires_grad_(False), SPACES, "cpu", target_return=20.0)
        agent.reset(2)
        return agent

    def expected(self, agent: DecisionAgent, episode: list[tuple[np.ndarray, float, float]]) -> float:
        """Action at the end of an episode of (observation, reward received before it, action, or 0 at the last)."""
        observations, rewards, actions = zip(*episode, strict=True)
        returns = 20.0 - np.cumsum(rewards)
        network = agent._network
        columns = [torch.tensor(np.array(column, dtype=np.float32)) for column in (returns, observations, actions)]
        columns.append(torch.arange(len(episode)))
        kept = [column[-self.CONTEXT :].unsqueeze(0) for column in columns]
        kept[2] = kept[2].unsqueeze(-1)
        return float(network(*kept)[0, -1])

    def test_it_remembers_what_its_network_sees(self, agent: DecisionAgent) -> None:
        random = np.random.default_rng(0)
        episodes: list[list[Any]] = [[], []]
        rewards = np.zeros(2)
        for step in range(7):
            observations = random.normal(size=(2, 2)).astype(np.float32)
            active = np.array([True, step != 5])  # the second one rests for a step
            actions = agent.act(observations, active)
            for row in np.flatnonzero(active):
                episodes[row].append((observations[row], rewards[row], 0.0))
                assert actions[row, 0] == pytest.approx(self.expected(agent, episodes[row]), abs=1e-6)
            assert (actions[~active] == 0).all()
            taken = actions + np.float32(0.5)  # as the environment may clip or round them
            rewards = np.where(active, random.normal(size=2), rewards)
            done = np.array([step == 3, False])  # the first one begins anew
            agent.observe(taken, rewards, done | ~active)
            for row in np.flatnonzero(active):
                episodes[row][-1] = (*episodes[row][-1][:2], taken[row, 0])
            if done[0]:
                episodes[0], rewards[0] = [], 0.0
                agent.begin_episode(0, 7)
        assert [len(episode) for episode in episodes] == [3, 6]

    def test_what_results_say_of_it(self, agent: DecisionAgent) -> None:
        assert agent.settings == DecisionSettings("dt_policy", context=3, target_return=20.0)

    def test_a_context_of_one_step(self) -> None:
        network = DecisionTransformer(SPACES, ReturnConditioned(context=1, n_embd=8), 5).eval()
        agent = DecisionAgent(network, SPACES, "cpu", 1.0)
        for step in range(2):  # nothing of the past is seen but how long it is
            actions = agent.act(np.ones((1, 2), dtype=np.float32))
            seen = torch.tensor([[1.0]]), torch.ones(1, 1, 2), torch.zeros(1, 1, 1), torch.tensor([[step]])
            assert actions.item() == pytest.approx(network(*seen).item(), abs=1e-6)
            agent.observe(actions, np.zeros(1), np.zeros(1, dtype=bool))


def config(**options: Any) -> TrainConfig:
    made = small_config()
    made.learner = spec_of(ReturnConditioned(**{"context": 3, "n_layer": 1, "n_embd": 8} | options))
    return made


def datamodule(options: TrainConfig, episodes: list[Episode] | None = None) -> ReturnDataModule:
    data = small_data()
    if episodes is not None:
        data.episodes[:] = episodes
    module = small_datamodule(options, data)
    assert isinstance(module, ReturnDataModule)
    return module


def test_the_loss_by_hand() -> None:
    """Steps past the end count only in the divisor."""
    options = config(dropout=0.0)
    data = datamodule(options)
    module = make_module(make_learner(options.learner, TYPED_BY_USER), options, data)
    batch = data.windows["train"].gather(torch.tensor([0, 6, 7]))  # of the first episode, which has 8 steps
    loss, logged = module.losses(batch)  # pyright: ignore[reportCallIssue]
    with torch.no_grad():
        predicted = module.network(batch.returns, batch.observations, batch.actions, batch.steps)  # pyright: ignore
    error = ((predicted - batch.actions) / 10.0)[..., 0].numpy() ** 2  # actions from −10 to 10
    expected = (error[0].sum() + error[1, :2].sum() + error[2, :1].sum()) / 9
    assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert logged["loss"] is loss


@pytest.mark.parametrize(
    ("given", "target", "scale"),
    [({}, None, None), ({"target_factor": 1.5}, 1.5, None), ({"target_return": -3.0, "return_scale": 7.0}, None, 7.0)],
)
def test_the_return_that_is_asked_for(given: dict[str, Any], target: float | None, scale: float | None) -> None:
    options = config(**given)
    data = datamodule(options)
    windows = data.windows["train"]
    whole = windows.returns[windows.steps == 0]
    module = make_module(make_learner(options.learner, TYPED_BY_USER), options, data)
    wanted = -3.0 if "target_return" in given else (target or 1.0) * whole.max().item()
    assert module.model_options()["target_return"] == pytest.approx(wanted, rel=1e-6)
    greatest = windows.returns.abs().max().item()
    assert module.network.return_scale.item() == pytest.approx(scale or greatest)  # pyright: ignore


def test_it_does_as_well_as_it_is_asked_to(tmp_path: Path) -> None:
    """In half of the episodes action 5 earns 1 per step, in half action −5 earns −1: the target return decides."""
    episodes = [
        Episode(
            np.zeros((7, 1), dtype=np.float32),
            np.full((6, 1), 5.0 * sign, dtype=np.float32),
            np.full(6, sign, dtype=np.float32),
            False,
        )
        for sign in (1.0, -1.0) * 8
    ]
    options = config(dropout=0.0, context=2)
    options.trainer.max_steps = options.trainer.validate_every = 100
    learner = make_learner(options.learner, TYPED_BY_USER)
    report = fit(learner, options, tmp_path, datamodule(options, episodes), [], [], False)
    checkpoint = Checkpoint.read(report.best)
    for target, action in ((6.0, 5.0), (-6.0, -5.0)):
        agent = learner.make_agent(checkpoint, "cpu", {})
        assert isinstance(agent, DecisionAgent)
        assert agent.settings.target_return == 6.0
        agent._target = target
        agent.reset(1)
        assert agent.act(np.zeros((1, 1), dtype=np.float32)).item() == pytest.approx(action, abs=2.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_embd": 10, "n_head": 3}, r"^learner\.n_embd=10 must be divisible by learner\.n_head=3$"),
        (
            {"target_return": 1.0, "target_factor": 2.0},
            r"^learner\.target_factor=2 has no effect beside learner\.target_return; leave out one$",
        ),
        ({"context": 1001}, r"^learner\.context=1001 must be at most 1000$"),
        ({"return_scale": 0.0}, r"^learner\.return_scale=0\.0 must be positive, or null$"),
    ],
)
def test_options_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        ReturnConditioned(**options)


def test_a_checkpoint_without_its_target(tmp_path: Path) -> None:
    options = config()
    options.trainer.max_steps = 1
    learner = make_learner(options.learner, TYPED_BY_USER)
    checkpoint = Checkpoint.read(fit(learner, options, tmp_path, datamodule(options), [], [], False).best)
    assert isinstance(checkpoint.model, dict)
    del checkpoint.model["target_return"]
    with pytest.raises(UserError, match=r"best\.ckpt' do not fit together: 'target_return'$"):
        learner.make_agent(checkpoint, "cpu", {})
