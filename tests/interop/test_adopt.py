"""Foreign weights and a data set become a checkpoint that plans."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.golden.seeded import Case, original_weights, rewrite_weights
from tests.minari_sets import random_episode, write_dataset
from trajectory_transformer import Agent
from trajectory_transformer.checkpoint_file import SECTION, read_checkpoint
from trajectory_transformer.configuration import DataConfig
from trajectory_transformer.data.original_bins import original_quantiles
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.data.transitions import join_transitions
from trajectory_transformer.errors import UserError
from trajectory_transformer.interop.adopt import adopt, main
from trajectory_transformer.interop.convert import convert

CASE = Case("small", 3, 2, 10, 2, 2, 16, 5, False)
DATASET = "test/small-v0"


@pytest.fixture(autouse=True)
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    write_dataset(DATASET, [random_episode(40, seed, terminated=seed % 2 == 0) for seed in range(5)])


def unknowing(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The weights with heads that predict every token equally, because random ones would be worse than chance."""
    return weights | {"head.weight": torch.zeros_like(weights["head.weight"])}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    torch.save(unknowing(original_weights(CASE)), tmp_path / "state_1.pt")
    (tmp_path / "args.json").write_text(json.dumps({"n_head": 2}))
    return tmp_path / "state_1.pt"


def loaded_rows() -> np.ndarray:
    """The transitions as the original's loader returns them: without the file's last row and its termination."""
    episodes = load_offline_data(DataConfig(DATASET)).episodes
    rows = [join_transitions(episode, 0.99, -100.0) for episode in episodes[:-1]]
    last = episodes[-1]
    shorter = type(last)(last.observations[:-1], last.actions[:-1], last.rewards[:-1], False)
    return np.concatenate([*rows, join_transitions(shorter, 0.99, -100.0)])


def test_a_state_file_and_a_data_set(state: Path, tmp_path: Path) -> None:
    adoption = adopt(state, tmp_path / "adopted.ckpt", {"dataset_id": DATASET})
    record = read_checkpoint(tmp_path / "adopted.ckpt")[SECTION]
    assert torch.equal(record["discretizer"]["edges"], original_quantiles(loaded_rows(), 10).edges)
    assert record["data"]["termination_penalty"] == -100.0
    assert record["data"]["sequence_length"] == 10
    assert record["adoption"]["origin"] == adoption.origin == "original"
    assert record["adoption"]["transitions"] == adoption.transitions == 199
    assert set(adoption.nats) == {"observation", "action", "reward", "value"}
    assert 0 < min(adoption.reconstruction) < max(adoption.reconstruction) < 1
    agent = Agent.from_checkpoint(tmp_path / "adopted.ckpt", beam_width=4, horizon=2)
    agent.reset(3)
    actions = agent.act(np.zeros((3, 3), dtype=np.float32))
    assert actions.shape == (3, 2)
    assert np.isfinite(actions).all()


def test_the_likelihood_is_the_model_s_own(state: Path, tmp_path: Path) -> None:
    """A model that predicts every token equally has ln(bins + stop) nats per token."""
    adoption = adopt(state, tmp_path / "adopted.ckpt", {"dataset_id": DATASET})
    assert adoption.uniform_nats == pytest.approx(np.log(11))
    assert list(adoption.nats.values()) == pytest.approx([np.log(11)] * 4, abs=1e-5)


def test_settings_follow_the_origin_through_a_conversion(tmp_path: Path) -> None:
    torch.save(unknowing(rewrite_weights(CASE)), tmp_path / "model_last.pt")
    convert(tmp_path / "model_last.pt", tmp_path / "converted", observation_dim=3, n_head=2)
    adoption = adopt(tmp_path / "converted", tmp_path / "adopted.ckpt", {"dataset_id": DATASET})
    record = read_checkpoint(tmp_path / "adopted.ckpt")[SECTION]
    assert adoption.origin == "rewrite"
    assert record["discretizer"]["strategy"] == "uniform"
    assert record["data"]["termination_penalty"] is None
    changed = {"dataset_id": DATASET, "discretizer": "quantile", "termination_penalty": -5.0, "discount": 0.9}
    adopt(tmp_path / "converted", tmp_path / "adopted.ckpt", changed)
    record = read_checkpoint(tmp_path / "adopted.ckpt")[SECTION]
    assert record["discretizer"]["strategy"] == "quantile"
    assert (record["data"]["termination_penalty"], record["data"]["discount"]) == (-5.0, 0.9)


@pytest.mark.parametrize("transposed", [False, True])
def test_bins_from_plain_numbers(transposed: bool, state: Path, tmp_path: Path) -> None:
    edges = np.sort(np.random.default_rng(0).standard_normal((7, 11)), axis=1)
    np.save(tmp_path / "edges.npy", edges.T if transposed else edges)
    adoption = adopt(state, tmp_path / "a.ckpt", {"dataset_id": DATASET}, edges=tmp_path / "edges.npy")
    assert adoption.bins == "edges.npy"
    stored = read_checkpoint(tmp_path / "a.ckpt")[SECTION]["discretizer"]["edges"]
    np.testing.assert_array_equal(stored.numpy(), edges.astype(np.float32))


def test_wrong_bins(state: Path, tmp_path: Path) -> None:
    file, trace = tmp_path / "edges.npy", tmp_path / "executed"
    good = np.sort(np.random.default_rng(0).standard_normal((7, 11)), axis=1)

    class Payload:
        def __reduce__(self) -> tuple:
            return Path.touch, (trace,)

    for edges, message in (
        (good[:6], r"shape \(7, 11\) or \(11, 7\)"),
        (good.astype(int), "real numbers"),
        (good[:, ::-1], "ascending"),
        (np.full((7, 11), np.nan), "finite"),
        (np.array([Payload()], dtype=object), "nothing in it was executed"),
    ):
        np.save(file, edges, allow_pickle=True)
        with pytest.raises(UserError, match=message):
            adopt(state, tmp_path / "a.ckpt", {"dataset_id": DATASET}, edges=file)
    assert not trace.exists()
    file.write_bytes(b"half")
    for path in (file, tmp_path / "none.npy"):
        with pytest.raises(UserError, match=r"not a \.npy file|does not exist"):
            adopt(state, tmp_path / "a.ckpt", {"dataset_id": DATASET}, edges=path)
    assert not (tmp_path / "a.ckpt").exists()


def test_data_that_the_weights_were_not_trained_on(state: Path, tmp_path: Path) -> None:
    torch.save({name: 30 * tensor for name, tensor in original_weights(CASE).items()}, state)
    with pytest.warns(UserWarning, match=r"tokens of these data worse than chance: it was trained with other data"):
        adopt(state, tmp_path / "a.ckpt", {"dataset_id": DATASET})


def test_the_command(state: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "a.ckpt"
    options = ["--termination-penalty", "none", "--observation-indices", "0", "2", "1"]
    assert main([str(state), str(target), "--dataset-id", DATASET, *options]) == 0
    output = capsys.readouterr().out
    assert "bins refitted on 199 transitions" in output
    assert "nats per token (chance 2.40)" in output
    assert read_checkpoint(target)[SECTION]["data"]["observation_indices"] == [0, 2, 1]
    for arguments, message in (
        ([str(state), "a.ckpt", "--dataset-id", DATASET, "--observation-indices", "0"], "must add up to 5 (data set"),
        ([str(tmp_path / "no.pt"), "a.ckpt", "--dataset-id", DATASET], "does not exist"),
        ([str(state), "a.ckpt", "--dataset-id", "nonsense"], "is not a Minari id"),
        ([str(state), "a.ckpt", "--dataset-id", DATASET, "--termination-penalty", "much"], "neither a number nor none"),
    ):
        assert main(arguments) == 1
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1


def test_a_short_model_gets_a_short_plan(tmp_path: Path) -> None:
    weights = unknowing(original_weights(CASE))
    weights["pos_emb"] = weights["pos_emb"][:, : 3 * 7 - 1]
    torch.save(weights, tmp_path / "state_1.pt")
    adopt(tmp_path / "state_1.pt", tmp_path / "a.ckpt", {"dataset_id": DATASET}, {"n_head": 2})
    settings = Agent.from_checkpoint(tmp_path / "a.ckpt").settings
    assert (settings.horizon, settings.context) == (3, 1)
