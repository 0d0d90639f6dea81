"""The compiled library of the kernel's C sources, with the types of its functions."""

import ctypes
import functools
from pathlib import Path

from ... import c_library

SOURCE = Path(__file__).with_name("decode.c")
_ADDRESS, _INT, _FLOAT = ctypes.c_void_p, ctypes.c_int, ctypes.c_float
_FUNCTIONS: c_library.Functions = {
    "tt_create": (_ADDRESS, [_ADDRESS, _INT, _FLOAT, _ADDRESS, _INT]),
    "tt_destroy": (None, [_ADDRESS]),
    "tt_encode": (_INT, [_ADDRESS, _ADDRESS, _INT, _INT]),
    "tt_step": (_INT, [_ADDRESS, _ADDRESS, _INT, _ADDRESS]),
    "tt_extend": (
        _INT,
        [_ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT, _FLOAT, _INT, _FLOAT, _ADDRESS, _ADDRESS],
    ),
    "tt_search": (_INT, [_ADDRESS, _ADDRESS, ctypes.c_size_t]),
    "tt_logits": (_INT, [_ADDRESS, _ADDRESS, _INT, _ADDRESS]),
    "tt_seconds": (None, [_ADDRESS, _ADDRESS]),
}
_INTERRUPTIBLE = ("tt_encode", "tt_step", "tt_extend", "tt_search")


@functools.cache
def load_library() -> ctypes.CDLL:
    """Compile and load the kernel; :class:`~...c_library.UnavailableError` if it cannot be compiled.

    Its long calls check for signals (``interruption.h``) and raise the exceptions of Python's signal handlers.
    """
    library = c_library.load(SOURCE, _FUNCTIONS)
    for name in _INTERRUPTIBLE:
        result, arguments = _FUNCTIONS[name]
        setattr(library, name, ctypes.PYFUNCTYPE(result, *arguments)((name, library)))
    return library
