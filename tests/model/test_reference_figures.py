"""Numbers that the original and the faster rewrite compute with the same weights, committed in ``tests/golden``."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.make_figures import WEIGHTS
from tests.golden.seeded import CASES, SIZES, Case, original_weights, rewrite_weights, sampled, tokens
from trajectory_transformer.interop.convert import load
from trajectory_transformer.model.gpt import TrajectoryTransformer

FIGURES = Path(__file__).parents[1] / "golden" / "figures.npz"
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def figures() -> dict[str, np.ndarray]:
    with np.load(FIGURES) as stored:
        return dict(stored)


def converted(case: Case, weights: dict[str, torch.Tensor], directory: Path) -> TrajectoryTransformer:
    """The model that the converter makes from a peer's file."""
    torch.save(weights, directory / "state_3.pt")
    return load(directory, {"observation_dim": case.observation_dim, "n_head": case.n_head})[0]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_logits_and_loss_equal_the_original(case: Case, figures: dict[str, np.ndarray], tmp_path: Path) -> None:
    model = converted(case, original_weights(case), tmp_path)
    for name, value in WEIGHTS.items():
        setattr(model.config, name, value if case.weighted else 1)
    inputs, targets, mask = tokens(case)
    with torch.no_grad():
        output = model(inputs, targets=targets, attention_mask=mask)
    np.testing.assert_allclose(sampled(output.logits), figures[f"original/{case.name}/logits"], atol=TOLERANCE, rtol=0)
    np.testing.assert_allclose(output.loss, figures[f"original/{case.name}/loss"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize("separate_heads", [True, False])
@pytest.mark.parametrize("case", [case for case in CASES if not case.stop], ids=lambda case: case.name)
def test_logits_equal_the_rewrite_and_never_stop(
    case: Case, separate_heads: bool, figures: dict[str, np.ndarray], tmp_path: Path
) -> None:
    model = converted(case, rewrite_weights(case, separate_heads=separate_heads), tmp_path)
    with torch.no_grad():
        logits = model(tokens(case)[0]).logits
    expected = figures[f"rewrite/{case.name}/{'separate' if separate_heads else 'shared'}"]
    np.testing.assert_allclose(sampled(logits[..., :-1]), expected, atol=TOLERANCE, rtol=0)
    assert logits.softmax(-1)[..., -1].max() == 0


def test_the_figures_cover_what_they_should(figures: dict[str, np.ndarray]) -> None:
    """Four sizes; full windows, whole and partial last transitions; with and without stop tokens."""
    assert len(SIZES) >= 4
    assert {case.length % case.transition_dim == 0 for case in CASES} == {True, False}
    stops = [case for case in CASES if case.stop and (tokens(case)[0] == case.vocab_size).any()]
    assert {case.name.split("-")[0] for case in stops} == set(SIZES)
    assert len([name for name in figures if name.startswith(("original", "rewrite"))]) == len(CASES) // 2 * 6
