"""Mistakes on the command line and in YAML files stop early and are named."""

import shutil
import subprocess
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, NoReturn

import pytest
import yaml

from trajectory_transformer.app import checks, jobs, mistakes
from trajectory_transformer.configuration import TrainConfig

from .conftest import CONFIGS, Runs

NO_TORCH = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        slow = ("torch", "lightning", "wandb", "minari", "gymnasium", "optuna", "scipy", "matplotlib")
        if name.partition(".")[0] in slow:
            raise ImportError(f"{name} was imported")
sys.meta_path.insert(0, Refuse())
from pathlib import Path
from trajectory_transformer.app import entry_point
entry_point(sys.argv.pop(1), Path(sys.argv.pop(1)))
"""


MISTAKES = [
    (["model.n_layr=3"], ["model.n_layr", "'model.n_layer'"]),
    (["model.rop=true"], ["did you mean 'model.embd_pdrop' or 'model.resid_pdrop' or 'model.attn_pdrop'?"]),
    (["optimizer.lr=1"], ["'optimizer.lr'; did you mean 'optimizer.learning_rate'?"]),
    (["lr=0.1"], ["'lr'; did you mean 'optimizer.learning_rate'?"]),
    (["optimizer.speed=1"], ["'optimizer.speed'; valid here: optimizer.learning_rate, optimizer.beta1"]),
    (["seed"], ["error: 'seed' is not an option with a value; give NAME=VALUE"]),
    (["--seed=3"], ["--seed=3: options have no dashes; give seed=3"]),
    (["--seed", "3"], ["--seed: options have no dashes; give seed=VALUE"]),
    (["--resume=run"], ["options have no dashes; give resume=run"]),
    (["seed=0,1"], ["seed=0,1 has several values: add -m to run each (a list is written seed=[0,1])"]),
    (["model=tiny,base"], ["model=tiny,base has several values: add -m to run each"]),
    (
        ["planner=smooth"],
        ["planner=smooth is not a choice", "imitation, return; --config-dir DIR adds choices of your"],
    ),
    (["planner.objective._target_=Smooth"], ["lacks the module of the class; give both, as in my_module.Smooth"]),
    (["planr.horizon=3"], ["planr.horizon", "'planner.horizon'"]),
    (["horizon=3"], ["'planner.horizon'"]),
    (["modle=tiny"], ["modle", "'model'"]),
    (["experimnt=hopper_quick"], ["'experiment'"]),
    (["model=tny"], ["model=tny", "base, large, tiny", "'model=tiny'"]),
    (["model.n_layer=three"], ["model.n_layer", "'three'"]),
    (["seed=1.5"], ["seed", "1.5"]),
    (["model.n_head=3"], ["model.n_embd=64", "model.n_head=3"]),
    (["planner.horizon=60"], ["planner.horizon=60", "data.sequence_length"]),
    (["planner.window=slidng"], ["'sliding'"]),
    (["planner.deadline_ms=-1"], ["planner.deadline_ms=-1", "positive"]),
    (["planner.deadline_ms=soon"], ["planner.deadline_ms", "'soon'"]),
    (["planner.decoder=natve"], ["planner.decoder", "'native'"]),
    (["planner.precision=16"], ["planner.precision='16'", "32, bf16"]),
    (
        ["planner.precision=bf16", "planner.decoder=native"],
        ["planner.precision=bf16", "planner.decoder=auto, eager or compiled"],
    ),
    (["planner=critic"], ["planner.objective.critic is required"]),
    (["planner=critic", "planner.objective.critic=c", "planner.objective.scor=v"], ["'planner.objective.score'"]),
    (["planner=critic", "planner.objective.critic=c", "planner.objective.score=w"], ["score='w'", "return, v, q"]),
    (["planner=critic", "planner.objective.critic=c", "+planner.objective.weight=1"], ["'planner.objective.weight'"]),
    (["planner.name=imitation"], ["planner.name=imitation", "choose planner.name=return"]),
    (["planner.name=imitaton"], ["planner.name=imitaton", "did you mean planner=imitation?"]),
    (["planner.objective._target_=trajectory_transformer.planning.objectives.Retrn"], ["Retrn", "no such class"]),
    (["planner.objective._target_=trajectory_transformer.app.jobs.RunRecord"], ["is not a Objective"]),
    (["planner=goal"], ["planner=goal needs a model that was trained to reach goals"]),
    (["model.goal_conditioned=true"], ["planner=return cannot plan with a model that was trained to reach goals"]),
    (["data.cache=/dev/null/tokens"], ["data.cache=/dev/null/tokens cannot be written (Not a directory)"]),
    (["experiment=goal_umaze", "planner.window=sliding", "planner.context=2"], ["planner=goal needs planner.window"]),
    (
        ["trainer.options={profiler: simple}"],
        ["'trainer.options.profiler' is a new entry", "+trainer.options.profiler="],
    ),
    (["+trainer.options.benchmark=maybe"], ["trainer.options.benchmark must be true or false or null, got 'maybe'"]),
    (["+trainer.options.deterministic=foo"], ["trainer.options.deterministic must be true or false or null"]),
    (["+trainer.options.max_epochs=3"], ["trainer.options.max_epochs", "trainer.max_steps"]),
    (["planner.critic=c.ckpt"], ["no option 'planner.critic'; it is now 'planner.objective.critic'"]),
    (["+planner.critic_score=v"], ["no option 'planner.critic_score'; it is now 'planner.objective.score'"]),
    (["iql.expectile=0.9"], ["no option 'iql.expectile'; it is now 'learner.expectile'"]),
    (["ensemble.num_members=3"], ["no option 'ensemble.num_members'; it is now 'learner.num_members'"]),
    (["model.convert=a"], ["it is now 'python -m trajectory_transformer.interop.convert'"]),
    (["+model.adopt=a"], ["it is now 'python -m trajectory_transformer.interop.adopt'"]),
    (["data=minari"], ["data.dataset_id"]),
    (["evaluation.choose=return"], ["evaluation.choose=return needs evaluation.every=N"]),
    (["evaluation.choose=retrun", "evaluation.every=5"], ["evaluation.choose='retrun'", "loss, return"]),
    (["evaluation.every=0"], ["evaluation.every=0 must be at least 1, or null"]),
    (["learner=ensemble", "evaluation.every=5"], ["evaluation.every=5", "learner=ensemble does not act"]),
    (
        ["experiment=hopper_medium", "data=hopper_medium"],
        ["data=hopper_medium has no effect", "experiment=hopper_medium", "data.dataset_id=embedded/hopper/medium-v0"],
    ),
    (["data=walker2d_medium_expert", "experiment=ant_medium"], ["[embedded/walker2d/medium-v0,embedded/walker2d/ex"]),
    (["learner=iql", "model.n_layer=2"], ["model.n_layer has no effect on learner=iql"]),
    (["experiment=bc_hopper", "planner.horizon=3"], ["planner.horizon has no effect on learner=bc"]),
    (["learner=bc", "planner=goal"], ["planner has no effect on learner=bc"]),
    (["learner=dt", "model.n_layer=2"], ["model.n_layer has no effect on learner=dt"]),
    (["learner=rebrac", "planner.horizon=2"], ["planner.horizon has no effect on learner=rebrac"]),
    (["learner=behavior", "model=tiny"], ["model has no effect on learner=behavior"]),
    (["learner=ensemble", "model=tiny"], ["model has no effect on learner=ensemble"]),
    (["learner=iql", "data.discretizer.num_bins=5"], ["data.discretizer.num_bins has no effect on learner=iql"]),
    (["learner=iql", "tune=planner"], ["has no effect on learner=iql"]),
    (["method=iql_sparse", "data.continue_truncated=true"], ["data.continue_truncated has no effect on learner=iql"]),
    (["learner=rebrac", "data.continue_truncated=true"], ["data.continue_truncated has no effect on learner=rebrac"]),
    (["learner=dt", "data.discount=0.9"], ["data.discount has no effect on learner=dt"]),
    (["learner=dt", "data.continue_truncated=true"], ["data.continue_truncated has no effect on learner=dt"]),
    (["method=bc10", "data.discount=0.9"], ["data.discount has no effect on learner=bc, which uses no rewards with t"]),
    (["learner=bc", "data.termination_penalty=null"], ["data.termination_penalty has no effect on learner=bc"]),
    (["experiment=goal_fourrooms", "data.discount=0.9"], ["data.discount has no effect on learner=transformer"]),
    (["learner=ensemble", "data.termination_penalty=null"], ["data.termination_penalty has no effect on learner=ens"]),
    (["learner=behavior", "data.discount=0.9"], ["data.discount has no effect on learner=behavior"]),
    (["learner=behavior", "optimizer.learning_rate=0.1"], ["optimizer.learning_rate has no effect on learner=behavi"]),
    (["learner=behavior", "tune=optimizer"], ["has no effect on learner=behavior"]),
    (["learner=behavior", "init_from=."], ["init_from has no effect on learner=behavior"]),
    (["trainer.compile=2"], ["trainer.compile must be true or false, got 2"]),
    (["logger.offline=5"], ["logger.offline must be true or false or null, got 5"]),
    (["planner.name=5"], ["planner.name='5' is not a valid name"]),
    (["SEED=1"], ["there is no option 'SEED'; did you mean 'seed'?"]),
    (["+model.n_layer=3"], ["'model.n_layer' is an option already; write model.n_layer=VALUE, without +"]),
    (["init_from=.", "model.numerical_pretraining=5"], ["has no effect without init_from=null"]),
    (["model.action_improvement=0", "planner.improvement=2"], ["has no effect without model.action_improvement=N"]),
    (["data.dataset_id=[a/b-v0,c/d-v0,a/b-v0]"], ["data.dataset_id names a/b-v0 more than once"]),
    (["data.cache=''"], ["data.cache= names no folder"]),
    (["=5"], ["'=5' lacks the name of an option; give NAME=VALUE"]),
    (["model@foo=tiny"], ["model@foo=tiny: the place of a group's options is fixed; write model=tiny"]),
    (["+model@planner=tiny"], ["the place of a group's options is fixed; write model=tiny"]),
    (["model=configs/model/tiny"], ["model=configs/model/tiny is not a choice", "; did you mean 'model=tiny'?"]),
    (["model=TINY"], ["model=TINY is not a choice", "; did you mean 'model=tiny'?"]),
    (["~seed"], ["~seed removes an option, but every option has a value: give seed=VALUE instead"]),
    (["~model"], ["~model removes an option"]),
    (["~model.n_layer=2"], ["~model.n_layer=2 removes an option"]),
    (["~hydra.callbacks.checks"], ["hydra.callbacks.checks must stay as it is, because it checks the other options"]),
    (["hydra.callbacks=null"], ["hydra.callbacks=null: hydra.callbacks.checks must stay as it is"]),
    (["hydra.callbacks.checks._target_=builtins.print"], ["hydra.callbacks.checks must stay as it is"]),
    (["-m", "seed=1,2", "~hydra.callbacks"], ["hydra.callbacks.checks must stay as it is"]),
    (["hydra.run.dir=${nothing}"], ["hydra.run.dir: interpolation key 'nothing' not found"]),
    (["+hydra.job.foo=1"], ["there is no option 'hydra.job.foo'"]),
    (["+hydra.run.dri=x"], ["there is no option 'hydra.run.dri'; did you mean 'hydra.run.dir'?"]),
    (
        ["hydra.job.env_set={A:1}"],
        ["'hydra.job.env_set.A' is a new entry of hydra.job.env_set; write +hydra.job.env_set.A"],
    ),
    (["hydra.sweeper.params.seed=1"], ["Hydra cannot use hydra.sweeper.params.seed=1 (AssertionError"]),
    (["--cfg"], ["argument --cfg/-c: expected one argument; --help explains the options"]),
    (["--cfg", "foo"], ["argument --cfg/-c: invalid choice: 'foo'"]),
    (["--multirun=1"], ["argument --multirun/-m: ignored explicit argument '1'"]),
    (["--foo"], ["unrecognized arguments: --foo"]),
    (["--resolve"], ["--resolve and --package need --cfg job"]),
    (["--cfg", "job", "suite=local", "method=tt,bc"], ["method=tt,bc: --cfg shows the options of one job: give one"]),
    (["--package", "model"], ["--resolve and --package need --cfg job"]),
    (["--run", "-m", "seed=1,2"], ["exclude each other: give one"]),
    (["--config-name", "evaluate"], ["--config-name replaces all files of options: leave it out"]),
    (["--experimental-rerun", "a.pickle"], ["--experimental-rerun replaces all files of options"]),
    (["--config-dir"], ["argument --config-dir/-cd: expected one argument"]),
    (["-m", "seed=range(1,0)"], ["seed=range(1,0): the sweep has no job; give values, as in seed=0,1,2"]),
    (["-m", "seed=interval(0,1)"], ["a sweep tries single values, not an interval: list them"]),
    (["-m", "seed=1,2,1", "model=tiny"], ["the sweep has the job seed=1 model=tiny twice, and would count it twice"]),
    (["--shell-completion"], ["Hydra cannot use --shell-completion (ValueError: Expecting one subcommand"]),
    (["hydra.output_subdir=.."], ["hydra.output_subdir must stay as it is"]),
    (["hydra.verbose=5"], ["Hydra cannot use hydra.verbose=5 (AssertionError"]),
    (["+foo=1"], ["foo"]),
    (["+seeed=1"], ["seeed", "'seed'"]),
    (["++model.n_layr=1"], ["'model.n_layer'"]),
    (["hydra.run.dri=x"], ["'hydra.run.dir'"]),
    (["seed=[1"], ["seed=[1"]),
    (["+trainer.callbacks.x._target_=os.system"], ["trainer.callbacks.x._target_=os.system is not a class"]),
    (["model.block=SwiGlu"], ["model.block='SwiGlu'", "_target_"]),
    (["model.block.expansion=2"], ["model.block={'expansion': 2}", "give the class of a block"]),
    (["+trainer.metrics.x=TopTwo"], ["trainer.metrics.x='TopTwo'", "_target_"]),
    (["hydra.run.dir="], ["hydra.run.dir= names no folder"]),
    (["hydra.run.dir=''"], ["hydra.run.dir= names no folder"]),
    (["-m", "seed=1,2", "hydra.sweep.dir="], ["hydra.sweep.dir= names no folder"]),
    (["-m", "seed=1,2", "hydra.run.dir=x"], ["hydra.run.dir has no effect with -m", "hydra.sweep.dir=DIR"]),
    (["hydra.sweep.dir=x"], ["hydra.sweep.dir has an effect only in a sweep: add -m"]),
    (["++hydra.sweep.subdir=x"], ["hydra.sweep.subdir has an effect only in a sweep"]),
    (["hydra/launcher=joblib"], ["hydra/launcher has an effect only in a sweep"]),
    (["-m", "model=tiny,bsae"], ["model=bsae", "'model=base'"]),
    (["-m", "model.n_layr=1,2"], ["'model.n_layer'"]),
    (["-m", "+foo=1,2"], ["foo"]),
    (["-m", "planner=return,retrun"], ["planner=retrun is not a choice", "did you mean 'planner=return'?"]),
    (["planner.elite_share=0.5"], ["planner.elite_share has no effect with planner.act=auto", "planner.act=elite"]),
    (["planner.top_share=0.5", "planner.act=mean"], ["planner.top_share has no effect", "planner.act=conditioned"]),
    (["planner=imitation", "planner.temperature=0.5"], ["planner.temperature has no effect with planner=imitation"]),
    (
        ["model.numerical_regression=10", "model.numerical_embedding=null"],
        ["has no effect without model.numerical_embedding=N"],
    ),
    (
        ["model.numerical_dynamics=true", "model.numerical_embedding=null"],
        ["has no effect without model.numerical_embedding=N"],
    ),
    (["evaluation.every_episodes=5"], ["has no effect without evaluation.every=N"]),
    (["evaluation.video=2", "evaluation.episodes=0"], ["evaluation.video has no effect without evaluation.episodes=N"]),
    (["evaluation.num_envs=2", "evaluation.episodes=0"], ["has no effect without evaluation.episodes=N"]),
    (["logger.project=mine"], ["logger.project has no effect without logger=wandb: add it, or leave out"]),
    (["planner=imitation", "planner.discount=0.9"], ["planner.discount has no effect with planner=imitation"]),
    (
        ["method=tt", "learner=bc"],
        ["learner=bc contradicts method=tt, which chooses learner=transformer: leave out one of them"],
    ),
    (["learner=iql", "method=bc10"], ["learner=iql contradicts method=bc10, which chooses learner=bc:"]),
    (["method=tt_likelihood", "planner=return"], ["planner=return contradicts method=tt_likelihood, which chooses"]),
    (["learner=ensemble", "evaluation.video=1"], ["evaluation.video has no effect without a learner that acts"]),
    (["tune=optimizer", "+tune.parameters.seed={low: 0, high: 5}"], ["is written in a file of the group 'tune'"]),
    (["tune=optimizer", "optimizer.learning_rate=1e-3"], ["has no effect on a search that varies it: leave it out"]),
    (["tune=planner", "planner=imitation"], ["planner.k_act has no effect with planner=imitation"]),
    (["init_from="], ["init_from= names no file"]),
    (["init_from=."], ["init_from=. is a directory without weights"]),
    (["method=[tt,bc]"], ["one choice of the group 'method'; add -m and write method=tt,bc"]),
    (["+suite=quick"], ["the group 'suite' has a choice already; write suite=quick, without +"]),
    (["planner.top_share=${nothing}", "model.n_layer=2"], ["planner.top_share: Interpolation key 'nothing' not found"]),
    ([f"planner.top_share={'[' * 200}{']' * 200}"], ["'planner.top_share=[[", "nested too deeply"]),
    (["environment.modules=5"], ["environment.modules must be a list, each entry a text"]),
    (["evaluation.every=x"], ["evaluation.every must be a whole number or null: value 'x'"]),
    (["+model.block._target_=builtins.object", "+model.block.width=3"], ["=builtins.object is not a Module"]),
]


@pytest.mark.parametrize(("arguments", "words"), MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_is_named_and_starts_nothing(
    train: Callable[..., int],
    runs: Runs,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    assert train(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not runs.calls
    assert not list(tmp_path.rglob("config.yaml"))


class Typo(NamedTuple):
    file: str
    right: str
    wrong: str
    arguments: list[str]
    words: list[str]


def test_a_reference_to_another_option_is_followed(train: Callable[..., int], runs: Runs) -> None:
    assert train("planner.act=conditioned", "planner.top_share=${planner.elite_share}", "evaluation.every=${seed}") == 2
    assert train("planner.act=conditioned", "planner.top_share=${planner.elite_share}", "seed=7") == 0
    ((config, _),) = runs.calls
    assert config.planner.top_share == config.planner.elite_share == 1.0


def test_a_method_and_its_own_learner_agree(train: Callable[..., int], runs: Runs, own: Path) -> None:
    assert train("method=bc10", "learner=bc") == 0
    (own / "method").mkdir()
    (own / "method" / "any.yaml").write_text("# @package _global_\nseed: 7\n")
    assert train("--config-dir", "own", "method=any", "learner=iql", "hydra.run.dir=second") == 0
    assert [config.learner["_target_"].rpartition(".")[2] for config, _ in runs.calls] == [
        "BehaviorCloning",
        "ImplicitQLearning",
    ]


@pytest.fixture
def averse(own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The class of an objective whose YAML file, own/planner/averse.yaml, names only the class."""
    (tmp_path / "averse_package.py").write_text(
        "from dataclasses import dataclass\n"
        "from trajectory_transformer.planning.objectives import Return\n\n\n"
        "@dataclass\nclass Averse(Return):\n    weight: float = 0.1\n    limit: float = 2.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    target = "averse_package.Averse"
    text = f"defaults: [return, _self_]\nname: averse\nobjective: {{_target_: {target}}}\nact: best\n"
    (own / "planner" / "averse.yaml").write_text(text)
    return target


def test_what_a_class_s_yaml_leaves_out_is_recorded_and_needs_no_plus(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], averse: str
) -> None:
    words = "--config-dir", "own", "planner=averse", "planner.objective.weight=0.5"
    assert train(*words) == 0
    ((config, run),) = runs.calls
    assert config.planner.objective == {"_target_": averse, "weight": 0.5, "limit": 2.0}
    assert run.command.endswith("planner=averse planner.objective.weight=0.5")
    assert yaml.safe_load((run.directory / "config.yaml").read_text())["planner"]["objective"]["limit"] == 2.0
    assert train(*words[:3], "planner.objective.wieght=0.5") == 2
    message = "there is no option 'planner.objective.wieght'; did you mean 'planner.objective.weight'?"
    assert message in capsys.readouterr().err
    assert train("-m", *words[:3], "planner.objective.weight=0.2,0.3", "hydra.sweep.dir=sweep") == 0
    assert [run.differs for _, run in runs.calls[1:]] == [f"planner.objective.weight={weight}" for weight in (0.2, 0.3)]
    del runs.calls[:]
    assert train("-m", *words, "learner=transformer,bc", "evaluation.episodes=0", "hydra.sweep.dir=fixed") == 0
    assert [run.differs for _, run in runs.calls] == ["learner=transformer", "learner=bc"]
    capsys.readouterr()
    assert train("-m", *words[:3], "seed=0,1", "planner.objective.wieght=0.5", "hydra.sweep.dir=refused") == 2
    assert message in capsys.readouterr().err
    assert not Path("refused").exists()
    assert train(*words, "--help", "planner.objective") == 0
    assert "planner.objective.weight=0.5" in capsys.readouterr().out


def test_an_evaluation_records_what_the_yaml_leaves_out(
    evaluate: Callable[..., int], averse: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[dict[str, object]] = []
    monkeypatch.setattr(jobs, "evaluate", lambda options, job, planner, typed: given.append(planner) or 0.0)
    (tmp_path / "a.ckpt").touch()
    assert evaluate("--config-dir", "own", "checkpoint=a.ckpt", "planner=averse", "planner.objective.weight=3") == 0
    assert evaluate("checkpoint=a.ckpt", "planner.objective.weight=3") == 0  # of the checkpoint's objective
    assert evaluate("checkpoint=a.ckpt", f"planner.objective._target_={averse}") == 0
    objectives = [planner["objective"] for planner in given]
    whole = {"_target_": averse, "weight": 3, "limit": 2.0}
    assert objectives == [whole, {"weight": 3}, whole | {"weight": 0.1}]


def test_an_entry_of_a_mapping_may_be_removed(train: Callable[..., int], runs: Runs) -> None:
    assert train("callbacks=[early_stopping,gradient_norm]", "~trainer.callbacks.early_stopping") == 0
    assert [len(config.trainer.callbacks) for config, _ in runs.calls] == [1]


def test_a_flag_s_value_is_no_option() -> None:
    mistakes.refuse_unreadable(["--config-dir", "/home/me@host/own", "-m"], [CONFIGS], TrainConfig)


def test_a_deleted_working_directory_is_named(
    train: Callable[..., int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert train("seed=1") == 2
    assert capsys.readouterr().err == "error: the working directory was deleted; change to another\n"


@pytest.mark.parametrize(
    ("place", "name", "words"),
    [
        (checks, "validated", ["seed=1"]),
        (checks.sweep, "planned_jobs", ["-m", "seed=1,2"]),
        (checks.sweep, "report", ["-m", "seed=1,2"]),
    ],
)
def test_a_fault_in_the_checks_ends_the_command(
    train: Callable[..., int],
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    place: object,
    name: str,
    words: list[str],
) -> None:
    def fail(*_: object) -> NoReturn:
        raise ZeroDivisionError

    monkeypatch.setattr(place, name, fail)
    assert train(*words) == 1
    assert "ZeroDivisionError" in capsys.readouterr().err
    assert len(runs.calls) == (2 if name == "report" else 0)


CALLBACK_MISTAKES = [
    (["callbacks=early_stopping", "+trainer.callbacks.early_stopping.patiense=1"], "early_stopping.patience'?"),
    (["callbacks=early_stopping", "trainer.callbacks.early_stopping.patience=x"], "patience='x': input should be a"),
    (["callbacks=early_stopping", "trainer.callbacks.early_stopping.patience=true"], "patience=True: input should be"),
    (["callbacks=early_stopping", "trainer.callbacks.early_stopping.monitor=[1]"], "monitor=[1]: input should be a"),
    (["callbacks=early_stopping", "trainer.callbacks.early_stopping.patience=0"], "patience=0 must be at least 1"),
    (["callbacks=early_stopping", "+trainer.callbacks.early_stopping.mode=up"], "mode='up' is not one of min, max"),
    (["callbacks=early_stopping", "+trainer.callbacks.early_stopping.min_delta=nan"], "min_delta=nan must be finite"),
    (["callbacks=sample_plans", "trainer.callbacks.sample_plans.beam_width=0"], "beam_width=0 must be at least 1"),
]


@pytest.mark.parametrize(("arguments", "message"), CALLBACK_MISTAKES, ids=lambda value: str(value[-1]))
def test_a_callback_is_built_or_refused_before_training(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert train(*arguments) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
    assert not runs.calls


YAML_MISTAKES = [
    Typo("model/tiny.yaml", "n_layer", "n_layr", [], ["tiny.yaml", "model.n_layr", "'model.n_layer'"]),
    Typo("model/tiny.yaml", "n_layer: 2", "n_layer: three", [], ["tiny.yaml", "model.n_layer", "'three'"]),
    Typo("model/tiny.yaml", "n_layer: 2", "n_layer 2", [], ["tiny.yaml", "line"]),
    Typo(
        "experiment/hopper_quick.yaml", "beam_width", "beam_widht", ["experiment=hopper_quick"], ["hopper_quick.yaml"]
    ),
    Typo("experiment/hopper_quick.yaml", "\ntrainer:", "\ntrainr:", ["experiment=hopper_quick"], ["'trainer'"]),
    Typo(
        "experiment/hopper_medium.yaml",
        "model: base",
        "model: bsae",
        ["experiment=hopper_medium"],
        ["hopper_medium.yaml"],
    ),
    Typo(
        "experiment/hopper_medium.yaml",
        "/model:",
        "/modl:",
        ["experiment=hopper_medium"],
        ["hopper_medium.yaml", "'model'"],
    ),
    Typo("tune/optimizer.yaml", "low: 1.0e-4", "lwo: 1.0e-4", ["tune=optimizer"], ["optimizer.yaml", "lwo"]),
    Typo("tune/optimizer.yaml", "learning_rate:", "learning_rat:", ["tune=optimizer"], ["'optimizer.learning_rate'"]),
    Typo("tune/optimizer.yaml", "[0.0, 0.1]", "[0.0, none]", ["tune=optimizer"], ["model.attn_pdrop", "'none'"]),
    Typo("train.yaml", "- model: tiny", "- modl: tiny", [], ["train.yaml", "modl", "'model'"]),
    Typo("train.yaml", "- model: tiny", "- model: tinny", [], ["train.yaml", "'model=tiny'"]),
    Typo(
        "experiment/hopper_medium.yaml",
        "model: base",
        "model: 'bsae'  # larger",
        ["experiment=hopper_medium"],
        ["hopper_medium.yaml"],
    ),
    Typo("train.yaml", "\nhydra:", "\nsed: 1\nhydra:", [], ["train.yaml", "'seed'"]),
]


OWN = {  # a file of one's own for every group, and what it sets
    "callbacks/mine.yaml": "# @package trainer.callbacks\nmine: {_target_: lightning.pytorch.callbacks.Timer}\n",
    "data/mine.yaml": "dataset_id: embedded/hopper/medium-v0\nsequence_length: 5\n",
    "debug/mine.yaml": "# @package _global_\nevaluation: {episodes: 3}\n",
    "experiment/mine.yaml": "# @package _global_\nexperiment_name: mine\n",
    "learner/mine.yaml": "_target_: trajectory_transformer.learners.iql.ImplicitQLearning\nexpectile: 0.8\n",
    "local/mine.yaml": "# @package _global_\nenvironment: {modules: [json]}\n",
    "logger/mine.yaml": "project: mine\n",
    "model/mine.yaml": "n_embd: 16\n",
    "planner/mine.yaml": "beam_width: 3\n",
    "trainer/mine.yaml": "max_steps: 7\n",
    "tune/mine.yaml": "trials: 1\nparameters: {seed: {choices: [3]}}\n",
}


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder for ``--config-dir`` with a file for every group."""
    for name, text in OWN.items():
        (tmp_path / "own" / name).parent.mkdir(parents=True)
        (tmp_path / "own" / name).write_text(text)
    return tmp_path / "own"


@pytest.mark.parametrize("flag", ["--config-dir", "-cd"])
def test_every_group_may_come_from_a_folder_of_one_s_own(
    train: Callable[..., int], runs: Runs, own: Path, flag: str
) -> None:
    groups = [f"{name.partition('/')[0]}=mine" for name in OWN if not name.startswith("learner")]
    there = {path.name for path in CONFIGS.iterdir() if path.is_dir()} - {"hydra", "method", "suite"}
    assert there == {path.name for path in own.iterdir()}
    assert train(flag, "own", *groups) == 0
    ((config, _),) = runs.calls
    assert (config.data.dataset_ids, config.data.sequence_length) == (["embedded/hopper/medium-v0"], 5)
    assert (config.experiment_name, config.logger.project) == ("mine", "mine")
    assert (config.model.n_embd, config.planner.beam_width) == (16, 3)
    assert (config.trainer.max_steps, config.seed) == (7, 3)
    assert (list(config.trainer.callbacks), config.evaluation.episodes) == (["mine"], 3)
    assert config.environment.modules == ["json"]
    assert train(flag, "own", "learner=mine") == 0  # beside which a model would have no effect
    assert runs.calls[-1][0].learner["expectile"] == 0.8


@pytest.mark.parametrize(("word", "known"), [("planner=5", "imitation, mine, return"), ("mygroup=[5]", "one of mine")])
def test_no_name_of_a_file_is_refused_of_one_s_own_groups_too(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], own: Path, word: str, known: str
) -> None:
    (own / "mygroup").mkdir()
    (own / "mygroup" / "mine.yaml").touch()
    assert train("--config-dir", "own", word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{word} is not a choice of the group" in line
    assert known in line


@pytest.mark.parametrize("group", [name.partition("/")[0] for name in OWN])
def test_a_mistake_in_a_folder_of_one_s_own_is_named_with_its_file(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], own: Path, group: str
) -> None:
    assert train("--config-dir", "own", f"{group}=mne") == 2
    assert f"{group}=mne is not a choice; choose one of " in (message := capsys.readouterr().err)
    assert f"did you mean '{group}=mine'?" in message
    assert train("--config-dir", "own", f"{group}=other") == 2
    assert "--config-dir" not in capsys.readouterr().err
    file = own / group / "mine.yaml"
    file.write_text(file.read_text() + "sed: 1\n")
    assert train("--config-dir", "own", f"{group}=mine") == 2
    assert "sed" in (message := capsys.readouterr().err)
    assert group in ("learner", "callbacks") or f"own/{group}/mine.yaml" in message
    assert len(message.strip().splitlines()) == 1
    assert not runs.calls


def test_a_machine_s_own_options_are_read_if_there_are_any(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    configs = tmp_path / "configs"
    shutil.copytree(CONFIGS, configs, ignore=shutil.ignore_patterns("local"))
    assert train("experiment=hopper_quick", "trainer.threads=2", configs=configs) == 0
    (configs / "local").mkdir()
    (configs / "local" / "default.yaml").write_text("# @package _global_\ntrainer: {threads: 6, max_steps: 7}\n")
    assert train("experiment=hopper_quick", "trainer.threads=2", "hydra.run.dir=second", configs=configs) == 0
    assert [(config.trainer.threads, config.trainer.max_steps) for config, _ in runs.calls] == [(2, 20), (2, 7)]
    (configs / "local" / "default.yaml").write_text("# @package _global_\ntrainer: {thread: 6}\n")
    assert train("hydra.run.dir=third", configs=configs) == 2
    assert "local/default.yaml: there is no option 'trainer.thread'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("launcher", "target", "value"),
    [("processes", "JoblibLauncher", ("n_jobs", 2)), ("slurm", "SlurmLauncher", ("timeout_min", 1440))],
)
def test_launchers_of_sweeps(
    train: Callable[..., int], capsys: pytest.CaptureFixture[str], launcher: str, target: str, value: tuple[str, int]
) -> None:
    assert train(f"hydra/launcher={launcher}", "--cfg", "hydra", "-p", "hydra.launcher") == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["_target_"].endswith(f".{target}")
    assert shown[value[0]] == value[1]


@pytest.mark.parametrize("command", ["train", "evaluate"])
def test_a_tracker_that_is_not_installed_is_refused_before_any_run_of_another(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    command: str,
) -> None:
    monkeypatch.setattr(checks, "TRACKERS", {"TensorBoardRun": "no_such_package", "MLflowRun": "json"})
    (tmp_path / "a.ckpt").touch()
    words = ["checkpoint=a.ckpt"] if command == "evaluate" else []
    assert request.getfixturevalue(command)(*words, "logger=[wandb,mlflow,tensorboard]") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: logger.extra.tensorboard needs the package no_such_package, which is not installed")
    assert line.endswith("pip install 'trajectory-transformer[no_such_package]'")
    assert not list(tmp_path.rglob("wandb"))


def test_mlflow_without_a_database_is_refused_unless_there_is_a_server(
    train: Callable[..., int],
    runs: Runs,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As after ``pip install mlflow-skinny``."""
    monkeypatch.setattr(checks.importlib.util, "find_spec", lambda name, *_: None if name == "sqlalchemy" else runs)
    assert train("logger=mlflow") == 2
    message = "logger.extra.mlflow needs the package sqlalchemy, which is not installed: pip install '"
    assert f"{message}trajectory-transformer[mlflow]'" in capsys.readouterr().err
    assert train("logger=mlflow", "logger.extra.mlflow.tracking_uri=http://localhost") == 0


def test_each_tracker_has_its_package() -> None:
    extras = tomllib.loads((CONFIGS.parent / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert {name.partition(">")[0] for name in extras["mlflow"]} == {"mlflow-skinny", *checks.DATABASE}
    named = {
        yaml.safe_load(file.read_text()).get("extra", {}).get(file.stem, {}).get("_target_", "").rpartition(".")[2]
        for file in (CONFIGS / "logger").glob("*.yaml")
    }
    assert named - {""} == set(checks.TRACKERS)
    assert set(checks.TRACKERS.values()) <= set(extras)


def test_own_data_beside_an_experiment_that_names_its_own_is_refused(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], own: Path
) -> None:
    assert own.is_dir()
    assert train("--config-dir", "own", "data=mine", "experiment=walker2d_medium") == 2
    assert "give data.dataset_id=embedded/hopper/medium-v0" in capsys.readouterr().err
    assert not runs.calls


@pytest.mark.parametrize("typo", YAML_MISTAKES, ids=lambda typo: f"{typo.file} {typo.wrong.strip()}")
def test_a_typo_in_a_yaml_file_is_named_with_its_file(
    train: Callable[..., int], runs: Runs, capsys: pytest.CaptureFixture[str], tmp_path: Path, typo: Typo
) -> None:
    configs = tmp_path / "own"
    shutil.copytree(CONFIGS, configs)
    text = (configs / typo.file).read_text()
    assert typo.right in text
    (configs / typo.file).write_text(text.replace(typo.right, typo.wrong, 1))
    assert train(*typo.arguments, configs=configs) == 2
    message = capsys.readouterr().err
    for word in typo.words:
        assert word in message
    assert not runs.calls


EVALUATE_MISTAKES = [
    (["models/hopper.ckpt"], ["not an option with a value; did you mean checkpoint=models/hopper.ckpt?"]),
    ([], ["checkpoint=PATH is needed"]),
    (["checkpoint=near/b.ckpt"], ["'near/b.ckpt' does not exist", "'near/a.ckpt'"]),
    (["checkpoint=near/a.ckpt", "allow=[5]"], ["allow: '5' is not the name of a module"]),
    (["checkpoint=near"], ["'near' is a folder", "'near/a.ckpt'"]),
    (["checkpoint=near/a.ckpt", "episods=3"], ["'episods'", "'episodes'"]),
    (["checkpoint=near/a.ckpt", "episodes=0"], ["episodes=0"]),
    (["checkpoint=near/a.ckpt", "planner.horizn=3"], ["'planner.horizon'"]),
    (["checkpoint=near/a.ckpt", "planer=return"], ["'planner'"]),
    (["checkpoint=near/a.ckpt", "planner.critic_score=q"], ["it is now 'planner.objective.score'"]),
    (["checkpoint=near/a.ckpt", "ensemble=e.ckpt"], ["did you mean 'predict.ensemble'"]),
    (["checkpoint=near/a.ckpt", "planner.deadline_ms=-1"], ["planner.deadline_ms=-1", "positive"]),
    (["checkpoint=near/a.ckpt", "planner.decoder=natve"], ["planner.decoder", "'native'"]),
    (["checkpoint=near/a.ckpt", "planner.precision=bf16", "planner.decoder=native"], ["planner.precision=bf16"]),
    (["checkpoint=near/a.ckpt", "accelerator=tpu"], ["accelerator"]),
    (
        ["checkpoint=near/a.ckpt", "planner=return", "planner.act=mean", "planner.top_share=0.5"],
        ["planner.top_share has no effect with planner.act=mean, but with planner.act=conditioned: leave it out"],
    ),
    (["checkpoint=near/a.ckpt", "task=predict", "predict.ensemble=''"], ["predict.ensemble= names no file"]),
    (["checkpoint=near/a.ckpt", "predict.horizon=5"], ["predict.horizon has no effect without task=predict"]),
    (["checkpoint=near/a.ckpt", "task=predict", "attention.shown=1"], ["attention.shown has no effect without task=a"]),
    (["checkpoint=near/a.ckpt", "task=predict", "num_envs=2"], ["num_envs has no effect without task=plan"]),
    (["checkpoint=near/a.ckpt", "task=attention", "video=1"], ["video has no effect without task=plan or task=pre"]),
    (["checkpoint=near/a.ckpt", "task=attention", "planner.horizon=2"], ["planner.horizon has no effect without task"]),
    (["checkpoint=near/a.ckpt", "logger.tags=[a]"], ["logger.tags has no effect without logger=wandb"]),
]


@pytest.mark.parametrize(("arguments", "words"), EVALUATE_MISTAKES, ids=lambda value: " ".join(value))
def test_a_mistake_of_an_evaluation_is_named(
    evaluate: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    arguments: list[str],
    words: list[str],
) -> None:
    (tmp_path / "near").mkdir()
    (tmp_path / "near" / "a.ckpt").touch()
    assert evaluate(*arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    for word in words:
        assert word in line
    assert not list(tmp_path.rglob("config.yaml"))


@pytest.mark.parametrize(
    "argument",
    ["model=tiny", "modl=tiny", "trainer=cpu", "+experiment=hopper_quick", "trainr=cpu", "debug=fast", "callback=a"],
)
def test_an_evaluation_offers_no_groups_of_training(
    evaluate: Callable[..., int], capsys: pytest.CaptureFixture[str], argument: str
) -> None:
    assert evaluate("checkpoint=a.ckpt", argument) == 2
    message = capsys.readouterr().err
    assert argument.lstrip("+").partition("=")[0] in message
    assert not {"'model'", "'trainer'", "'experiment'", "'debug'", "'callbacks'"} & set(
        message.partition("did you mean")[2].rstrip("?\n").split()
    )


@pytest.mark.parametrize(
    ("command", "arguments"),
    [
        ("train", ["model.n_layr=3"]),
        ("train", ["seed=a"]),
        ("train", ["planner.horizon=0"]),
        ("train", ["-m", "model=tiny,bs"]),
        ("train", ["learner=iql", "learner.expectile=2"]),
        ("train", ["learner=ensemble", "learner.num_members=0"]),
        ("train", ["learner=bc", "learner.best_fraction=0"]),
        ("train", ["learner=dt", "learner.context=0"]),
        ("train", ["learner=rebrac", "learner.policy_every=0"]),
        ("train", ["learner=behavior", "data=goal_umaze"]),
        ("train", ["learner=bc", "planner.horizon=3"]),
        ("train", ["+model.block._target_=builtins.object"]),
        ("train", ["+trainer.callbacks.mine._target_=builtins.dict"]),
        ("train", ["+trainer.metrics.mine._target_=builtins.dict"]),
        ("train", ["seed=0,1"]),
        ("train", ["--seed=3"]),
        ("train", ["resume=nowhere"]),
        ("evaluate", ["checkpoint=nowhere.ckpt"]),
    ],
)
def test_a_mistake_stops_before_anything_slow_is_imported(tmp_path: Path, command: str, arguments: list[str]) -> None:
    call = [sys.executable, "-c", NO_TORCH, command, str(CONFIGS), *arguments]
    done = subprocess.run(call, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys; import trajectory_transformer; assert 'torch' not in sys.modules; trajectory_transformer.Agent"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.mark.parametrize(
    ("word", "message"),
    [
        (
            "trainer=5",
            "trainer=5 is not a choice of the group 'trainer'; choose one of cpu, ddp, fsdp, gpu, slurm",
        ),
        ("trainer=[1]", "trainer=[1] is not a choice of the group 'trainer'"),
        ("model=null", "model=null is not a choice of the group 'model'"),
        ("seed=" + "9" * 5000, "cannot read the option 'seed=999"),
        ("+trainer.callbacks.a=5", "trainer.callbacks.a=5 is not a mapping with a _target_"),
    ],
)
def test_what_hydra_raises_bare_errors_about(
    word: str, message: str, train: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(word) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {message}")
    assert len(line) < 300
