"""Objectives: their inputs against full forward passes, a user's own class, records and refusals."""

import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

from tests.planning.conftest import ACTION_DIM, ENVIRONMENT, OBSERVATION_DIM, PLANNER
from tests.planning.decoders import (
    TRANSITIONS,
    VOCABULARY,
    WIDTH,
    MakeDecoder,
    both_decoders,
    full_logits,
    make_eager,
    small_model,
)
from trajectory_transformer import TrajectoryTransformerModel
from trajectory_transformer.app import schema
from trajectory_transformer.checkpoint_file import write_checkpoint
from trajectory_transformer.configuration import OBJECTIVES, DataConfig, PlannerConfig, current_record
from trajectory_transformer.data.discretizer import Discretizer
from trajectory_transformer.errors import UserError
from trajectory_transformer.planning.agent import Agent
from trajectory_transformer.planning.beam_search import beam_search
from trajectory_transformer.planning.objectives import (
    Candidates,
    Likelihood,
    Objective,
    Return,
    WeightedSum,
    make_objective,
)
from trajectory_transformer.planning.planner import BeamPlanner

CONFIGS = Path(__file__).parents[2] / "configs"
SUM: dict[str, Any] = {
    "_target_": "trajectory_transformer.planning.objectives.WeightedSum",
    "terms": {
        "return": {"weight": 1.0, "objective": {"_target_": OBJECTIVES["return"]}},
        "likelihood": {"weight": 0.1, "objective": {"_target_": OBJECTIVES["imitation"]}},
    },
}


class Watching(Objective):
    """Records its inputs, and ranks by the first action token."""

    needs_log_likelihoods = True

    def __init__(self) -> None:
        self.seen: list[Candidates] = []

    def __call__(self, candidates: Candidates) -> Tensor:
        self.seen.append(candidates)
        return candidates.tokens[:, :, candidates.layout.action.start].float()


@dataclass
class Cost(Return):
    """The negative return."""

    weight: float = 2.0

    def __call__(self, candidates: Candidates) -> Tensor:
        return -self.weight * super().__call__(candidates)


@both_decoders
@pytest.mark.parametrize(
    "options",
    [{}, {"window": "sliding", "context": 2}, {"k_obs": None, "k_act": 4, "temperature": 1.7, "cdf_act": 0.3}],
    ids=["growing", "sliding", "filtered"],
)
def test_likelihoods_and_distributions_are_those_of_full_forward_passes(
    make_decoder: MakeDecoder, options: dict[str, Any]
) -> None:
    """Of every candidate of every transition, token by token."""
    model = small_model(spread=0.3)
    options = {"horizon": 3, "beam_width": 3, "n_expand": 2, "context": 2, "discount": 0.9} | options
    settings = PlannerConfig(**options)
    sliding, layout, generator = settings.window == "sliding", model.layout, torch.Generator().manual_seed(2)
    decoder = make_decoder(model, settings.context if sliding else TRANSITIONS, sliding)
    prefix = torch.randint(0, VOCABULARY, (2, WIDTH + layout.observation_dim), generator=generator)
    uniforms = torch.rand(2, 3, WIDTH, 6, generator=generator)
    watching = Watching()

    def estimate(probabilities: Tensor) -> Tensor:
        return probabilities[..., 0]

    def decode(tokens: Tensor, columns: slice) -> Tensor:
        return tokens + 100.0 * columns.start

    found = beam_search(decoder, prefix, layout, settings, estimate, uniforms, None, watching, decode)
    limit = settings.context * WIDTH - 1 if sliding else model.config.block_size
    for environment in range(2):
        beams = [(0.0, prefix[environment].tolist())]
        for t, (seen, step) in enumerate(zip(watching.seen, found.steps, strict=True)):
            per_beam, candidates = len(seen.tokens[environment]) // len(beams), []
            distributions = {layout.reward: seen.reward_distribution, layout.value: seen.value_distribution}
            for row, tokens in enumerate(seen.tokens[environment].tolist()):
                total, sequence = beams[row // per_beam]
                sequence = list(sequence)
                for position, token in enumerate(tokens):
                    if t == 0 and position < layout.observation_dim:
                        continue  # given: the prefix ends with it
                    logits = full_logits(model, torch.tensor([[sequence]]), limit)[0, 0]
                    if position < layout.reward:
                        total += float(logits.log_softmax(0)[token])
                    else:
                        values, probabilities = distributions[position]
                        torch.testing.assert_close(values, torch.arange(VOCABULARY) + 100.0 * position)
                        expected = logits[:-1].softmax(0)
                        torch.testing.assert_close(probabilities[environment, row], expected, rtol=1e-4, atol=1e-5)
                    sequence.append(token)
                assert seen.log_likelihoods[environment, row].item() == pytest.approx(total, abs=1e-4)
                candidates.append((total, sequence))
            beams = [candidates[row] for row in step.kept[environment].tolist()]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a planner's configuration: return + 0.1 · log-likelihood, in YAML alone."""
    (tmp_path / "planner").mkdir()
    (tmp_path / "planner" / "likely_return.yaml").write_text(
        "name: likely_return\nhorizon: 1\nbeam_width: 8\nn_expand: 3\ncontext: 1\nk_act: null\ncdf_act: null\n"
        "objective:\n"
        f"  _target_: {SUM['_target_']}\n"
        "  terms:\n"
        f"    return: {{weight: 1, objective: {{_target_: {OBJECTIVES['return']}}}}}\n"
        f"    likelihood: {{weight: 0.1, objective: {{_target_: {OBJECTIVES['imitation']}}}}}\n"
    )
    return tmp_path


def composed(folder: Path, *overrides: str) -> PlannerConfig:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return schema.typed_train(compose("train", [f"hydra.searchpath=[file://{folder}]", *overrides])).planner


def test_return_plus_likelihood_in_yaml_alone(
    folder: Path, model: TrajectoryTransformerModel, discretizer: Discretizer
) -> None:
    """One transition whose scores are worked out from the model's own distributions."""
    settings = composed(folder, "planner=likely_return", "planner.discount=0.9")
    planner = BeamPlanner(model, discretizer, settings)
    assert isinstance(planner.objective, WeightedSum)
    observation = [1, 2, 3]
    found = planner.plan(torch.tensor([observation]), [torch.Generator().manual_seed(0)])
    layout, centers = model.layout, (discretizer.edges[:, 1:] + discretizer.edges[:, :-1]) / 2
    scores = {}
    for tokens in found.steps[0].tokens[0].tolist():
        sequence, likelihood, estimates = list(observation), 0.0, []
        for position, token in enumerate(tokens, start=layout.observation_dim):
            with torch.no_grad():
                logits = model(torch.tensor([sequence]), use_cache=False).logits[0, -1]
            if position < layout.reward:
                likelihood += float(logits.log_softmax(0)[token])
            else:
                estimates.append(float(logits.softmax(0)[:-1] @ centers[position]))
            sequence.append(token)
        scores[tuple(tokens[:ACTION_DIM])] = estimates[0] + 0.9 * estimates[1] + 0.1 * likelihood
    assert len(scores) > 5
    best = max(scores, key=lambda actions: scores[actions])
    assert found.score.item() == pytest.approx(scores[best], abs=1e-4)
    assert tuple(found.tokens[0, 0, layout.action].tolist()) == best


def test_a_weight_can_be_changed_on_the_command_line(folder: Path) -> None:
    settings = composed(folder, "planner=likely_return", "planner.objective.terms.likelihood.weight=-2")
    objective = make_objective(settings)
    candidates = Candidates(
        0, torch.tensor([[[3.0, 5.0]]]), torch.tensor([1.0, 0.5]), torch.zeros(1, 1, WIDTH, dtype=torch.int64),
        small_model(spread=0.0).layout, sampled=torch.tensor([[-4.0]]),
    )  # fmt: skip
    assert objective(candidates).tolist() == [[3.0 + 2.5 + 8.0]]


def test_a_subclass_of_return_is_asked_itself(model: TrajectoryTransformerModel, discretizer: Discretizer) -> None:
    """The kernel's own search for the return must not be used for a subclass."""
    found = {}
    for objective in (Return(), Cost()):
        planner = BeamPlanner(model, discretizer, PlannerConfig(**PLANNER, objective=objective))
        found[type(objective)] = planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator().manual_seed(0)])
    discounts = PLANNER["discount"] ** torch.arange(4)
    for kind, factor in ((Return, 1.0), (Cost, -2.0)):
        result = found[kind]
        total = (torch.cat([result.rewards, result.value[:, None]], dim=1) * discounts).sum(1)
        torch.testing.assert_close(result.score, factor * total)
    assert found[Cost].score / -2.0 < found[Return].score


def test_a_subclass_with_a_score_of_its_own_is_not_searched_token_by_token() -> None:
    class Unlikely(Likelihood):
        def __call__(self, candidates: Candidates) -> Tensor:
            return -candidates.log_likelihoods

    class Renamed(Likelihood):
        pass

    assert (Unlikely().by_token, Renamed().by_token) == (False, True)


def test_likelihoods_that_nobody_asked_for_and_scores_of_another_shape_are_refused(
    model: TrajectoryTransformerModel, discretizer: Discretizer
) -> None:
    """When the planner is built, and by the search if they appear later."""

    class Forgetful(Objective):
        def __call__(self, candidates: Candidates) -> Tensor:
            return candidates.log_likelihoods

    class Flat(Objective):
        def __call__(self, candidates: Candidates) -> Tensor:
            return candidates.value.sum(dim=0)

    for objective, message in ((Forgetful(), "needs_log_likelihoods = True"), (Flat(), "scores of shape")):
        with pytest.raises(UserError, match=message):
            BeamPlanner(model, discretizer, PlannerConfig(**PLANNER, objective=objective))
        planner = BeamPlanner(model, discretizer, PlannerConfig(**PLANNER))
        planner.objective, planner._native_search = objective, None
        with pytest.raises(UserError, match=message):
            planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator()])


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A user's own objective in another package, which minimises the first action dimension."""
    (tmp_path / "my_package").mkdir()
    (tmp_path / "my_package" / "__init__.py").write_text(
        "from trajectory_transformer.planning.objectives import Objective\n\n\n"
        "class Lazy(Objective):\n"
        "    def __init__(self, dimension, scale=1.0):\n"
        "        self.dimension, self.scale = dimension, scale\n\n"
        "    def __call__(self, candidates):\n"
        "        return -self.scale * candidates.actions[:, :, self.dimension]\n\n\n"
        "class Nothing:\n"
        "    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return "my_package"


WriteCheckpoint = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path, model: TrajectoryTransformerModel, discretizer: Discretizer) -> WriteCheckpoint:
    """A checkpoint that records these planner options."""

    def write(**planner: Any) -> Path:
        section = {
            "format": 1,
            "model": model.config.to_dict(),
            "discretizer": discretizer.to_dict(),
            "environment": ENVIRONMENT.to_dict(),
            "dataset": {"ids": ["test/data-v0"], "fingerprint": "a" * 64},
            "data": asdict(DataConfig(discount=0.95)),
            "planner": planner,
        }
        weights = {f"model.{name}": value for name, value in model.state_dict().items()}
        write_checkpoint(tmp_path / "best.ckpt", {"state_dict": weights, "trajectory_transformer": section})
        return tmp_path / "best.ckpt"

    return write


def test_an_objective_of_another_package(package: str, write: WriteCheckpoint, discretizer: Discretizer) -> None:
    """Typed, or recorded and allowed: it ranks, and all its options are recorded."""
    spec = {"_target_": f"{package}.Lazy", "dimension": 1, "scale": 2.0}
    options = PLANNER | {"horizon": 1, "beam_width": 16, "cdf_act": None}
    for agent in (
        Agent.from_checkpoint(write(**options), objective=spec),
        Agent.from_checkpoint(write(**options, objective=spec), allow=[package]),
    ):
        assert (agent.settings.name, agent.settings.objective) == ("Lazy", spec)
        found = agent._planner.plan(torch.tensor([[1, 2, 3]]), [torch.Generator().manual_seed(0)])
        actions = slice(OBSERVATION_DIM, OBSERVATION_DIM + ACTION_DIM)
        drawn = discretizer.decode(found.steps[0].tokens[0, :, :ACTION_DIM], actions)[:, 1]
        assert len(drawn.unique()) > 2
        assert discretizer.decode(found.tokens[0, 0, actions], actions)[1] == drawn.min()
        assert found.score.item() == pytest.approx(-2.0 * float(drawn.min()), abs=1e-6)


def test_a_file_must_not_choose_what_is_imported(package: str, write: WriteCheckpoint) -> None:
    spec = {"_target_": f"{package}.Lazy", "dimension": 1}
    path = write(**PLANNER, objective=spec)
    attempts: list[dict[str, Any]] = [{}, {"objective": {"dimension": 0}}, {"horizon": 2}]
    for changes in attempts:
        with pytest.raises(UserError, match=rf"names the class my_package\.Lazy.*add allow=\[{package}\]"):
            Agent.from_checkpoint(path, **changes)
    assert package not in sys.modules
    term = {"weight": 1.0, "objective": spec}
    with pytest.raises(UserError, match=r"add allow=\[my_package\]"):
        Agent.from_checkpoint(write(**PLANNER, objective=SUM | {"terms": {"own": term}}))
    assert Agent.from_checkpoint(path, name="imitation").settings.name == "imitation"  # and is not needed here


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"_target_": "no_package.Lazy"}, "there is no module 'no_package'"),
        ({"_target_": "my_package.Lasy", "dimension": 1}, "there is no such class"),
        ({"_target_": "my_package.Nothing"}, "is not a Objective"),
        ({"_target_": "my_package.Lazy", "dimensio": 1}, "did you mean 'planner.objective.dimension'"),
        ({"_target_": "my_package.Lazy"}, "missing a required argument: 'dimension'"),
        (SUM | {"terms": {}}, "needs at least one term"),
        (SUM | {"terms": {"own": {"weight": 1.0}}}, r"terms\.own needs a weight, a finite number"),
        (SUM | {"terms": {"own": {"weight": float("nan"), "objective": Return()}}}, "finite number"),
        ({"_target_": OBJECTIVES["critic"], "critic": "c.ckpt", "score": "z"}, "score='z' is not one of return, v, q"),
    ],
)
def test_mistakes_are_refused(package: str, spec: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_objective(PlannerConfig(objective=spec))


def test_names() -> None:
    """A built-in's name is never that of another objective."""
    assert PlannerConfig().name == "return"
    assert PlannerConfig(objective={"_target_": OBJECTIVES["goal"]}).name == "goal"
    assert PlannerConfig(objective=SUM).name == "WeightedSum"
    assert PlannerConfig("return", objective=SUM).name == "WeightedSum"
    assert PlannerConfig("mine", objective=SUM).name == "mine"
    with pytest.raises(UserError, match=r"planner\.name=imitation stands for .*Likelihood.* choose planner\.name=goal"):
        PlannerConfig("imitation", objective={"_target_": OBJECTIVES["goal"]})
    with pytest.raises(UserError, match=r"planner\.name='imitate' is not one of .* did you mean 'imitation'"):
        PlannerConfig("imitate")


def test_records_of_earlier_versions() -> None:
    old = {"name": "critic", "horizon": 4, "critic": "c.ckpt", "critic_score": "q"}
    expected = {"_target_": OBJECTIVES["critic"], "critic": "c.ckpt", "score": "q"}
    assert PlannerConfig(**current_record(old)) == PlannerConfig("critic", horizon=4, objective=expected)
    old = {"name": "goal", "critic": None, "critic_score": "return"}
    assert PlannerConfig(**current_record(old)) == PlannerConfig("goal")
    new = PlannerConfig("mine", objective=SUM)
    assert PlannerConfig(**current_record(asdict(new))) == new
    with pytest.raises(TypeError, match="depth"):
        PlannerConfig(**current_record({"depth": 3}))


def test_what_replaces_a_recorded_objective(write: WriteCheckpoint) -> None:
    path = write(**PLANNER, name="mine", objective=SUM)
    kept = Agent.from_checkpoint(path, horizon=2).settings
    assert (kept.name, kept.objective) == ("mine", SUM)
    partly = Agent.from_checkpoint(path, objective={"terms": {"likelihood": {"weight": 0.5}}}).settings
    assert partly.objective["terms"]["likelihood"] == {
        "weight": 0.5,
        "objective": {"_target_": OBJECTIVES["imitation"]},
    }
    assert partly.objective["terms"]["return"] == SUM["terms"]["return"]
    renamed = Agent.from_checkpoint(path, name="imitation").settings
    assert (renamed.name, renamed.objective) == ("imitation", {"_target_": OBJECTIVES["imitation"]})
    own = Agent.from_checkpoint(path, objective=Cost(3.0)).settings
    assert (own.name, own.objective) == ("Cost", {"_target_": f"{__name__}.Cost", "weight": 3.0})
    with pytest.raises(UserError, match=r"checkpoint 'none\.ckpt' does not exist"):
        Agent.from_checkpoint(path, name="critic", objective={"critic": "none.ckpt"})


def test_objectives_are_checked_without_torch(tmp_path: Path) -> None:
    (tmp_path / "c.ckpt").touch()
    code = (
        "import sys\n"
        "from trajectory_transformer.configuration import OBJECTIVES, PlannerConfig\n"
        "from trajectory_transformer.planning.objectives import make_objective\n"
        "for name in OBJECTIVES:\n"
        "    options = {'critic': 'c.ckpt'} if name == 'critic' else None\n"
        "    make_objective(PlannerConfig(name, objective=options))\n"
        "assert 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)


@both_decoders
def test_a_term_of_likelihood_ranks_sampled_candidates(make_decoder: MakeDecoder) -> None:
    """Among equal returns, the candidates kept are the most likely ones."""
    model, settings = small_model(spread=0.3), PlannerConfig(horizon=1, beam_width=3, n_expand=4, discount=0.9)
    objective = WeightedSum({"only": {"weight": 1.0, "objective": Likelihood()}})
    prefix, uniforms = torch.tensor([[1, 2]]), torch.rand(1, 1, WIDTH, 12, generator=torch.Generator().manual_seed(0))
    args = prefix, model.layout, settings, lambda probabilities: probabilities[..., 0], uniforms
    found = beam_search(make_decoder(model, TRANSITIONS, False), *args, None, objective)
    watching = Watching()
    beam_search(make_eager(model, TRANSITIONS, False), *args, None, watching)
    likelihoods = watching.seen[0].log_likelihoods[0]
    torch.testing.assert_close(likelihoods[found.steps[0].kept[0]], likelihoods.sort(descending=True).values[:3])
