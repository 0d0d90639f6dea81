"""Suites: sweeps over methods, data sets and seeds that end with a comparison of the methods."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from typing_extensions import override

from ..app.checks import RunChecks
from ..app.page import write_sweep_page
from ..errors import UserError
from ..files import is_first_process
from .__main__ import compare_runs


class SuiteChecks(RunChecks):
    """Hydra callback of a suite, ``suite=NAME``: that of a sweep, then ``compare`` into the sweep's folder and page.

    Failed jobs are named in the sweep's table and in the comparison, which is over the others.
    """

    @override
    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        try:
            super().on_multirun_end(config, **kwargs)
        finally:
            if is_first_process():
                self._compare(Path(config.hydra.sweep.dir))

    def _compare(self, directory: Path) -> None:
        try:
            compare_runs([str(directory)], out=directory / "comparison", by="method")
            write_sweep_page(directory)  # again, now with the comparison
        except UserError as error:
            print(f"no comparison: {error.told}")
