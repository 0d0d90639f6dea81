"""A run that starts from a file's weights: they are loaded, and mismatches are refused by name."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import Callback

from trajectory_transformer.app.experiment import initial_weights
from trajectory_transformer.configuration import TrainConfig
from trajectory_transformer.data.episodes import OfflineData
from trajectory_transformer.environments.spec import EnvironmentSpec, SpaceSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.interop.pretrained import TrajectoryTransformerModel
from trajectory_transformer.learners.bc import BehaviorCloning
from trajectory_transformer.learners.transformer import TransformerLearner
from trajectory_transformer.training.fit import fit, make_module
from trajectory_transformer.training.interruption import SignalWatch
from trajectory_transformer.training.learner_module import LearnerModule

from ..learners.test_numerical_pretraining import Signal
from .small_run import small_config, small_data, small_datamodule, small_fit, weights


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The last checkpoint of a short run."""
    return small_fit(tmp_path_factory.mktemp("trained"), small_config(max_steps=6)).last


def started(config: TrainConfig, data: OfflineData | None = None) -> LearnerModule:
    """A module that starts from ``config.init_from``."""
    module = make_module(TransformerLearner(), config, small_datamodule(config, data))
    initial_weights(config).give_to(module)
    return module


def config_from(path: Path, **model: Any) -> TrainConfig:
    config = small_config(max_steps=2)
    config.init_from = str(path)
    config.model = replace(config.model, **model)
    return config


def same(module: LearnerModule, stored: dict[str, torch.Tensor]) -> bool:
    """True if the parameters are the stored ones, but for those that are fitted to the run's own data."""
    parameters = module.named_parameters()
    return all(torch.equal(own, stored[name]) for name, own in parameters if not name.startswith("improvement."))


def test_training_starts_from_a_checkpoint_and_resumes_without_it(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    # These options leave the meaning of the weights alone.
    config = config_from(trained, embd_pdrop=0.3, action_weight=2.0, numerical_pretraining=2.0)
    assert same(started(config), weights(trained))
    config.optimizer.learning_rate = 1e-12
    datamodule = small_datamodule(config)
    report = fit(TransformerLearner(), config, tmp_path, datamodule, [], [], False, initial_weights(config))
    kept, given = weights(report.last), weights(trained)
    assert (kept.pop("readout.pretrained"), given.pop("readout.pretrained")) == (0.0, 1.0)  # it is not trained again
    for name, value in kept.items():
        if not name.startswith("improvement."):
            torch.testing.assert_close(value, given[name], atol=1e-9, rtol=0)
    fresh = weights(small_fit(tmp_path / "fresh", small_config(max_steps=2)).last)
    for name in (name for name in fresh if name.startswith("improvement.")):  # fitted to this run's data
        assert torch.equal(kept[name], fresh[name])
    assert kept["improvement.fitted"] == 1.0
    config.init_from, config.trainer.max_steps = "gone", 3
    assert small_fit(tmp_path, config, resume=True).steps == 3
    assert not caplog.records


def test_a_start_that_was_stopped_resumes_to_the_same_weights(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The signal arrives while the improvement of actions is fitted."""
    config = config_from(trained)

    def run(folder: str, callbacks: list[Callback], resume: bool = False) -> dict[str, torch.Tensor]:
        initial = None if resume else initial_weights(config)
        inputs = small_datamodule(config), [], callbacks, resume, initial
        return weights(fit(TransformerLearner(), config, tmp_path / folder, *inputs).last)

    whole, watches = run("whole", []), list[SignalWatch]()
    with monkeypatch.context() as patch:
        patch.setattr(SignalWatch, "__enter__", lambda self: watches.append(self) or self)
        with pytest.raises(SystemExit, match="143"):
            run("stopped", [Signal(watches)])
    assert weights(tmp_path / "stopped" / "checkpoints" / "last.ckpt")["improvement.fitted"] == 0.0
    resumed = run("stopped", [], resume=True)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert whole["improvement.fitted"] == 1.0


def test_training_starts_from_converted_weights(
    trained: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    module = make_module(TransformerLearner(), small_config(), small_datamodule(small_config()))
    module.load_state_dict(weights(trained))
    model = module.get_submodule("model")
    converted = TrajectoryTransformerModel(model.config)  # pyright: ignore[reportArgumentType]
    converted.load_state_dict(model.state_dict())
    converted.save_pretrained(tmp_path / "converted")
    caplog.clear()
    # What only training uses is not in the file and keeps its first values.
    stored = {name: value for name, value in weights(trained).items() if name.startswith("model.")}
    first = make_module(TransformerLearner(), small_config(), small_datamodule(small_config())).state_dict()
    assert same(started(config_from(tmp_path / "converted")), first | stored)
    (warning,) = caplog.records
    assert "bins that it was trained with are not known" in warning.getMessage()


def test_other_bins_are_told(trained: Path, caplog: pytest.LogCaptureFixture) -> None:
    config = config_from(trained)
    config.data.discretizer.strategy = "quantile"
    assert same(started(config), weights(trained))
    (warning,) = caplog.records
    assert "with are not this run's" in warning.getMessage()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda config: setattr(config.model, "n_layer", 2),
            "model.n_layer=1, but this run has 2: give model.n_layer=1",
        ),
        (lambda config: setattr(config.model, "n_head", 2), "model.n_head=1, but this run has 2: give model.n_head=1"),
        (
            lambda config: setattr(config.model, "numerical_embedding", None),
            "model.numerical_embedding=4, but this run has null: give model.numerical_embedding=4",
        ),
        (
            lambda config: setattr(config.data, "sequence_length", 2),
            "data.sequence_length=3, but this run has 2: give data.sequence_length=3",
        ),
        (
            lambda config: setattr(config.data.discretizer, "num_bins", 12),
            "data.discretizer.num_bins=10, but this run has 12: give data.discretizer.num_bins=10",
        ),
    ],
)
def test_another_model_is_refused(trained: Path, change: Callable[[TrainConfig], None], words: str) -> None:
    config = config_from(trained)
    change(config)
    with pytest.raises(UserError, match=f"init_from={trained} holds a model with {words}$"):
        started(config)


def with_spaces(**spaces: Any) -> OfflineData:
    data = small_data()
    environment: EnvironmentSpec = replace(data.environment, **spaces)
    return replace(data, environment=environment)


def test_other_spaces_are_refused(trained: Path) -> None:
    (leaf,) = small_data().environment.action.leaves
    bounds = SpaceSpec((replace(leaf, low=(-20.0,)),))
    assert same(started(config_from(trained), with_spaces(action=bounds)), weights(trained))
    discrete = SpaceSpec((replace(leaf, kind="discrete", shape=(), low=(0.0,), high=(5.0,)),))
    module = make_module(TransformerLearner(), small_config(), small_datamodule(small_config()))
    initial = initial_weights(config_from(trained))
    for spaces, words in (
        ({"action": discrete}, "another action space than the data's"),
        ({"observation": SpaceSpec((leaf, leaf))}, "for 1 observation dimensions, but the data have 2"),
    ):
        module.record = replace(module.record, environment=replace(small_data().environment, **spaces))
        with pytest.raises(UserError, match=words):
            initial.give_to(module)


def test_another_learner_s_weights_and_shapes_are_refused(trained: Path) -> None:
    initial = initial_weights(config_from(trained))
    module = make_module(TransformerLearner(), small_config(), small_datamodule(small_config()))
    name, value = next(iter(initial.weights.items()))
    lacking = {key: tensor for key, tensor in initial.weights.items() if key != name}
    for wrong, words in (
        (replace(initial, weights=lacking), f"the tensor '{name}' is missing"),
        (replace(initial, weights={**lacking, name: value[:1, :1]}), f"the tensor '{name}' has shape"),
        (replace(initial, kind=BehaviorCloning.kind), "holds weights of learner=bc, but this run trains transformer"),
    ):
        with pytest.raises(UserError, match=words):
            wrong.give_to(module)
