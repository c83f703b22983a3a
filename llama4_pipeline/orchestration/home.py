"""The Dagster home that the command line uses: where runs and events are kept."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from llama4_pipeline.artifacts import locks
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE, artifacts_root
from llama4_pipeline.errors import InputError, one_line

_HOME_VARIABLE = "DAGSTER_HOME"
_SETTINGS_FILE = "dagster.yaml"
_SETTINGS = """\
telemetry:
  enabled: false
concurrency:
  pools:
    default_limit: 1
    granularity: op
python_logs:
  managed_python_loggers: [llama4_pipeline]
  python_log_level: INFO
"""


@contextmanager
def dagster_home() -> Iterator[Path]:
    """Makes sure of a persistent home for the time of a run, and of one place for the artifacts.

    The home is $DAGSTER_HOME; else this directory if it has a dagster.yaml, as the project's root has; else
    .dagster_home in this directory, made with telemetry off.

    Raises:
        InputError: $DAGSTER_HOME is not an absolute path of a directory, or the home cannot be made.
    """
    before = {name: os.environ.get(name) for name in (_HOME_VARIABLE, ARTIFACTS_VARIABLE)}
    os.environ[ARTIFACTS_VARIABLE] = artifacts_root()
    home = _home()
    os.environ[_HOME_VARIABLE] = str(home)
    try:
        yield home
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def open_instance(home: Path) -> dg.DagsterInstance:
    """The instance of a home that `dagster_home` made sure of.

    The first to open a home makes its databases, which Dagster does wrong in two processes at once: one waits here.

    Raises:
        InputError: Its dagster.yaml is wrong, or the storage that it names cannot be used.
    """
    try:
        with locks.exclusive_directory(home):
            return dg.DagsterInstance.get()
    except Exception as error:  # each storage has its own
        raise InputError(
            f"the Dagster home {home} cannot be opened ({_told(error)}): put its {_SETTINGS_FILE} right, or set "
            "DAGSTER_HOME to another directory"
        ) from error


def _told(error: Exception) -> str:
    """What is wrong; Dagster's message on a configuration describes all that could stand there first."""
    if isinstance(error, dg.DagsterInvalidConfigError):
        return one_line(Exception("; ".join(each.message for each in error.errors)))
    return one_line(error)


def _home() -> Path:
    named = os.environ.get(_HOME_VARIABLE)
    if named:
        if not Path(named).is_absolute() or not Path(named).is_dir():
            raise InputError(
                f"DAGSTER_HOME is {named}: let it be the absolute path of a directory, or unset it"
            )
        return Path(named)
    here = Path.cwd()
    if (here / _SETTINGS_FILE).is_file():
        return here
    home = here / ".dagster_home"
    try:
        home.mkdir(exist_ok=True)
        if not (home / _SETTINGS_FILE).exists():
            (home / _SETTINGS_FILE).write_text(_SETTINGS)
    except OSError as error:
        raise InputError(
            f"{home} cannot be written ({error.strerror}): set DAGSTER_HOME to a directory that can"
        ) from error
    return home
