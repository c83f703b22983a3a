"""A PostgreSQL server of its own for a test, from the binaries of Debian's package `postgresql`."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llama4_pipeline_tests.ports import free_port

_USER = "postgres"


@contextmanager
def postgres_server() -> Iterator[str]:
    """Makes a cluster of databases in a directory of its own and serves it on loopback.

    Yields:
        The URL of an empty database, as `$DAGSTER_PG_URL` wants it.
    """
    initdb, serve = _binary("initdb"), _binary("pg_ctl")
    port = free_port()
    place = Path(tempfile.mkdtemp(prefix="postgres-"))
    data = place / "data"
    try:
        if os.geteuid() == 0:  # the server refuses to be root
            shutil.chown(place, _USER)
        _run(initdb, "-D", str(data), "-U", _USER, "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={place} -c fsync=off"
        _run(serve, "-D", str(data), "-w", "-l", str(place / "log"), "-o", options, "start")
        try:
            yield f"postgresql+psycopg2://{_USER}@127.0.0.1:{port}/postgres"
        finally:
            _run(serve, "-D", str(data), "-m", "immediate", "stop")
    finally:
        shutil.rmtree(place)


def _run(*command: str) -> None:
    as_user = ("runuser", "-u", _USER, "--") if os.geteuid() == 0 else ()
    done = subprocess.run(
        [*as_user, *command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd="/"
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}")


def _binary(name: str) -> str:
    found = sorted(Path("/usr/lib/postgresql").glob(f"*/bin/{name}"))
    path = str(found[-1]) if found else shutil.which(name)
    if path is None:
        raise FileNotFoundError(f"{name} not found: apt-get install postgresql")
    return path
