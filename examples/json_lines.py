"""A logger of your own: a line of JSON for each row of metrics.

``PYTHONPATH=examples python train.py --config-dir examples/configs logger=json_lines``
"""

import json
from pathlib import Path

from lightning.pytorch.loggers import Logger


class JsonLines(Logger):
    """Writes ``metrics.jsonl`` into the run's folder."""

    name, version = "json_lines", "0"

    def __init__(self, save_dir: str):  # the default is the run's folder
        super().__init__()
        self.file = Path(save_dir) / "metrics.jsonl"

    def log_hyperparams(self, params, *_, **__):
        self.file.parent.mkdir(parents=True, exist_ok=True)

    def log_metrics(self, metrics, step=None):
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step} | {name: float(value) for name, value in metrics.items()}) + "\n")
