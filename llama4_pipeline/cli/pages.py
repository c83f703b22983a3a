"""`pages`: serves the reports, so that a browser opens them from the asset's page."""

from html import escape
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import click

from llama4_pipeline.artifacts.location import open_store
from llama4_pipeline.cli.parameters import Text, json_option
from llama4_pipeline.cli.result import show
from llama4_pipeline.errors import InputError

if TYPE_CHECKING:
    from llama4_pipeline.artifacts.store import Store

_LOOPBACK = "127.0.0.1"


@click.command()
@click.option(
    "--port", type=click.IntRange(0, 65535), default=3001, show_default=True, help="0 takes a free one."
)
@click.option(
    "--host",
    type=Text(),
    default=_LOOPBACK,
    show_default=True,
    help="Another address opens it to other machines.",
)
@json_option
def pages(port: int, host: str, as_json: bool) -> None:
    """Serve the report of every model at http://HOST:PORT/MODEL, until interrupted."""
    try:
        server = ThreadingHTTPServer((host, port), _Reports)
    except OSError as error:
        raise InputError(f"{host}:{port}: {error.strerror}; choose another --port or --host") from error
    with server:
        address = f"http://{host}:{server.server_port}/"
        show({"address": address}, f"reports at {address}", as_json)
        server.serve_forever()


class _Reports(BaseHTTPRequestHandler):
    """Answers with the latest report of the model that the path names, and with nothing else of the store."""

    def do_GET(self) -> None:
        name = urlsplit(self.path).path.strip("/")
        try:
            page = _page(name) if name else _index()
        except (InputError, OSError) as error:
            reason = f"<!doctype html><title>Cannot be read</title>{escape(str(error))}"
            self._answer(HTTPStatus.SERVICE_UNAVAILABLE, reason.encode())
            return
        if page is not None:
            self._answer(HTTPStatus.OK, page)
        else:
            self._answer(
                HTTPStatus.NOT_FOUND,
                b"<!doctype html><title>No such report</title>there is no report of that name",
            )

    def do_HEAD(self) -> None:
        self.do_GET()

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: requests are not worth a line."""

    def _answer(self, status: HTTPStatus, page: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(page)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(page)


def _index() -> bytes:
    """Links to the reports that there are."""
    from llama4_pipeline.catalog import load_catalog

    store = open_store()
    made = [model for model in load_catalog() if _was_made(store, model)]
    links = "".join(f'<li><a href="/{model}">{model}</a></li>' for model in made)
    return f"<!doctype html><title>Reports</title><ul>{links}</ul>".encode()


def _page(model: str) -> bytes | None:
    """A report, or None where there is none of that name."""
    from llama4_pipeline.catalog import load_catalog

    store = open_store()
    if model not in load_catalog() or not _was_made(store, model):
        return None
    try:
        return (store.input_of(model, "report").directory / "report.html").read_bytes()
    except FileNotFoundError:  # its artifact lost the file, or was collected meanwhile
        return None


def _was_made(store: "Store", model: str) -> bool:
    """Whether a model has a report, or one of which its page tells why it cannot be read."""
    try:
        return store.latest(model, "report") is not None
    except (InputError, OSError):
        return True


COMMANDS = (pages,)
