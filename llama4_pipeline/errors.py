"""The two ways a command can fail on purpose; anything else is a bug."""


class InputError(Exception):
    """Bad input. The message is one line that names the thing and the remedy; the command line exits 2."""


class CheckFailed(Exception):  # noqa: N818  a finding, not an error
    """A check ran and its result is out of bounds. The message says which figure; the command line exits 1."""
