"""Object stores to try the shared store on: in this process by default, an S3 server with `-m cluster`."""

import uuid
from collections.abc import Iterator

import pytest

from llama4_pipeline_tests.cluster.s3 import s3_server


@pytest.fixture(scope="session")
def bucket() -> Iterator[str]:
    """The URL of a bucket of a real S3 server."""
    with s3_server() as url:
        yield url


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.cluster)])
def url(request: pytest.FixtureRequest) -> str:
    """An empty place in an object store."""
    root = "memory://" if request.param == "memory" else f"{request.getfixturevalue('bucket')}/"
    return f"{root}{uuid.uuid4().hex}"
