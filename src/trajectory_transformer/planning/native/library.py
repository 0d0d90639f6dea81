"""The C sources beside this file as a library: compiled for this processor when it is first needed, then kept."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch  # noqa: F401 - brings the OpenMP runtime that the library uses, so that both share one pool of threads

log = logging.getLogger(__name__)
SOURCE = Path(__file__).with_name("decode.c")
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC")
_ADDRESS, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_FUNCTIONS: dict[str, tuple[type | None, list[type]]] = {
    "tt_create": (_ADDRESS, [_ADDRESS, _FLOAT, _ADDRESS]),
    "tt_destroy": (None, [_ADDRESS]),
    "tt_encode": (_INT, [_ADDRESS, _ADDRESS, _INT, _INT]),
    "tt_step": (_INT, [_ADDRESS, _ADDRESS, _INT, _ADDRESS]),
    "tt_extend": (
        _INT,
        [_ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT, _FLOAT, _INT, _FLOAT, _ADDRESS],
    ),
    "tt_search": (_INT, [_ADDRESS, _ADDRESS]),
    "tt_logits": (None, [_ADDRESS, _ADDRESS, _INT, _ADDRESS]),
    "tt_seconds": (None, [_ADDRESS, _ADDRESS]),
}


class UnavailableError(RuntimeError):
    """The library cannot be had on this machine; the message says why."""


@functools.cache
def load_library() -> ctypes.CDLL:
    """The compiled library. It is compiled once for each source, compiler and processor (about two seconds).

    Raises:
        UnavailableError: no C compiler, no OpenMP, or nowhere to put the library.
    """
    compiler = find_compiler()
    if compiler is None:
        chosen = os.environ.get("CC")
        raise UnavailableError("there is no C compiler" + (f": CC={chosen}" if chosen else " (cc, gcc or clang)"))
    folder = cache_folder()
    path = folder / f"decode-{_key(compiler)}.so"
    try:
        if not path.exists():
            log.info("compiling the planner's kernel for this processor with %s", compiler)
            _compile(compiler, path)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in _FUNCTIONS.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        raise UnavailableError(f"{path} cannot be loaded: {error}") from error
    return library


def find_compiler() -> str | None:
    """The C compiler: ``CC``, or the first of the usual names."""
    chosen = os.environ.get("CC")
    return shutil.which(chosen) if chosen else next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)


def cache_folder() -> Path:
    """Where compiled libraries are kept: ``$XDG_CACHE_HOME/trajectory_transformer`` or the like under ``~/.cache``.

    Raises:
        UnavailableError: this user has neither.
    """
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "trajectory_transformer"
    except RuntimeError as error:
        raise UnavailableError(f"there is nowhere to keep the library: {error}") from error


def _key(compiler: str) -> str:
    """Changes with whatever changes the machine code."""
    version = _run([compiler, "--version"]).stdout
    sources = [path.read_text() for path in sorted(SOURCE.parent.glob("*.[ch]"))]
    return hashlib.sha256("\0".join([*sources, *FLAGS, compiler, version, _processor()]).encode()).hexdigest()[:16]


def _processor() -> str:
    """What ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be run: {error.strerror or error}") from error


def _compile(compiler: str, path: Path) -> None:
    """Compile beside ``path``, then move: a process that looks meanwhile sees all of it or nothing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".compiling-") as folder:
        unit, library = f"{folder}/decode.o", f"{folder}/decode.so"
        # Linked without an OpenMP runtime: torch's own, already loaded, has the symbols.
        for command in (
            [compiler, *FLAGS, "-c", str(SOURCE), "-o", unit],
            [compiler, "-shared", unit, "-lm", "-o", library],
        ):
            done = _run(command)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise UnavailableError(f"{compiler} cannot compile {SOURCE.name}: {reason}")
        os.replace(library, path)
