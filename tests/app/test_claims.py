"""Claims of run folders: the process that keeps the record, and the owner of a folder."""

from pathlib import Path

import pytest

from trajectory_transformer.app.jobs import RunRecord, claim, why_taken
from trajectory_transformer.errors import UserError
from trajectory_transformer.files import is_first_process, write_whole

RANKS = ("RANK", "SLURM_PROCID", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK")


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"NODE_RANK": "1", "LOCAL_RANK": "0"}, False),
        ({"GROUP_RANK": "1"}, False),
        ({"SLURM_PROCID": "2"}, False),
        ({"RANK": "0", "LOCAL_RANK": "0"}, True),
        ({"RANK": "2", "LOCAL_RANK": "0"}, False),
    ],
)
def test_one_process_of_all_is_the_first(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], first: bool
) -> None:
    for name in RANKS:
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is first


class TestEvaluation:
    def test_one_that_failed_may_be_replaced(self, tmp_path: Path) -> None:
        (tmp_path / "config.yaml").write_text("checkpoint: a.ckpt\n")
        RunRecord("failed").write(tmp_path)
        assert why_taken(tmp_path, evaluation=True) is None
        assert claim(tmp_path, "checkpoint: b.ckpt\n", go_on=False, evaluation=True) == "start"
        assert why_taken(tmp_path, evaluation=False) is not None

    @pytest.mark.parametrize(
        ("config", "status"), [("checkpoint: a", "finished"), ("checkpoint: a", "running"), ("data: 1", "failed")]
    )
    def test_no_other_run_may(self, tmp_path: Path, config: str, status: str) -> None:
        (tmp_path / "config.yaml").write_text(config)
        RunRecord(status).write(tmp_path)
        with pytest.raises(UserError, match=r"hydra\.run\.dir=DIR") as caught:
            claim(tmp_path, "checkpoint: b", go_on=False, evaluation=True)
        assert "resume=" not in str(caught.value)


def test_a_file_that_cannot_be_replaced_leaves_nothing_behind(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="folder"):
        write_whole(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
