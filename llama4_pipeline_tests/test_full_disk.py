"""Which errors say that a disk is full."""

import errno

import pytest

from llama4_pipeline.full_disk import is_out_of_space


@pytest.mark.parametrize(
    ("error", "full"),
    [
        (OSError(errno.ENOSPC, "x"), True),
        (OSError(errno.EDQUOT, "x"), True),
        (RuntimeError("I/O error: No space left on device (os error 28)"), True),
        (OSError("16384 requested and 0 written"), True),
        (PermissionError(errno.EACCES, "Permission denied"), False),
    ],
)
def test_a_full_disk_is_known_in_any_wrapping(error: Exception, full: bool) -> None:
    assert is_out_of_space(error) == full
    wrapped = ValueError("a stage failed")
    wrapped.__cause__ = error
    assert is_out_of_space(wrapped) == full


def test_errors_that_came_from_each_other_have_an_end() -> None:
    """As Dagster raises what a step raised: anew, within the error that it wrapped it in."""
    error, wrapping = PermissionError(errno.EACCES, "Permission denied"), ValueError("a step failed")
    error.__context__, wrapping.__cause__ = wrapping, error
    assert not is_out_of_space(error)
