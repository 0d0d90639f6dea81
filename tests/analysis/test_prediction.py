"""Held-out episodes continued by a small model, from options to files."""

import copy
import csv
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel
from trajectory_transformer.analysis.prediction import PredictionRequest, Predictor, choose_references, predict
from trajectory_transformer.configuration import PlannerConfig, PredictConfig
from trajectory_transformer.data.discretizer import QuantileDiscretizer
from trajectory_transformer.data.episodes import Episode
from trajectory_transformer.environments.spec import EnvironmentSpec
from trajectory_transformer.errors import UserError
from trajectory_transformer.evaluation.measurements import RunFacts
from trajectory_transformer.planning.trained_transformer import TrainedTransformer

from ..specs import box

OBSERVATION_DIM, ACTION_DIM, WIDTH, TRANSITIONS, BINS = 3, 2, 7, 4, 8
FACTS = RunFacts("tests/walk-v0", "Walk-v0", 5, None, "python evaluate.py task=predict")


ENVIRONMENT = EnvironmentSpec("Walk-v0", None, box(OBSERVATION_DIM), box(ACTION_DIM))


def episode(steps: int, seed: int) -> Episode:
    random = np.random.default_rng(seed)
    observations = random.normal(size=(steps + 1, OBSERVATION_DIM)).astype(np.float32)
    observations[:, 2] = 1.5  # never changes
    return Episode(
        observations, random.normal(size=(steps, ACTION_DIM)).astype(np.float32), np.zeros(steps, np.float32), False
    )


HELD_OUT = [episode(steps, seed) for seed, steps in enumerate((12, 3, 9, 20))]


@pytest.fixture(scope="module")
def trained() -> TrainedTransformer:
    torch.manual_seed(0)
    config = TrajectoryTransformerConfig(
        vocab_size=BINS, block_size=TRANSITIONS * WIDTH - 1, transition_dim=WIDTH, observation_dim=OBSERVATION_DIM,
        action_dim=ACTION_DIM, n_layer=1, n_head=1, n_embd=8,
    )  # fmt: skip
    values = torch.randn(300, WIDTH, generator=torch.Generator().manual_seed(0))
    values[:, 2] = 1.5
    return TrainedTransformer(
        TrajectoryTransformerModel(config).eval(), QuantileDiscretizer(BINS).fit(values), ENVIRONMENT
    )


class Constant:
    """Two members; the next observation is the present one plus or minus 1."""

    num_members = 2

    def distribution(self, observations: Tensor, actions: Tensor, members: Tensor) -> tuple[Tensor, Tensor]:
        return observations.clone(), torch.ones_like(observations)


def request(episodes: int = 2, **options: Any) -> PredictionRequest:
    small: dict[str, Any] = {"horizon": 4, "samples": 20}
    settings = PredictConfig(**(small | options))
    return PredictionRequest(settings, episodes, 0, FACTS, progress=False)


def figures_in(directory: Path) -> dict[tuple[str, str], dict[str, str]]:
    with (directory / "figures.csv").open(newline="") as file:
        return {(row["method"], row["name"]): row for row in csv.DictReader(file)}


def test_figures_and_pictures_of_all_models(trained: TrainedTransformer, tmp_path: Path) -> None:
    measurements = predict(trained, PlannerConfig(), HELD_OUT, Constant(), request(), tmp_path)
    rows = figures_in(tmp_path)
    assert len(rows) == len(measurements)
    assert {method for method, _ in rows} == {"transformer", "markovian", "ensemble", "oracle", "constant"}
    assert {row["count"] for row in rows.values()} == {"2"}  # episodes 0 and 2: the second is too short
    assert (rows["transformer", "log_likelihood_mean"]["dataset"], FACTS.seed) == ("tests/walk-v0", 5)
    assert measurements[0].value == pytest.approx(float(rows["transformer", "log_likelihood_mean"]["value"]), rel=1e-5)
    for step in (1, 4):
        likelihoods = [float(rows[m, f"log_likelihood_step_{step}"]["value"]) for m in ("transformer", "oracle")]
        assert likelihoods[0] < likelihoods[1]
    first = [float(rows[method, "log_likelihood_step_1"]["value"]) for method in ("transformer", "markovian")]
    assert first[0] == pytest.approx(first[1])  # at the first step there is one transition to see
    errors = [float(rows[method, "mean_error_step_1"]["value"]) for method in ("ensemble", "constant")]
    assert errors[0] == pytest.approx(errors[1], rel=1e-5)
    for name in ("log_likelihood", "error"):
        assert (tmp_path / "plots" / f"prediction_{name}.png").stat().st_size > 0
    assert not (tmp_path / "videos").exists()


def test_errors_are_in_standard_deviations_of_the_held_out_data(trained: TrainedTransformer, tmp_path: Path) -> None:
    predict(trained, PlannerConfig(), HELD_OUT, None, request(episodes=1, horizon=1), tmp_path)
    deviation = np.concatenate([e.observations for e in HELD_OUT]).std(axis=0)
    deviation[2] = 1.0  # a dimension that never changes is not divided by 0
    change = (HELD_OUT[0].observations[1] - HELD_OUT[0].observations[0]) / deviation
    expected = np.sqrt((change**2).mean())
    assert float(figures_in(tmp_path)["constant", "mean_error_step_1"]["value"]) == pytest.approx(expected, rel=1e-4)


def test_a_run_can_be_repeated_and_its_seed_matters(trained: TrainedTransformer, tmp_path: Path) -> None:
    def value(seed: int) -> float:
        again = replace(request(episodes=1), facts=replace(FACTS, seed=seed))
        return predict(trained, PlannerConfig(), HELD_OUT, None, again, tmp_path)[0].value

    assert value(1) == value(1)
    assert value(1) != value(2)


def test_a_context_of_one_is_the_markovian_model(trained: TrainedTransformer, tmp_path: Path) -> None:
    predict(trained, PlannerConfig(), HELD_OUT, None, request(), tmp_path)
    markovian = figures_in(tmp_path)["markovian", "log_likelihood_mean"]["value"]
    predict(trained, PlannerConfig(), HELD_OUT, None, request(context=1), tmp_path)
    rows = figures_in(tmp_path)
    assert rows["transformer", "log_likelihood_mean"]["value"] == markovian
    assert ("markovian", "log_likelihood_mean") not in rows


def test_recorded_actions_are_the_episodes_own(trained: TrainedTransformer) -> None:
    """Two episodes that differ in one action have equal predictions up to it; not so with the model's own actions."""
    other = Episode(HELD_OUT[0].observations, HELD_OUT[0].actions.copy(), HELD_OUT[0].rewards, False)
    other.actions[2] = -10 * np.sign(other.actions[2])

    def means(actions: str, reference: Episode) -> np.ndarray:
        predictor = Predictor(
            trained, PlannerConfig(), request(actions=actions).options, np.ones(OBSERVATION_DIM), None
        )
        marginals, _ = predictor.predict(reference, 0, lambda _: None)
        return marginals["transformer"].mean()

    recorded = [means("recorded", reference) for reference in (HELD_OUT[0], other)]
    np.testing.assert_array_equal(recorded[0][:2], recorded[1][:2])
    assert (recorded[0][2] != recorded[1][2]).any()
    np.testing.assert_array_equal(means("model", HELD_OUT[0]), means("model", other))


def test_both_decoders_predict_alike(trained: TrainedTransformer) -> None:
    means = []
    for decoder in ("auto", "eager"):
        predictor = Predictor(
            trained, PlannerConfig(decoder=decoder), request().options, np.ones(OBSERVATION_DIM), None
        )
        marginals, _ = predictor.predict(HELD_OUT[0], 0, lambda _: None)
        means.append(marginals["transformer"].mean())
    np.testing.assert_allclose(means[0], means[1], atol=1e-4)


# ---- what cannot be predicted ----


def test_a_horizon_beyond_every_episode_is_refused(trained: TrainedTransformer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predict\.horizon=21: no held-out episode .* shorten it to at most 20"):
        predict(trained, PlannerConfig(), HELD_OUT, None, request(horizon=21), tmp_path)


def test_fewer_episodes_than_asked_for_are_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    assert choose_references(HELD_OUT, 9, 2) == [HELD_OUT[0], HELD_OUT[2]]
    assert not caplog.records
    assert choose_references(HELD_OUT, 9, 5) == [HELD_OUT[0], HELD_OUT[2], HELD_OUT[3]]
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "3 of the 4 held-out episodes have the 9 steps" in record.message


def test_a_context_beyond_the_models_is_refused(trained: TrainedTransformer, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"predict\.context=4 exceeds the 3 transitions .*data\.sequence_length=4"):
        predict(trained, PlannerConfig(), HELD_OUT, None, request(context=4), tmp_path)
    with pytest.raises(UserError, match=r"data\.sequence_length=1 sees no transition"):
        PredictConfig().context_within(1)


def test_a_goal_model_is_refused(trained: TrainedTransformer) -> None:
    goal = copy.deepcopy(trained)
    goal.model.config.goal_conditioned = True
    with pytest.raises(UserError, match=r"task=predict .*trained to reach goals \(model\.goal_conditioned=true\)"):
        Predictor(goal, PlannerConfig(), PredictConfig(), np.ones(OBSERVATION_DIM), None)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"horizon": 0}, r"predict\.horizon=0"),
        ({"samples": 0}, r"predict\.samples=0"),
        ({"context": 0}, r"predict\.context=0"),
        ({"k_obs": 0}, r"predict\.k_obs=0"),
        ({"temperature": 0.0}, r"predict\.temperature=0"),
        ({"temperature": float("nan")}, r"predict\.temperature=nan"),
        ({"actions": "recordd"}, "did you mean 'recorded'"),
        ({"actions": "model", "ensemble": "a.ckpt"}, "no actions of its own"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PredictConfig(**options)
