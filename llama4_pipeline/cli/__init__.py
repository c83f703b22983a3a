"""The second door: every stage on one checkpoint, without Dagster.

Results go to standard output, logs and progress to standard error. Exit status: 0 done, 1 a check failed,
2 usage or input error (one line says which), 130 interrupted; a traceback is a bug of ours.
"""

import errno
import logging
import os
import signal
import sys
import tempfile
import warnings
from collections.abc import Sequence
from threading import Timer
from types import FrameType

import click

from llama4_pipeline.cli import gguf, graph, measure, pages, pipeline, shards
from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.full_disk import is_out_of_space
from llama4_pipeline.runtime.ort_version import require_onnxruntime

PROGRAM = "llama4-pipeline"
_IMPORT_MACHINERY = "<frozen importlib._bootstrap>"
_UNTIL_IMPORTED_SECONDS = 0.05
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_UNUSABLE_PATH = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENAMETOOLONG)


@click.group(
    commands=[
        *pipeline.COMMANDS,
        *pages.COMMANDS,
        *graph.COMMANDS,
        *gguf.COMMANDS,
        *shards.COMMANDS,
        *measure.COMMANDS,
    ],
    no_args_is_help=False,
    context_settings={"max_content_width": 110},
)
@click.version_option(package_name=PROGRAM)
def commands() -> None:
    """Llama 4 from PyTorch to production ONNX."""
    require_onnxruntime()


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        arguments: the words after the program's name; those of this process by default.

    Returns:
        The exit status.
    """
    _log_to_standard_error()
    heeded = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, _end_on_signal) for number in heeded}
    try:
        commands.main(arguments, prog_name=PROGRAM, standalone_mode=False)
    except click.UsageError as error:
        asked = error.ctx.command_path if error.ctx else PROGRAM
        return _fail(2, f"{error.format_message()} ({asked} --help)")
    except click.ClickException as error:
        return _fail(2, error.format_message())
    except InputError as error:
        return _fail(2, str(error))
    except CheckFailed as error:
        return _fail(1, str(error))
    except MemoryError as error:
        return _fail(2, f"no memory ({error}): ask for fewer rows or tokens")
    except OSError as error:
        if is_out_of_space(error):
            _drop_output()
            full = f"standard output or temporary files ({tempfile.gettempdir()})"
            return _fail(2, f"the disk of {full} is full: make room there, or name another")
        if error.errno not in _UNUSABLE_PATH or error.filename is None:
            raise
        return _fail(2, f"{error.filename} cannot be used ({error.strerror}): name another path")
    except (click.Abort, KeyboardInterrupt):
        return _fail(130, "interrupted")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _fail(status: int, message: str) -> int:
    click.echo(f"{PROGRAM}: {' '.join(message.split())}", err=True)
    return status


def _drop_output() -> None:
    """Drops what standard output still cannot take, or the interpreter would fail on it at its end."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _log_to_standard_error() -> None:
    logging.basicConfig(
        stream=sys.stderr, level=logging.WARNING, format="%(asctime)s %(message)s", datefmt="%H:%M:%S"
    )
    logging.getLogger("llama4_pipeline").setLevel(logging.INFO)
    # Warns of every operator of torchvision, which this package does not need.
    logging.getLogger("torch.onnx._internal.exporter._registration").setLevel(logging.ERROR)
    if not sys.warnoptions:
        warnings.simplefilter("ignore", FutureWarning)  # torch about its own use of torch


def _end_on_signal(number: int, frame: FrameType | None) -> None:
    """Ends through KeyboardInterrupt or SystemExit, so that scratch directories are removed on the way out.

    Not in the midst of an import, where modules of others swallow it or turn it into an error of theirs: behind it.
    """
    if not _imports(frame):
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        sys.exit(128 + number)
    again = Timer(_UNTIL_IMPORTED_SECONDS, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _imports(frame: FrameType | None) -> bool:
    while frame is not None and frame.f_code.co_filename != _IMPORT_MACHINERY:
        frame = frame.f_back
    return frame is not None
