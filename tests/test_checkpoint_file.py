"""A checkpoint is either whole and ours, or refused in one sentence."""

import contextlib
import hashlib
import io
import math
import os
import pickle
import random
import re
import resource
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from trajectory_transformer.checkpoint_file import read_checkpoint, write_checkpoint
from trajectory_transformer.errors import UserError


def contents(scale: float = 1.0) -> dict[str, Any]:
    return {
        "trajectory_transformer": {"format": 1, "environment": {"env_id": "Hopper-v5"}},
        "state_dict": {"model.weight": scale * torch.arange(600.0).reshape(20, 30)},
        "counts": [1, 2, (3, None)],
    }


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "last.ckpt"
    write_checkpoint(path, contents())
    return path


def refusal(path: Path) -> str:
    """The one sentence with which ``path`` is refused."""
    with pytest.raises(UserError) as caught:
        read_checkpoint(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    return message


def test_what_was_written_is_read(checkpoint: Path) -> None:
    restored = read_checkpoint(checkpoint)
    assert torch.equal(restored["state_dict"]["model.weight"], contents()["state_dict"]["model.weight"])
    assert restored["counts"] == [1, 2, (3, None)]
    assert list(checkpoint.parent.iterdir()) == [checkpoint]


def test_plain_torch_load_reads_it(checkpoint: Path) -> None:
    restored = torch.load(checkpoint, weights_only=True)
    assert restored["trajectory_transformer"] == contents()["trajectory_transformer"]
    assert torch.equal(restored["state_dict"]["model.weight"], contents()["state_dict"]["model.weight"])


def test_missing_file_lists_its_neighbours(checkpoint: Path) -> None:
    assert "'" + str(checkpoint) + "'" in refusal(checkpoint.with_name("best.ckpt"))
    assert str(checkpoint) in refusal(checkpoint.parent / "checkpoints" / "last.ckpt")
    assert "no *.ckpt" in refusal(checkpoint.parent.parent / "elsewhere.ckpt")


def test_folder_is_no_checkpoint(checkpoint: Path) -> None:
    assert "directory" in refusal(checkpoint.parent)


def test_empty_file(checkpoint: Path) -> None:
    checkpoint.write_bytes(b"")
    assert "empty" in refusal(checkpoint)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_one_weight_that_is_not_finite(checkpoint: Path, value: float) -> None:
    poisoned = contents()
    poisoned["state_dict"]["model.weight"][3, 7] = value
    write_checkpoint(checkpoint, poisoned)
    assert "its weights 'model.weight' hold NaN or infinity" in refusal(checkpoint)


def test_weights_of_a_foreign_kind(checkpoint: Path) -> None:
    write_checkpoint(checkpoint, contents() | {"state_dict": {"model.weight": torch.eye(3).to_sparse()}})
    assert "tensors of a kind" in refusal(checkpoint)


def test_truncated_anywhere(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    for length in (1, 3, 4, 100, len(whole) // 2, len(whole) - 100, len(whole) - 1):
        checkpoint.write_bytes(whole[:length])
        assert "cut short" in refusal(checkpoint) or length < 4


def test_random_bytes(checkpoint: Path) -> None:
    for seed in range(5):
        checkpoint.write_bytes(random.Random(seed).randbytes(5_000))
        assert "not a checkpoint of this project" in refusal(checkpoint)


def test_one_flipped_bit_anywhere(checkpoint: Path) -> None:
    whole = checkpoint.read_bytes()
    bits = len(whole) * 8
    everywhere = range(0, bits, 499)
    ends = (*range(0, 240), *range(bits - 940, bits))  # the first header, the end record, the comment and the digest
    for bit in (*everywhere, *ends):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        checkpoint.write_bytes(damaged)
        assert "damaged" in refusal(checkpoint)


def test_appended_bytes(checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes() + b"\0")
    assert "damaged" in refusal(checkpoint)


class Payload:
    """Makes a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.folder),)


def test_pickle_payload_never_executes(checkpoint: Path, tmp_path: Path) -> None:
    witness = tmp_path / "witness"
    plain = pickle.dumps(Payload(witness))
    buffer = io.BytesIO()
    torch.save(contents() | {"extra": Payload(witness)}, buffer)
    archive = buffer.getvalue()
    body = archive[:-2] + (94).to_bytes(2, "little") + b"trajectory-transformer sha256:"
    signed = body + hashlib.sha256(body).hexdigest().encode()
    for data, reason in [(plain, "not loaded"), (archive, "not loaded"), (signed, "nothing in it was executed")]:
        checkpoint.write_bytes(data)
        assert reason in refusal(checkpoint)
        assert not witness.exists()
    pickle.loads(plain)
    assert witness.exists()  # the payload would have worked


def test_valid_torch_file_of_somebody_else(checkpoint: Path) -> None:
    torch.save({"state_dict": {}}, checkpoint)
    assert "did not write" in refusal(checkpoint)
    write_checkpoint(checkpoint, {"state_dict": {}})
    assert "no 'trajectory_transformer' section" in refusal(checkpoint)
    write_checkpoint(checkpoint, {"trajectory_transformer": {"format": 2}})
    assert "format 2" in refusal(checkpoint)


@contextlib.contextmanager
def small_files_only() -> Iterator[None]:
    """Writes past 8 kB fail, as on a full disk, after some bytes were written.

    Not a fixture: pytest reports a test before its fixtures end, and its own output may be going to a file.
    """
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8_192, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_keeps_the_previous_file(tmp_path: Path) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, contents())
    before = path.read_bytes()
    message = r"last\.ckpt' could not be saved: .*needs 4\d,\d+ bytes; the previous file is kept"
    with pytest.raises(UserError, match=message), small_files_only():
        write_checkpoint(path, contents() | {"large": torch.zeros(10_000)})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(UserError, match=r"bytes$"), small_files_only():
        write_checkpoint(tmp_path / "new.ckpt", {"large": torch.zeros(10_000)})
    assert list(tmp_path.iterdir()) == [path]


def test_full_disk_names_the_free_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match=r"No space left on device; it needs [\d,]+ bytes and [\d,]+ are free"):
        write_checkpoint(tmp_path / "last.ckpt", contents())
    assert list(tmp_path.iterdir()) == []


def test_unwritable_place(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="could not be saved"):
        write_checkpoint(tmp_path / "file" / "last.ckpt", contents())


def test_interrupted_writer_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / "last.ckpt", contents())
    assert list(tmp_path.iterdir()) == []


KILLS = """
import os, random, signal, sys, time
import torch
from trajectory_transformer.checkpoint_file import read_checkpoint, write_checkpoint
from trajectory_transformer.files import remove_partial_files

torch.set_num_threads(1)
path, chance, steps = sys.argv[1], random.Random(0), set()
def written():
    return os.stat(path).st_mtime_ns if os.path.exists(path) else 0

for attempt in range(100):
    before = written()
    child = os.fork()
    if child == 0:
        for step in range(attempt * 1000, (attempt + 1) * 1000):
            write_checkpoint(path, {"trajectory_transformer": {"format": 1}, "step": step, "x": torch.zeros(300_000)})
    while written() == before:
        time.sleep(0.001)
    time.sleep(chance.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    steps.add(read_checkpoint(path)["step"])
remove_partial_files(os.path.dirname(path))
assert len(steps) == 100, steps
assert os.listdir(os.path.dirname(path)) == ["last.ckpt"]
"""


@pytest.mark.slow
def test_a_hundred_kills_while_saving(tmp_path: Path) -> None:
    """The file is valid after each kill, and partial files are removed."""
    result = subprocess.run(
        [sys.executable, "-c", KILLS, str(tmp_path / "last.ckpt")], capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr


def signed(archive: bytes) -> bytes:
    """A torch archive as :func:`write_checkpoint` would end it, whatever it holds."""
    body = archive[:-2] + (94).to_bytes(2, "little") + b"trajectory-transformer sha256:"
    return body + hashlib.sha256(body).hexdigest().encode()


def test_a_compressed_archive_is_not_inflated(checkpoint: Path) -> None:
    buffer, packed = io.BytesIO(), io.BytesIO()
    torch.save(contents() | {"zeros": torch.zeros(1_000_000)}, buffer)
    with zipfile.ZipFile(buffer) as stored, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in stored.infolist():
            archive.writestr(entry.filename, stored.read(entry))
    checkpoint.write_bytes(signed(packed.getvalue()))
    assert re.search(r"is compressed: [\d,]+ bytes would become 4,\d{3},\d{3}", refusal(checkpoint))


def repeated(number: float, size: int) -> torch.Tensor:
    """One stored number as a tensor of any size."""
    return torch.full((1,), number).expand(size)


def nested(twice: int) -> list[Any]:
    """2 ** ``twice`` empty lists, stored as ``twice`` + 1."""
    value: list[Any] = []
    for _ in range(twice):
        value = [value, value]
    return value


def deep(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


class Zeros:
    """Is unpickled as 100 terabytes of zeros."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (10**14,)


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        (Zeros(), "makes a bytearray, of any size, which no network here has; it was not loaded"),
        (repeated(1.0, 10**10), r"holds a tensor of 40,000,000,000 bytes in a file of [\d,]+"),
        (nested(40), "holds values nested too deeply or without end"),
        (deep(150), "holds values nested too deeply or without end"),
    ],
)
def test_what_is_larger_than_its_file_is_refused(checkpoint: Path, bomb: Any, message: str) -> None:
    buffer = io.BytesIO()
    torch.save(contents() | {"bomb": bomb}, buffer)
    checkpoint.write_bytes(signed(buffer.getvalue()))
    assert re.search(message, refusal(checkpoint))
