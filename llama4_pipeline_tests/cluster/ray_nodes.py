"""A Ray cluster of two nodes on this machine: two raylets, each with its own memory to give and its own copies."""

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from llama4_pipeline.artifacts.location import COPIES_VARIABLE
from llama4_pipeline_tests.ports import free_port

_STARTS_SECONDS = 120
NODES = ("first", "second")
# A node has room for one step of the model that the tests run, so that two steps at a time go to two nodes.
_NODE_BYTES = 2_500_000_000
_OBJECT_BYTES = 100_000_000


@contextmanager
def ray_cluster(directory: Path) -> Iterator[str]:
    """Starts two nodes as `ray start` does on two machines.

    Args:
        directory: Each node keeps its copies of artifacts in the directory below it that bears its name.

    Yields:
        The address, as `$RAY_ADDRESS` wants it.
    """
    head, dashboard = free_port(), free_port()
    address = f"http://127.0.0.1:{dashboard}"
    with ExitStack() as nodes:
        sessions = nodes.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        first = ("--head", "--port", str(head), "--dashboard-port", str(dashboard), "--temp-dir", sessions)
        nodes.enter_context(_node(directory, NODES[0], *first))
        _wait_for(address, 1)
        nodes.enter_context(_node(directory, NODES[1], "--address", f"127.0.0.1:{head}"))
        _wait_for(address, 2)
        yield address


@contextmanager
def _node(directory: Path, name: str, *arguments: str) -> Iterator[None]:
    ports = (
        "--dashboard-agent-listen-port",
        str(free_port()),
        "--dashboard-agent-grpc-port",
        str(free_port()),
    )
    sizes = ("--num-cpus", "1", "--memory", str(_NODE_BYTES), "--object-store-memory", str(_OBJECT_BYTES))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--disable-usage-stats"]
    programs = (
        f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"  # as in an activated environment
    )
    environment = os.environ | {COPIES_VARIABLE: str(directory / name), "PATH": programs}
    with (directory / f"{name}.log").open("w") as log:
        node = subprocess.Popen(
            [*command, *arguments, *ports, *sizes], env=environment, stdout=log, stderr=subprocess.STDOUT
        )
        try:
            yield
        finally:
            node.terminate()
            node.wait()


def _wait_for(address: str, nodes: int) -> None:
    from ray.util.state import list_nodes

    deadline = time.monotonic() + _STARTS_SECONDS
    while time.monotonic() < deadline:
        try:
            alive = [node for node in list_nodes(address=address) if node.state == "ALIVE"]
        except Exception:  # not up yet; what it raises differs from moment to moment
            alive = []
        if len(alive) == nodes:
            return
        time.sleep(1)
    raise TimeoutError(f"no {nodes} Ray nodes at {address}")
