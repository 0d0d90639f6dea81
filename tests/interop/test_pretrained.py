"""Saving, loading and sharing by the reference API's methods, and their refusals."""

import inspect
import io
import json
import math
import operator
import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.golden.seeded import CASES, original_weights
from trajectory_transformer import TrajectoryTransformerConfig, TrajectoryTransformerModel, reachability
from trajectory_transformer.errors import UserError

SMALL: dict[str, Any] = {
    "vocab_size": 9, "block_size": 29, "observation_dim": 2, "action_dim": 2, "transition_dim": 6, "n_layer": 2,
    "n_head": 2, "n_embd": 16, "action_weight": 3, "reward_weight": 2, "hidden_act": "relu", "layer_norm_eps": 1e-3,
}  # fmt: skip


def small(**changes: Any) -> TrajectoryTransformerConfig:
    return TrajectoryTransformerConfig(**(SMALL | changes))


@pytest.fixture
def model() -> TrajectoryTransformerModel:
    torch.manual_seed(0)
    model = TrajectoryTransformerModel(small()).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


@pytest.fixture
def saved(model: TrajectoryTransformerModel, tmp_path: Path) -> Path:
    model.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def same_weights(a: TrajectoryTransformerModel, b: TrajectoryTransformerModel) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))


def change_config(directory: Path, **changes: Any) -> None:
    values = json.loads((directory / "config.json").read_text())
    (directory / "config.json").write_text(json.dumps(values | changes))


def refusal(directory: Path | str, **options: Any) -> str:
    """The one sentence with which loading is refused."""
    with pytest.raises(UserError) as caught:
        TrajectoryTransformerModel.from_pretrained(directory, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_round_trip_of_a_renamed_directory(model: TrajectoryTransformerModel, saved: Path) -> None:
    loaded = TrajectoryTransformerModel.from_pretrained(saved.rename(saved.with_name("elsewhere")))
    assert same_weights(model, loaded)
    assert loaded.config == model.config
    assert not loaded.training


def test_loading_leaves_the_random_state_alone(saved: Path) -> None:
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    TrajectoryTransformerModel.from_pretrained(saved)
    assert torch.equal(torch.rand(1), expected)


def test_round_trip_in_shards(model: TrajectoryTransformerModel, saved: Path) -> None:
    model.save_pretrained(saved, max_shard_size="5KB")
    index = json.loads((saved / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    assert files[0] == f"model-00001-of-{len(files):05}.safetensors"
    assert len(files) > 2
    assert not (saved / "model.safetensors").exists()
    assert index["metadata"]["total_size"] == 4 * model.num_parameters()
    assert same_weights(model, TrajectoryTransformerModel.from_pretrained(saved))
    model.save_pretrained(saved)
    assert sorted(file.name for file in saved.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_a_model_that_has_broken_down_is_not_saved(model: TrajectoryTransformerModel, saved: Path) -> None:
    with torch.no_grad():
        model.head.weight[0, 0, 0] = torch.nan
    with pytest.raises(UserError, match=r"not saved in .*'head\.weight' holds NaN or infinity"):
        model.save_pretrained(saved)
    assert TrajectoryTransformerModel.from_pretrained(saved)


def test_a_full_disk_keeps_the_earlier_weights(
    model: TrajectoryTransformerModel, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {file.name: file.read_bytes() for file in saved.iterdir()}

    def half(weights: Any, directory: str, **_: Any) -> None:
        (Path(directory) / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("trajectory_transformer.interop.weights.save_torch_state_dict", half)
    with pytest.raises(UserError, match=r"could not be saved in .*: No space left on device"):
        model.save_pretrained(saved)
    assert {file.name: file.read_bytes() for file in saved.iterdir()} == before


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtypes(model: TrajectoryTransformerModel, tmp_path: Path, dtype: torch.dtype) -> None:
    model.to(dtype).save_pretrained(tmp_path)
    for wanted in (dtype, str(dtype), "auto"):
        assert TrajectoryTransformerModel.from_pretrained(tmp_path, torch_dtype=wanted).dtype == dtype
    if dtype == torch.float64:
        assert "float64; weights must be float32" in refusal(tmp_path)
    else:
        assert TrajectoryTransformerModel.from_pretrained(tmp_path).dtype == torch.float32


def test_old_pickled_weights_with_mask_buffers(tmp_path: Path) -> None:
    case = CASES[-1]
    weights = original_weights(case)
    named = {name.replace("mlp.0", "l1").replace("mlp.2", "l2"): tensor for name, tensor in weights.items()}
    mask = torch.ones(1, 1, case.block_size, case.block_size)
    torch.save(named | {f"blocks.{i}.attn.mask": mask for i in range(case.n_layer)}, tmp_path / "pytorch_model.bin")
    config = {"observation_dim": 1, "action_dim": 1, "transition_dim": 4, "n_head": 2, "n_embd": 16, "n_layer": 3}
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 7, "block_size": 39}))
    model = TrajectoryTransformerModel.from_pretrained(tmp_path)
    assert torch.equal(model.head.weight, weights["head.weight"])
    assert torch.equal(model.state_dict()["blocks.2.l2.weight"], weights["blocks.2.mlp.2.weight"])


def test_pickled_shards(model: TrajectoryTransformerModel, saved: Path) -> None:
    weights = load_file(saved / "model.safetensors")
    (saved / "model.safetensors").unlink()
    names = sorted(weights)
    files = {"pytorch_model-00001-of-00002.bin": names[:5], "pytorch_model-00002-of-00002.bin": names[5:]}
    for file, part in files.items():
        torch.save({name: weights[name] for name in part}, saved / file)
    index = {"weight_map": {name: file for file, part in files.items() for name in part}}
    (saved / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert same_weights(model, TrajectoryTransformerModel.from_pretrained(saved))


PUBLISHED = {  # what the sixteen configurations on the hub look like
    "activation_function": "gelu_new", "architectures": ["TrajectoryTransformerModel"], "N": 100, "action_weight": 5,
    "attn_pdrop": 0.1, "batch_size": 256, "bos_token_id": 50256, "discount": 0.99, "embd_pdrop": 0.1,
    "eos_token_id": 50256, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "learning_rate": 0.0006,
    "lr_decay": True, "model_type": "trajectory_transformer", "n_ctx": 1024, "n_embd": 32, "n_epochs_ref": 50,
    "n_head": 4, "n_layer": 4, "n_saves": 3, "resid_pdrop": 0.1, "reward_weight": 1, "seed": 42, "step": 1,
    "subsampled_sequence_length": 10, "summary_activation": None, "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True, "summary_type": "cls_index", "summary_use_proj": True, "termination_penalty": -100,
    "value_weight": 1, "vocab_size": 100,
}  # fmt: skip


@pytest.mark.parametrize(
    ("split", "expected"),
    [((17, 6), ["n_embd is 128, not 32"]), ((11, 3), ["transition_dim is 16, not 25", "block_size is 159, not 249"])],
)
def test_published_configurations_are_corrected(split: tuple[int, int], expected: list[str], tmp_path: Path) -> None:
    width = sum(split) + 2
    torch.manual_seed(0)
    config = TrajectoryTransformerConfig(
        observation_dim=split[0], action_dim=split[1], transition_dim=width, block_size=10 * width - 1
    )
    model = TrajectoryTransformerModel(config).eval()
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text(json.dumps(PUBLISHED))
    with pytest.warns(UserWarning, match="does not fit the weights") as caught:
        loaded = TrajectoryTransformerModel.from_pretrained(tmp_path)
    assert len(caught) == 1
    for clause in [*expected, f"observation_dim={split[0]} is assumed"]:
        assert clause in str(caught[0].message)
    assert loaded.config == config
    tokens = torch.randint(0, 101, (2, 3 * width))
    assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_a_split_that_nobody_states_must_be_given(model: TrajectoryTransformerModel, saved: Path) -> None:
    change_config(saved, observation_dim=3)
    assert "give observation_dim or action_dim" in refusal(saved)
    assert "must add up to 4" in refusal(saved, observation_dim=2, action_dim=3)
    assert "must add up to 4" in refusal(saved, observation_dim=4)
    assert TrajectoryTransformerModel.from_pretrained(saved, action_dim=3).config.observation_dim == 1


def test_a_port_configuration_does_not_say_what_the_port_ignores(
    model: TrajectoryTransformerModel, saved: Path
) -> None:
    """The port writes layer_norm_eps=1e-12 but computes with 1e-5, and has only one activation."""
    change_config(saved, transformers_version="4.30.2", layer_norm_eps=1e-12, hidden_act="relu")
    loaded = TrajectoryTransformerModel.from_pretrained(saved)
    assert loaded.config.layer_norm_eps == 1e-5
    assert loaded.config.hidden_act == "gelu"


def test_chosen_fields_replace_stated_ones(saved: Path) -> None:
    loaded = TrajectoryTransformerModel.from_pretrained(saved, attn_pdrop=0.5, use_cache=False, n_head=4)
    assert (loaded.config.attn_pdrop, loaded.config.use_cache, loaded.config.n_head) == (0.5, False, 4)
    assert "n_embd=32 was given, but its weights have 16" in refusal(saved, n_embd=32)
    config = small(n_head=1)
    assert TrajectoryTransformerModel.from_pretrained(saved, config=config).config is config
    assert "shape" in refusal(saved, config=small(n_embd=32))


def test_the_card_describes_the_model_and_is_kept(model: TrajectoryTransformerModel, saved: Path) -> None:
    card = (saved / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: trajectory-transformer\n")
    assert f"| parameters | {model.num_parameters():,} |" in card
    assert "29 tokens (5 transitions)" in card
    (saved / "README.md").write_text("mine")
    model.save_pretrained(saved)
    assert (saved / "README.md").read_text() == "mine"


def test_the_card_shows_code_that_runs(saved: Path) -> None:
    card = (saved / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("DIRECTORY OR HUB ID", str(saved)), names)
    assert names["logits"].shape == (1, 6, 10)


class HubClient:
    """Replaces ``huggingface_hub``: a repository is a folder."""

    def __init__(self, root: Path) -> None:
        self.root, self.calls = root, list[dict[str, Any]]()

    def HfApi(self, token: str | None = None) -> "HubClient":
        self.calls.append({"token": token})
        return self

    def create_repo(self, repo_id: str, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok
        self.calls.append({"private": private})
        (self.root / repo_id).mkdir(parents=True, exist_ok=True)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str, **options: Any) -> str:
        self.calls.append({"message": commit_message, **options})
        for file in Path(folder_path).iterdir():
            (self.root / repo_id / file.name).write_bytes(file.read_bytes())
        return "commit"

    def snapshot_download(self, repo_id: str, allow_patterns: list[str], **options: Any) -> str:
        self.calls.append({"patterns": allow_patterns, **options})
        if not (self.root / repo_id).is_dir():
            raise FileNotFoundError(f"no {repo_id}\nand more lines")
        return str(self.root / repo_id)


@pytest.mark.parametrize(
    ("real", "used"),
    [
        ("HfApi", "token"),
        ("HfApi.create_repo", "repo_id private exist_ok"),
        ("HfApi.upload_folder", "repo_id folder_path commit_message token revision create_pr"),
        (
            "snapshot_download",
            "repo_id allow_patterns etag_timeout local_files_only cache_dir force_download revision token",
        ),
    ],
)
def test_the_stand_in_is_like_the_client(real: str, used: str) -> None:
    """The stand-in's calls are valid for the installed client."""
    import huggingface_hub

    parameters = inspect.signature(operator.attrgetter(real)(huggingface_hub)).parameters
    assert set(used.split()) <= set(parameters)


@pytest.fixture
def hub_client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> HubClient:
    client = HubClient(tmp_path / "hub")
    for name in ("HfApi", "snapshot_download"):
        monkeypatch.setattr(f"huggingface_hub.{name}", getattr(client, name))
    monkeypatch.setattr(reachability, "unreachable", lambda url: None)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    return client


def test_push_to_the_hub_and_back(model: TrajectoryTransformerModel, hub_client: HubClient) -> None:
    assert (
        model.push_to_hub("me/mine", private=True, token="secret", commit_message="First", create_pr=True) == "commit"
    )
    assert hub_client.calls == [{"token": "secret"}, {"private": True}, {"message": "First", "create_pr": True}]
    files = sorted(file.name for file in (hub_client.root / "me/mine").iterdir())
    assert files == ["README.md", "config.json", "model.safetensors"]
    loaded = TrajectoryTransformerModel.from_pretrained("me/mine", revision="main")
    assert same_weights(model, loaded)
    assert hub_client.calls[-1]["revision"] == "main"
    assert len(hub_client.calls) == 4  # no pickles are fetched where there are safetensors


def test_save_and_push_at_once(model: TrajectoryTransformerModel, hub_client: HubClient, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "there", push_to_hub=True, repo_id="me/other")
    assert (hub_client.root / "me/other/model.safetensors").is_file()


def test_the_hub_refuses(model: TrajectoryTransformerModel, hub_client: HubClient, monkeypatch: Any) -> None:
    assert "could not be downloaded from the hub (FileNotFoundError: no me/none)" in refusal("me/none")

    def denied(**_: Any) -> None:
        raise PermissionError("401 Unauthorized\nmore")

    monkeypatch.setattr(hub_client, "create_repo", denied)
    with pytest.raises(
        UserError, match=r"could not be pushed to the hub \(PermissionError: 401 Unauthorized\); .*login"
    ):
        model.push_to_hub("me/mine")


def test_a_hub_id_without_network_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    message = refusal("CarlCochet/trajectory-transformer-hopper-medium-v2", cache_dir=tmp_path)
    assert "no connection to http://127.0.0.1:9" in message


@pytest.mark.parametrize("name", ["no/such/directory", "/no/such/directory", "..", "a b"])
def test_neither_directory_nor_hub_id(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    message = refusal(name) if name != ".." else refusal(tmp_path)
    assert "nor a hub id" in message or "holds no weights" in message


class Payload:
    """Would leave a file behind if it were unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("how", ["zip", "legacy", "plain pickle", "inside weights"])
def test_a_payload_is_refused_unexecuted(how: str, saved: Path, tmp_path: Path) -> None:
    (saved / "model.safetensors").unlink()
    trace, file = tmp_path / "executed", saved / "pytorch_model.bin"
    contents = {"head.weight": torch.zeros(1), "x": Payload(trace)} if how == "inside weights" else Payload(trace)
    if how == "plain pickle":
        file.write_bytes(pickle.dumps(contents))
    else:
        torch.save(contents, file, _use_new_zipfile_serialization=how != "legacy")
    message = refusal(saved)
    assert "was executed" in message
    assert not trace.exists()
    torch.load(file, weights_only=False) if how != "plain pickle" else pickle.loads(file.read_bytes())
    assert trace.exists()  # it would have


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("kept", [0, 5, 0.5, 0.99])
def test_half_a_file(kind: str, kept: float, saved: Path) -> None:
    file = saved / "model.safetensors"
    if kind == "bin":
        torch.save(load_file(file), saved / "pytorch_model.bin")
        file.unlink()
        file = saved / "pytorch_model.bin"
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if kept < 1 else int(kept)])
    assert "is empty" in (message := refusal(saved)) or "cut short" in message


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head.weight": torch.zeros(6, 10, 16, dtype=torch.int64)}, "'head.weight' is int64; weights must be float32"),
        ({"pos_emb": torch.zeros(1, 29, 16, dtype=torch.float64)}, "'pos_emb' is float64"),
        ({"pos_emb": torch.full((1, 29, 16), torch.nan)}, "'pos_emb' has NaN"),
        ({"ln_f.bias": torch.full((16,), torch.inf)}, "'ln_f.bias' has NaN or infinite"),
        ({"head.weight": torch.zeros(6, 16)}, "do not match"),
        ({"tok_emb.weight": torch.zeros(54, 16)}, "do not match"),
        ({"ln_f.bias": torch.zeros(8)}, r"'ln_f.bias' has shape (8,), expected (16,)"),
        ({"ln_f.bias": None}, "the tensor 'ln_f.bias' is missing"),
        ({"head.weight": None}, "lacks the tensor 'head.weight'"),
        ({"extra": torch.zeros(1)}, "has the tensor 'extra'"),
        ({"blocks.1000000000.ln1.weight": torch.zeros(16)}, "its blocks are not numbered from 0, or some are missing"),
        ({"blocks.0.attn.key.weight": None}, "another architecture"),
        ({"goal_emb.weight": torch.zeros(1)}, "goal-conditioned"),
    ],
)
def test_wrong_tensors(change: dict[str, torch.Tensor | None], message: str, saved: Path) -> None:
    weights = load_file(saved / "model.safetensors") | change
    save_file({name: t for name, t in weights.items() if t is not None}, saved / "model.safetensors")
    assert message in refusal(saved)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"n_layr": 2}, "has no field 'n_layr'; did you mean 'n_layer'"),
        ({"zzz": 2}, "has no field 'zzz'; it has vocab_size"),
        ({"model_type": "gpt2"}, "'gpt2' is another architecture"),
        ({"n_head": "four"}, "n_head must be a whole number, got 'four'"),
        ({"n_head": 3}, "n_embd=16 must be divisible by n_head=3"),
        ({"attn_pdrop": None}, "attn_pdrop must be a number"),
        ({"hidden_act": "swish"}, "hidden_act='swish'"),
    ],
)
def test_wrong_configuration_files(changes: dict[str, Any], message: str, saved: Path) -> None:
    change_config(saved, **changes)
    assert message in refusal(saved)
    with pytest.raises(UserError, match=r"config\.json"):
        TrajectoryTransformerConfig.from_pretrained(saved)


@pytest.mark.parametrize(
    ("text", "message"), [("{", "is not valid JSON"), ("[]", "does not hold a JSON object"), (None, "does not exist")]
)
def test_broken_configuration_files(text: str | None, message: str, saved: Path) -> None:
    (saved / "config.json").unlink()
    if text is not None:
        (saved / "config.json").write_text(text)
    assert message in refusal(saved)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ({}, "has no 'weight_map'"),
        ({"weight_map": {"head.weight": 3}}, "has no 'weight_map'"),
        ({"weight_map": {"head.weight": "none.safetensors"}}, "'none.safetensors', which is not in its directory"),
        ({"weight_map": {"head.weight": "../model/a.safetensors"}}, "which is not in its directory"),
        ({"weight_map": {"more": "a.safetensors"}}, "lists the tensor 'more'"),
    ],
)
def test_broken_shards(index: dict[str, Any], message: str, saved: Path) -> None:
    (saved / "model.safetensors").rename(saved / "a.safetensors")
    (saved / "model.safetensors.index.json").write_text(json.dumps(index))
    assert message in refusal(saved)


def test_other_refusals(model: TrajectoryTransformerModel, saved: Path, tmp_path: Path) -> None:
    assert "is a file, not a directory" in refusal(saved / "model.safetensors")
    assert "trajectory_transformer.interop.convert" in refusal(saved / "model.safetensors")
    assert "has no field 'n_hed'; did you mean 'n_head'" in refusal(saved, n_hed=2)
    assert "not a torch dtype" in refusal(saved, dtype="float33")
    with pytest.raises(UserError, match="max_shard_size='much' is not a size"):
        model.save_pretrained(tmp_path / "x", max_shard_size="much")
    with pytest.raises(UserError, match="only safetensors are written"):
        model.save_pretrained(tmp_path / "x", safe_serialization=False)
    with pytest.raises(UserError, match="has no option max_shard unless"):
        model.save_pretrained(tmp_path / "x", max_shard="1GB")
    model.save_pretrained(tmp_path / "x", is_main_process=False)
    assert not (tmp_path / "x").exists()
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"could not be saved in .*file"):
        model.save_pretrained(tmp_path / "file")
    with pytest.raises(UserError, match="hidden_act is a function"):
        TrajectoryTransformerModel(small(hidden_act=torch.tanh)).save_pretrained(tmp_path / "y")


@pytest.mark.parametrize(
    ("contents", "message"),
    [
        ([1.0], "holds no named tensors"),
        ({}, "holds no named tensors"),
        ({"epoch": 3}, "holds 'epoch', a int; a file of weights"),
    ],
)
def test_files_of_other_things(contents: object, message: str, saved: Path) -> None:
    (saved / "model.safetensors").unlink()
    torch.save(contents, saved / "pytorch_model.bin")
    assert message in refusal(saved)


def test_values_of_no_sense_in_a_configuration_are_one_sentence(saved: Path) -> None:
    """All fields with values mostly of a wrong type; sizes that the weights determine are corrected."""
    kept, wrong = (saved / "config.json").read_text(), []
    for name in json.loads(kept):
        for value in (None, "x", [1], {}, True, 1.5, -1, math.nan, 10**400):
            change_config(saved, **{name: value})
            try:
                with warnings.catch_warnings(action="ignore"):
                    TrajectoryTransformerModel.from_pretrained(saved)
            except UserError:
                pass
            except Exception as error:
                wrong.append((name, value, repr(error)))
            (saved / "config.json").write_text(kept)
    assert wrong == []


def test_compressed_weights_are_not_inflated(saved: Path) -> None:
    buffer = io.BytesIO()
    torch.save({"head.weight": torch.zeros(10**6)}, buffer)
    with (
        zipfile.ZipFile(buffer) as stored,
        zipfile.ZipFile(saved / "pytorch_model.bin", "w", zipfile.ZIP_BZIP2) as file,
    ):
        for entry in stored.infolist():
            file.writestr(entry.filename, stored.read(entry))
    (saved / "model.safetensors").unlink()
    assert "is compressed" in refusal(saved)


def test_a_width_that_the_weights_do_not_have_is_not_built(saved: Path) -> None:
    change_config(saved, numerical_embedding=60_000)  # two layers of 14 GB
    assert re.search(r"the tensor 'numbers\.\S+' is missing", refusal(saved))
