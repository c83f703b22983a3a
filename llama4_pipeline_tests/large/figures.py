"""What a command of `make large` took, or why it did not run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Figures:
    """What a command took.

    Attributes:
        parameters: of the model.
        input_bytes: of the checkpoint's tensors.
        output_bytes: of all files written, or of the graph that was validated.
        seconds: wall time of the whole command.
        cpu_seconds: of all its threads.
        peak_bytes: largest resident set (ru_maxrss).
        read_bytes: that it took from the system, from the disk or its cache; mapped files are not in it.
        written_bytes: that it gave to the system.
        load: runnable processes per core when it started, its own not among them.
        date: when that was, YYYY-MM-DD.
        machine: on which, in words.
    """

    parameters: int
    input_bytes: int
    output_bytes: int
    seconds: float
    cpu_seconds: float
    peak_bytes: int
    read_bytes: int
    written_bytes: int
    load: float
    date: str
    machine: str


@dataclass(frozen=True)
class LeftOut:
    """A command that the disk has no room for.

    Attributes:
        parameters: of the model.
        needed_bytes: of disk.
        free_bytes: that there were.
        date: when that was, YYYY-MM-DD.
        machine: on which, in words.
    """

    parameters: int
    needed_bytes: int
    free_bytes: int
    date: str
    machine: str
