"""Mutated files: each is refused in one sentence or read, within bounded time and memory, and none runs code.

``HOSTILE=1000 HOSTILE_SEED=1 pytest -m slow tests/test_hostile_files.py`` tries others.
"""

import io
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
import zipfile
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import gymnasium as gym
import h5py
import numpy as np
import pytest
import torch
import yaml

from trajectory_transformer.app.experiment import load_agent
from trajectory_transformer.app.main import read_config
from trajectory_transformer.checkpoint_file import read_checkpoint, write_checkpoint
from trajectory_transformer.configuration import DataConfig, TrainConfig
from trajectory_transformer.data.sources import load_offline_data
from trajectory_transformer.errors import UserError

from .minari_sets import random_episode, write_dataset

GOLDEN = Path(__file__).parent / "golden" / "version_0_1"
FILES, SEED = int(os.environ.get("HOSTILE", "200")), int(os.environ.get("HOSTILE_SEED", "0"))
SECONDS, BYTES = 30, 2 * 2**30  # for one file, beyond what is there before
CANARY = "hostile_canary"  # a module that must not be imported, and the name of a file that must not be made
BAD: list[Any] = [
    None, True, -1, 0, 1.5, 10**6, 10**9, 2**63, 10**40, float("nan"), float("inf"), 1e308, "", "x", "a\nb", "9" * 5000,
    f"{CANARY}.Thing", f"{CANARY}:Thing-v0", "os.system", "../../x", "/dev/zero", [], [None], [[[]]], {}, {"a": 1},
    {"_target_": "os.system", "command": f"touch {CANARY}"}, {"_target_": f"{CANARY}.Thing"}, [10**9] * 3, ["x"] * 100,
]  # fmt: skip
EVENTS = (
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "subprocess.Popen",
    "os.fork",
    "pty.spawn",
    "socket.connect",
)


class Payload:
    """Pickled as a call of ``os.system``."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, (f"touch {CANARY}",)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each place (container, key) in nested dicts and lists."""
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from places(entry)


def mutated(value: Any, draw: random.Random) -> Any:
    """``value`` with some entries replaced, removed or renamed."""
    for _ in range(draw.choice([1, 1, 1, 3])):
        container, key = draw.choice(list(places(value)))
        choice = draw.random()
        if choice < 0.8:
            container[key] = draw.choice(BAD)
        elif choice < 0.9 or isinstance(container, list):
            del container[key]
        else:
            container[f"{key}.1000000000"] = container.pop(key)
    return value


def flipped(data: bytes, draw: random.Random) -> bytes:
    """Some bits flipped, a part repeated or removed, or the end cut off."""
    found, place = bytearray(data), draw.randrange(len(data))
    if (choice := draw.random()) < 0.5:
        for _ in range(draw.choice([1, 8, 64])):
            found[draw.randrange(len(found))] ^= 1 << draw.randrange(8)
    elif choice < 0.8:
        del found[place:]
    elif choice < 0.9:
        del found[place : place + draw.randrange(1, 1000)]
    else:
        found[place:place] = found[place : place + draw.randrange(1, 1000)]
    return bytes(found)


def checkpoint(folder: Path, draw: random.Random) -> Callable[[], object]:
    path, source = folder / "a.ckpt", GOLDEN / f"{draw.choice(['transformer', 'iql', 'ensemble'])}.ckpt"
    choice = draw.random()
    if choice < 0.2:
        path.write_bytes(flipped(source.read_bytes(), draw))
        return lambda: load_agent(path, "cpu", {})
    contents = plain(read_checkpoint(source))
    weights = contents["state_dict"]
    name = draw.choice(sorted(weights))
    if choice < 0.3:
        weights[name] = draw.choice(
            [torch.full_like(weights[name], torch.nan), torch.zeros(1).expand(10**9), Payload()]
        )
    elif choice < 0.4:
        weights[draw.choice(["model.blocks.1000000000.ln.weight", name * 2])] = weights.pop(name)
    elif choice < 0.5:
        weights[name] = draw.choice([weights[name].flatten()[:1], weights[name].to(torch.int8), torch.zeros(0), None])
    else:
        mutated(contents["trajectory_transformer"], draw)
    write_checkpoint(path, contents)  # with the right digest: whoever makes a file can compute it
    return lambda: load_agent(path, "cpu", {})


def plain(value: Any) -> Any:
    """Tuples as lists, so that they can be mutated."""
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def npz(folder: Path, draw: random.Random) -> Callable[[], object]:
    path = folder / "episodes" / "a.npz"
    path.parent.mkdir()
    arrays: dict[str, Any] = {"observations": np.zeros((4, 2)), "actions": np.zeros((3, 1)), "rewards": np.zeros(3)}
    arrays["terminated"] = np.array(False)
    choice, name = draw.random(), draw.choice(sorted(arrays))
    bad: list[Any] = [
        np.array(Payload(), dtype=object), np.array("x"), np.full(arrays[name].shape, np.nan), np.zeros((0, 0)),
        np.zeros((3, 2, 1)), np.full((4, 2), 1j), np.array(["2020-01-01"], "M8[D]"), np.full((4, 2), 1e300),
        np.zeros(3, [("a", "f8")]), np.zeros((2**13, 2**13), np.uint8), np.array(2**64 - 1, np.uint64),
    ]  # fmt: skip
    if choice > 0.4:
        arrays[draw.choice([name, f"../{name}", "extra"])] = draw.choice(bad)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, allow_pickle=True, **arrays)
    data = buffer.getvalue()
    if choice < 0.2:
        data = flipped(data, draw)
    elif choice < 0.4:  # a header that declares what is not there
        header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({draw.choice([10**6, 10**12, -1])}, 10**3), }}"
        header = header.replace("10**3", draw.choice(["1000", "2", "x"])).ljust(117) + "\n"
        with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(buffer, "a") as archive:
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode())
        data = buffer.getvalue()
    path.write_bytes(data)
    source = {"_target_": "trajectory_transformer.data.npz_folder.NpzFolder", "path": str(path.parent)}
    return lambda: load_offline_data(DataConfig(source=source), progress=False)


def minari_set(folder: Path, draw: random.Random) -> Callable[[], object]:
    data = folder / "sets" / "a-v0" / "data"
    with gym.make("Pendulum-v1") as environment:
        write_dataset("a-v0", [random_episode(5, seed, action_dim=1) for seed in range(3)], env=environment)
    choice = draw.random()
    if choice < 0.3:
        (data / "main_data.hdf5").write_bytes(flipped((data / "main_data.hdf5").read_bytes(), draw))
    elif choice < 0.7:
        metadata = json.loads((data / "metadata.json").read_text())
        field = draw.choice(["observation_space", "action_space", "env_spec", None])
        if field is None:
            metadata = mutated(metadata, draw)
        else:
            metadata[field] = json.dumps(mutated(json.loads(metadata[field]), draw))
        (data / "metadata.json").write_text(json.dumps(metadata))
    else:
        with h5py.File(data / "main_data.hdf5", "a") as file:
            group: Any = file[f"episode_{draw.randrange(3)}"]
            name = draw.choice(["observations", "actions", "rewards", "terminations", "truncations"])
            made, kind = np.asarray(group[name]), draw.randrange(6)
            del group[name]
            if kind == 0:
                group.create_dataset(name, (10**11, 3), "f8", chunks=(2**16, 3))
            elif kind == 1:
                group.create_dataset(name, data=np.full(made.shape, np.nan))
            elif kind == 2:
                group[name] = h5py.ExternalLink("/etc/passwd", "/")
            elif kind == 3:
                group.create_dataset(name, (5, 3), "u1", external=[("/etc/passwd", 0, h5py.h5f.UNLIMITED)])
            elif kind == 4:
                group.create_dataset(name, data=[b"text"] * len(made))
            else:
                group.create_group(name)[CANARY] = made
    return lambda: load_offline_data(DataConfig("a-v0", download=False), progress=False)


def config(folder: Path, draw: random.Random) -> Callable[[], object]:
    from dataclasses import asdict

    options, choice = asdict(TrainConfig(data=DataConfig("a-v0"))), draw.random()
    text = yaml.safe_dump(mutated(options, draw) if choice < 0.6 else options)
    if choice > 0.8:
        text = flipped(text.encode(), draw).decode("latin-1")
    elif choice > 0.6:
        line = draw.choice(text.splitlines())
        key = line.partition(":")[0]
        value = draw.choice([
            f"!!python/object/apply:os.system ['touch {CANARY}']", f"!!python/name:{CANARY}.Thing", "&a [*a]", "*a",
            f"${{oc.env:HOME,{CANARY}}}", "${hydra:x}", "{" * 500, "[" * 3000, "!!binary x", "!!timestamp 1",
            "!!bool x", "!!int ''", "? : ?",
            "\x00",
        ])  # fmt: skip
        text = text.replace(line, f"{key}: {value}", 1)
    (folder / "config.yaml").write_text(text, encoding="utf-8")
    return lambda: read_config(folder, [])


KINDS: dict[str, Callable[[Path, random.Random], Callable[[], object]]] = {
    "checkpoint": checkpoint,
    "npz": npz,
    "minari": minari_set,
    "config": config,
}


def outcome(index: int, folder: Path) -> str:
    """Make and read a file; "" if it is read or refused in one sentence, else what was wrong."""
    made = KINDS[[*KINDS][index % len(KINDS)]](folder, random.Random(f"{SEED} {index}"))
    forbidden: list[str] = []
    watched.append(forbidden)
    signal.alarm(SECONDS)
    try:
        made()
    except UserError as error:
        told = str(error)
        return told if forbidden or "\n" in told or len(told) > 1_000 else ""
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
        watched.clear()
    return f"{forbidden}" if forbidden else ""


watched: list[list[str]] = []


def audit(event: str, arguments: tuple[Any, ...]) -> None:
    if watched and (event in EVENTS or (event == "import" and CANARY in str(arguments[0]))):
        watched[0].append(f"{event} {arguments}")


def read_all(first: int, root: Path, results: Connection) -> None:
    """In a process of its own: one file after the other."""
    os.chdir(root)
    sys.path.insert(0, str(root / "modules"))
    sys.addaudithook(audit)
    torch.set_num_threads(1)
    there = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (there + BYTES, there + BYTES))
    for index in range(first, FILES):
        folder = root / str(index)
        folder.mkdir()
        os.environ["MINARI_DATASETS_PATH"] = str(folder / "sets")
        results.send((index, outcome(index, folder)))
        shutil.rmtree(folder)


@pytest.mark.slow
def test_mutated_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "modules").mkdir()
    (tmp_path / "modules" / f"{CANARY}.py").write_text(f"open({str(tmp_path / CANARY)!r}, 'w')\nclass Thing: ...")
    context, wrong, index = multiprocessing.get_context("fork"), [], 0
    while index < FILES:
        receiver, sender = context.Pipe(duplex=False)
        process = context.Process(target=read_all, args=(index, tmp_path, sender))
        process.start()
        sender.close()
        try:
            while index < FILES:
                index, told = receiver.recv()
                wrong += [f"{index} {[*KINDS][index % len(KINDS)]}: {told[-1500:]}"] if told else []
                index += 1
        except EOFError:
            process.join()
            wrong.append(f"{index} {[*KINDS][index % len(KINDS)]}: ended with {process.exitcode}")
            index += 1
        process.join()
    assert not (tmp_path / CANARY).exists()
    assert wrong == [], f"{len(wrong)} of {FILES}"
