"""The exception for mistakes that a user can correct."""

import re
import traceback
from pathlib import Path
from typing import Self


class UserError(ValueError):
    """A wrong option, file or data set. The command line prints its message as one sentence, without a traceback.

    Words of more than 400 characters, which no sensible file or option contains, are shortened.
    """

    def __init__(self, message: str) -> None:
        super().__init__(re.sub(r"\S{400,}", lambda found: f"{found[0][:80]}…", message))

    @classmethod
    def of_own_code(cls, message: str, cause: BaseException) -> Self:
        """Return an error about the user's own code, with the part of the traceback that lies in it as a note."""
        error, inner = cls(message), cause.__traceback__
        while inner is not None and Path(inner.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent):
            inner = inner.tb_next
        if inner is not None:
            error.add_note("".join(traceback.format_exception(type(cause), cause, inner)).rstrip())
        return error

    @property
    def told(self) -> str:
        """The message, followed by the notes."""
        return "\n".join([str(self), *getattr(self, "__notes__", [])])


def in_one_line(error: BaseException) -> str:
    """Return an exception's type and message in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()).removesuffix(":")
