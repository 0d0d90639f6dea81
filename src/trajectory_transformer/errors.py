"""The one exception for mistakes a user can mend."""


class UserError(ValueError):
    """A wrong option, file or data set. The command line prints its message as one sentence, without a traceback."""
