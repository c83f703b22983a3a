"""An S3 server of its own for a test: moto in server mode, on loopback."""

import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from llama4_pipeline_tests.ports import free_port

_STARTS_SECONDS = 60
BUCKET = "artifacts"


@contextmanager
def s3_server() -> Iterator[str]:
    """Starts the server, points this process and its children at it, and makes a bucket.

    Yields:
        The bucket's URL.
    """
    endpoint = f"http://127.0.0.1:{free_port()}"
    settings = {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    before = {name: os.environ.get(name) for name in settings}
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", endpoint.rpartition(":")[2]]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.environ |= settings
    _forget_other_servers()
    try:
        _wait_for(endpoint)
        _make_bucket()
        yield f"s3://{BUCKET}"
    finally:
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value
        _forget_other_servers()
        server.kill()
        server.wait()


def _wait_for(endpoint: str) -> None:
    deadline = time.monotonic() + _STARTS_SECONDS
    while time.monotonic() < deadline:
        try:
            urllib.request.urlopen(f"{endpoint}/moto-api/", timeout=5).close()
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.2)
        else:
            return
    raise TimeoutError(f"no S3 server at {endpoint}")


def _forget_other_servers() -> None:
    """s3fs keeps its connections by what it was given, which the address in the environment is no part of."""
    from s3fs import S3FileSystem

    S3FileSystem.clear_instance_cache()


def _make_bucket() -> None:
    from fsspec.core import url_to_fs

    files, name = url_to_fs(f"s3://{BUCKET}")
    files.mkdir(name)
