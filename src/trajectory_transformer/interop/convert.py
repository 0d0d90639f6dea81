"""Convert another project's weights to a model directory.

``python -m trajectory_transformer.interop.convert SOURCE DESTINATION`` reads only tensors and plain text. Pickled files
beside them (``data_config.pkl``, ``model_config.pkl``, ``discretizer.pt``) are never opened: sizes are inferred from
the tensors, and ``python -m trajectory_transformer.interop.adopt`` fits the bins again.
"""

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from .config import CONFIG_FILE, read_config, read_json
from .foreign import REWRITE, ForeignWeights, fill, fit_config, load_weights, require_sizes
from .pretrained import TrajectoryTransformerModel
from .weights import HUB_ID, INDEX_SUFFIX, WEIGHT_FILES, download, find_weights

RECORD_FILE = "conversion.json"
OPTIONS = ("observation_dim", "action_dim", "n_head")
# Fields noted by the rewrite (config.yaml) and the original (args.json) that cannot be inferred from tensors.
_REWRITE_FIELDS = {
    "num_heads": "n_head", "observation_dim": "observation_dim", "action_dim": "action_dim",
    "action_weight": "action_weight", "reward_weight": "reward_weight", "value_weight": "value_weight",
    "embedding_dropout": "embd_pdrop", "residual_dropout": "resid_pdrop", "attention_dropout": "attn_pdrop",
}  # fmt: skip
_ORIGINAL_FIELDS = set(_REWRITE_FIELDS.values()) - {"observation_dim", "action_dim"}


def convert(source: str | Path, destination: str | Path, **chosen: int) -> TrajectoryTransformerModel:
    """Write a directory that ``from_pretrained`` reads; returns the model, in evaluation mode.

    Args:
        source: the original's ``state_N.pt``, the faster rewrite's ``model_last.pt``, any file of such weights, a
            directory that contains one, or a hub id.
        destination: directory to write; its ``conversion.json`` records the source of the weights.
        chosen: ``observation_dim`` or ``action_dim`` if they are not noted beside the weights; ``n_head`` if not 4.

    Raises:
        UserError: the source is missing, damaged, ambiguous or another model's, or an option contradicts it.
    """
    model, found = load(Path(source), chosen)
    if Path(destination).resolve() == found.path.parent.resolve():
        raise UserError(f"'{destination}' holds the weights to convert; choose another destination")
    model.save_pretrained(destination)
    record = {"source": Path(source).name, "file": found.path.name, "origin": found.origin}
    (Path(destination) / RECORD_FILE).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    return model


def load(source: Path, chosen: Mapping[str, int]) -> tuple[TrajectoryTransformerModel, ForeignWeights]:
    """Load a source of :func:`convert`: the model, and the weights that it was made from."""
    file = source
    if not source.exists():
        names_file = source.suffix in (".pt", ".pth", ".bin", ".safetensors")
        if names_file or "/" not in str(source) or not HUB_ID.fullmatch(str(source)):
            raise UserError(f"'{source}' does not exist")
        file = download(str(source), {})
    if file.is_dir():
        file = find_weights(file, run=True)
    found = load_weights(file)
    stated, from_config = _stated(file, found.origin)
    if not from_config and "observation_dim" not in {*stated, *chosen} and "action_dim" not in chosen:
        raise UserError(
            f"'{file}' does not say how its transition_dim divides into observation and action; add "
            "--observation-dim N or --action-dim N"
        )
    config, corrections = fit_config(stated, chosen, found.weights, file)
    if from_config and corrections:
        warnings.warn(f"'{file.parent / CONFIG_FILE}' does not fit the weights: {'; '.join(corrections)}", stacklevel=3)
    require_sizes(config, found)
    model = TrajectoryTransformerModel(config)
    fill(model, found)
    return model, found


def _stated(file: Path, origin: str) -> tuple[dict[str, Any], bool]:
    """Configuration fields noted in plain text beside the weights; and True if they are from a ``config.json``."""
    config, arguments, settings = (file.parent / name for name in (CONFIG_FILE, "args.json", "config.yaml"))
    if config.is_file() and file.name.removesuffix(INDEX_SUFFIX) in WEIGHT_FILES:
        return read_config(config), True
    if origin == REWRITE and settings.is_file():
        # Only lines with a plain number are read, because its YAML may contain tags.
        lines = re.findall(r"^\s+(\w+):\s*(\d+(?:\.\d+)?)\s*$", settings.read_text(errors="replace"), re.MULTILINE)
        known = {_REWRITE_FIELDS[name]: value for name, value in lines if name in _REWRITE_FIELDS}
        return {name: float(value) if "." in value else int(value) for name, value in known.items()}, False
    if arguments.is_file():
        return {name: value for name, value in read_json(arguments).items() if name in _ORIGINAL_FIELDS}, False
    return {}, False


def run_command(work: Callable[[], str]) -> int:
    """Print the result of ``work``, its warnings and UserErrors, each on a line; returns the exit status."""
    try:
        with warnings.catch_warnings(record=True) as caught:
            done = work()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for warning in caught:
        print(f"warning: {warning.message}", file=sys.stderr)
    print(done)
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m trajectory_transformer.interop.convert", description=__doc__)
    parser.add_argument("source", help="state_N.pt, model_last.pt, other weights, their directory, or a hub id")
    parser.add_argument("destination", help="directory to write")
    parser.add_argument("--observation-dim", type=int, help="observation dimensions, if not noted beside the weights")
    parser.add_argument("--action-dim", type=int, help="action dimensions; one of the two is enough")
    parser.add_argument("--n-head", type=int, help="attention heads (default: as noted beside the weights, or 4)")
    options = parser.parse_args(arguments)

    def work() -> str:
        chosen = {name: value for name in OPTIONS if (value := getattr(options, name)) is not None}
        model = convert(options.source, options.destination, **chosen)
        sizes = (f"{name}={getattr(model.config, name)}" for name in (*OPTIONS, "transition_dim", "block_size"))
        return f"{model.num_parameters():,} parameters in '{options.destination}' ({', '.join(sizes)})"

    return run_command(work)


if __name__ == "__main__":
    sys.exit(main())
