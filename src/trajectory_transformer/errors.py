"""The one exception for mistakes a user can mend."""

import traceback
from typing import Self


class UserError(ValueError):
    """A wrong option, file or data set. The command line prints its message as one sentence, without a traceback."""

    @classmethod
    def of_own_code(cls, message: str, cause: BaseException) -> Self:
        """A mistake in code of the user's own, whose traceback, without the calling frame, is a note to be printed."""
        error, inner = cls(message), cause.__traceback__
        lines = traceback.format_exception(type(cause), cause, inner.tb_next if inner else None)
        error.add_note("".join(lines).rstrip())
        return error

    @property
    def told(self) -> str:
        """The message, followed by the notes."""
        return "\n".join([str(self), *getattr(self, "__notes__", [])])
