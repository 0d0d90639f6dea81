"""A suite: its jobs and the final comparison, also if a job failed."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.compare.suite import SuiteChecks

from .written import write_run

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("name", [path.stem for path in sorted((CONFIGS / "suite").glob("*.yaml"))])
def test_each_method_of_a_suite_composes_on_each_of_its_sets(name: str) -> None:
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        suite = compose("train", [f"suite={name}"], return_hydra_config=True).hydra
        params = {key: str(value).split(",") for key, value in suite.sweeper.params.items()}
        assert suite.callbacks.checks._target_ == "trajectory_transformer.compare.suite.SuiteChecks"
        for method in params["method"]:
            compose("train", [f"suite={name}", f"method={method}"])
        for data in params["data"]:
            compose("train", [f"suite={name}", f"data={data}"])


def test_a_suite_ends_in_a_comparison(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = [{"method": method, "seed": str(seed)} for seed in (0, 1) for method in ("tt", "bc")]
    for number, parameters in enumerate(planned[:-1]):
        score = 20.0 if parameters["method"] == "tt" else 10.0
        run = write_run(tmp_path / str(number), score, seed=int(parameters["seed"]))
        RunRecord("finished", parameters, score).write(run)
    monkeypatch.setattr(SuiteChecks, "sweep", (tmp_path, planned))
    config = OmegaConf.create({"logger": {}, "hydra": {"sweep": {"dir": str(tmp_path)}}})
    with pytest.raises(SystemExit) as ended:
        SuiteChecks().on_multirun_end(config)
    assert ended.value.code == 1  # as the last job did not begin
    told = capsys.readouterr().out
    assert "job 3 failed: it did not start" in told
    assert "Probability that a run of A is above one of B" in told
    assert "comparison/compare.png" in (tmp_path / "index.html").read_text()
    table = (tmp_path / "comparison" / "tasks.csv").read_text().splitlines()
    assert [line.split(",")[1:3] for line in table[1:]] == [["tt", "2"], ["bc", "1"]]


def test_a_suite_without_results_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SuiteChecks, "sweep", (tmp_path, [{"method": "tt"}]))
    with pytest.raises(SystemExit):
        SuiteChecks().on_multirun_end(OmegaConf.create({"logger": {}, "hydra": {"sweep": {"dir": str(tmp_path)}}}))
    assert f"no comparison: {tmp_path}: '{tmp_path}' holds no results.json" in capsys.readouterr().out
