"""The two ways a command can fail on purpose, anything else is a bug; and how an error of others is told in them."""


class InputError(Exception):
    """Bad input. The message is one line that names the thing and the remedy; the command line exits 2."""


class CheckFailed(Exception):  # noqa: N818  a finding, not an error
    """A check ran and its result is out of bounds. The message says which figure; the command line exits 1."""


def one_line(error: BaseException) -> str:
    """The message of an error of another library as one short line."""
    return " ".join(str(error).split())[:300] or type(error).__name__
