"""Shared libraries of this package's C sources, compiled for this processor on first use, and their common headers."""

import ctypes
import functools
import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

import torch  # also brings the OpenMP runtime that the library uses, so that both share one pool of threads

from ..files import staging_folder

log = logging.getLogger(__name__)
FLAGS = ("-std=gnu11", "-O3", "-march=native", "-fopenmp", "-fPIC")
OPERATORS = __name__.partition(".")[0]
"""Namespace of this package's operators in ``torch.ops``: the package's name, so that it follows a renaming."""

_DIGEST_SIZE = hashlib.sha256().digest_size

Functions = Mapping[str, tuple[type | None, list[type]]]
"""The name of each function -> the types of its result and its arguments."""


# A forked process lacks its parent's OpenMP threads, and would wait for them forever, in torch and in our C.
os.register_at_fork(after_in_child=functools.partial(torch.set_num_threads, 1))


class UnavailableError(RuntimeError):
    """The library is not available on this machine; the message says why."""


def load(source: Path, functions: Functions) -> ctypes.CDLL:
    """Load the library of a source file; it is compiled once for each source, compiler and processor (two seconds).

    Raises:
        UnavailableError: there is no C compiler, no OpenMP, or no writable folder for the library.
    """
    compiler = find_compiler()
    if compiler is None:
        chosen = os.environ.get("CC")
        raise UnavailableError("there is no C compiler" + (f": CC={chosen}" if chosen else " (cc, gcc or clang)"))
    folder = cache_folder()
    path = folder / f"{source.stem}-{_key(source, compiler)}.so"
    try:
        if not _is_whole(path):
            log.info("compiling %s for this processor with %s", source.name, shlex.join(compiler))
            _compile(source, compiler, path)
    except OSError as error:
        raise UnavailableError(f"{folder} cannot be written: {error.strerror or error}") from error
    try:
        library = ctypes.CDLL(str(path))
        for name, (result, arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        if "__kmpc" in str(error):  # two OpenMP runtimes in one process would number threads differently
            message = f"{shlex.join(compiler)} needs LLVM's OpenMP, but torch uses GNU's: set CC=gcc"
            raise UnavailableError(message) from error
        raise UnavailableError(f"{path} cannot be loaded: {error}") from error
    return library


def find_compiler() -> list[str] | None:
    """Command of the C compiler: ``CC`` with its options and wrappers, or else cc, gcc or clang; None if missing."""
    try:
        chosen = shlex.split(os.environ.get("CC", ""))
    except ValueError:  # an unclosed quotation
        return None
    for name, *options in [chosen] if chosen else [["cc"], ["gcc"], ["clang"]]:
        if program := shutil.which(name):
            return [program, *options]
    return None


def cache_folder() -> Path:
    """The folder of compiled libraries in ``$XDG_CACHE_HOME`` or ``~/.cache``; UnavailableError if there is neither."""
    root = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(root) if root else Path.home() / ".cache") / "trajectory_transformer"
    except RuntimeError as error:
        raise UnavailableError(f"there is no folder for the library ({error}); set XDG_CACHE_HOME") from error


def _is_whole(path: Path) -> bool:
    """True if a library exists and is intact: its last bytes are the digest of all others."""
    if not path.exists():
        return False
    contents = path.read_bytes()
    return hashlib.sha256(contents[:-_DIGEST_SIZE]).digest() == contents[-_DIGEST_SIZE:]


def _key(source: Path, compiler: list[str]) -> str:
    """Hash of everything that affects the machine code; the compiler's version is taken from its file, to save 8 ms."""
    programs = [os.path.realpath(found) for word in compiler if (found := shutil.which(word))]
    files = [f"{program} {os.stat(program).st_size} {os.stat(program).st_mtime_ns}" for program in programs]
    folders = source.parent, Path(__file__).parent
    sources = [path.read_text(encoding="utf-8") for folder in folders for path in sorted(folder.glob("*.[ch]"))]
    return hashlib.sha256("\0".join([*sources, *FLAGS, *compiler, *files, _processor()]).encode()).hexdigest()[:16]


def _processor() -> str:
    """The processor's description, which ``-march=native`` depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    wanted = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(wanted)}))


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UnavailableError(f"{command[0]} cannot be run: {error.strerror or error}") from error


def _compile(source: Path, compiler: list[str], path: Path) -> None:
    """Compile in a folder beside ``path``, then move, so that other processes never see an incomplete library."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with staging_folder(path.parent, ".compiling-") as folder:
        unit, library = f"{folder}/unit.o", f"{folder}/unit.so"
        # Linked without an OpenMP runtime: torch's own, already loaded, has the symbols.
        for command in (
            [*compiler, *FLAGS, f"-I{Path(__file__).parent}", "-c", str(source), "-o", unit],
            [*compiler, "-shared", unit, "-lm", "-o", library],
        ):
            done = _run(command)
            if done.returncode != 0:
                reason = (done.stderr.strip().splitlines() or ["no message"])[0]
                raise UnavailableError(f"{shlex.join(compiler)} cannot compile {source.name}: {reason}")
        with open(library, "r+b") as file:
            digest = hashlib.sha256(file.read()).digest()
            file.write(digest)  # after the end of the library, which loaders ignore
        os.replace(library, path)
