"""The index page of a run's and of a sweep's folder: its contents and links, and that names are escaped."""

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import pytest

from tests.evaluation.test_results import make_results
from trajectory_transformer.app.jobs import RunRecord
from trajectory_transformer.app.page import PAGE, write_run_page
from trajectory_transformer.app.sweep import report
from trajectory_transformer.evaluation.measurements import Measurement, RunFacts, write_measurements
from trajectory_transformer.evaluation.results import write_results

from .conftest import Runs

NASTY = "<script>alert('&amp;')</script>"


class Reader(HTMLParser):
    """The text of a page, its rows of cells, and its links."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.words: list[str] = []
        self.links: list[str] = []
        self.rows: list[list[str]] = []
        self.tags: set[str] = set()
        self._cell = False
        self.feed(file.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.links += [value for name, value in attrs if name in ("href", "src") and value is not None]
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True

    def handle_endtag(self, tag: str) -> None:
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if self._cell:
            self.rows[-1][-1] += data


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A folder as a run leaves it, with names that HTML and addresses must have escaped."""
    folder = tmp_path / "my run & <b>"
    results = make_results()
    results["command"] = f"python train.py experiment_name={NASTY}"
    write_results(results, folder / "results.json")
    (folder / "config.yaml").write_text(f"name: {NASTY}\n")
    (folder / "metrics.csv").write_text("step,train/loss,val/loss\n1,3.0,\n2,,2.5\n4,,1.25\n6,,1.5\n")
    for file in ("plots/returns.png", "plots/attention #2.png", *(f"videos/episode_{i}.mp4" for i in (10, 9))):
        (folder / file).parent.mkdir(exist_ok=True)
        (folder / file).touch()
    write_run_page(folder, "finished", 20.0, "")
    return folder


def test_a_page_holds_results_pictures_films_and_origin(run: Path) -> None:
    page = Reader(run / PAGE)
    assert ["planner mean return", "20 (2 episodes)"] in [[" ".join(c.split()) for c in row] for row in page.rows]
    assert ["optimiser updates", "6"] in page.rows
    assert ["lowest validation loss", "1.25"] in page.rows
    assert ["5", "10", "3", "yes", "yes", "5"] in page.rows  # an episode
    assert "finished" in page.text
    assert f"experiment_name={NASTY}" in page.text
    assert f"name: {NASTY}" in page.text
    assert "a" * 40 in page.text  # the commit
    assert "torch" in page.text
    films = [link for link in page.links if link.startswith("videos")]
    assert films == ["videos/episode_9.mp4", "videos/episode_10.mp4"]


def test_nothing_is_taken_for_html_and_every_link_leads_into_the_folder(run: Path) -> None:
    page = Reader(run / PAGE)
    assert not page.tags & {"script", "b"}
    assert "my run & <b>" in page.text
    assert len(page.links) > 6
    for link in page.links:
        assert not link.startswith(("http", "/", "file"))
        assert (run / unquote(link)).exists(), link
    assert "plots/attention%20%232.png" in page.links
    assert "://" not in (run / PAGE).read_text()  # nothing that a page without a network would miss


def test_a_run_that_did_not_act_shows_its_measurements(tmp_path: Path) -> None:
    facts = RunFacts("d", "e", 0, None, "c")
    write_measurements(tmp_path / "figures.csv", facts, [Measurement("model", "error", 0.5, 0.25, 0.75, 9)])
    write_run_page(tmp_path, "finished", None, "")
    assert ["model", "error", "0.5", "0.25", "0.75", "9"] in Reader(tmp_path / PAGE).rows


def test_every_run_leaves_a_page_however_it_ends(train: Callable[..., int], runs: Runs, tmp_path: Path) -> None:
    assert train("seed=3", "hydra.run.dir=well") == 0
    page = Reader(tmp_path / "well" / PAGE)
    assert ["score", "3"] in page.rows
    assert "train.py seed=3" in page.text
    runs.error = RuntimeError("a <bad> day")
    assert train("hydra.run.dir=badly") == 1
    assert "RuntimeError: a <bad> day" in Reader(tmp_path / "badly" / PAGE).text


def test_a_page_that_cannot_be_made_costs_no_run(
    train: Callable[..., int], runs: Runs, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "results.json").write_text("{half")
    assert train("hydra.run.dir=here") == 0
    told = capsys.readouterr()
    assert "no index.html: UserError: results file" in told.out + told.err
    written = RunRecord.read(tmp_path / "here")
    assert written is not None
    assert written.status == "finished"


def test_a_sweep_s_page_has_its_table_and_leads_to_its_jobs(tmp_path: Path) -> None:
    for number, status in enumerate(("finished", "failed", "finished")):
        (tmp_path / str(number)).mkdir()
        record = RunRecord(status, {"seed": str(number)}, float(number), "" if status == "finished" else NASTY)
        record.write(tmp_path / str(number))
        if number < 2:
            write_run_page(tmp_path / str(number), status, record.score, record.reason)
    (tmp_path / "comparison").mkdir()
    for file in ("compare.png", "compare.txt"):
        (tmp_path / "comparison" / file).touch()
    report(tmp_path)
    page = Reader(tmp_path / PAGE)
    assert page.rows[0][:3] == ["job", "status", "seed"]
    assert [row[:3] for row in page.rows[1:]] == [["0", "finished", "0"], ["1", "failed", "1"], ["2", "finished", "2"]]
    assert NASTY in page.text
    assert "3 jobs, 2 of them finished" in page.text
    assert [link for link in page.links if link.endswith(PAGE)] == [
        "0/index.html",
        "1/index.html",
    ]  # of those there are
    assert {"sweep.csv", "comparison/compare.png", "comparison/compare.txt"} <= {*page.links}
