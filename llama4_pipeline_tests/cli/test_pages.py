"""`pages`, as a browser sees it."""

import os
import platform
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from llama4_pipeline import cli
from llama4_pipeline.artifacts.location import ARTIFACTS_VARIABLE
from llama4_pipeline.artifacts.recipe import Recipe
from llama4_pipeline.artifacts.store import Store
from llama4_pipeline.catalog import USER_CATALOG_VARIABLE

ROOT = Path(__file__).parents[2]
_COMMAND = [sys.executable, "-m", "llama4_pipeline.cli", "pages", "--port", "0"]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[psutil.Process, str]]:
    """The command on a store with one report; its process and address."""

    def make(out: Path) -> dict[str, object]:
        (out / "report.html").write_text("<!doctype html>the report of tiny")
        return {}

    Store(tmp_path / "store").get_or_make(Recipe(stage="report", model="tiny", code_version=""), make)
    (tmp_path / "catalog.toml").touch()
    environment = os.environ | {
        ARTIFACTS_VARIABLE: str(tmp_path / "store"),
        USER_CATALOG_VARIABLE: str(tmp_path / "catalog.toml"),
    }
    process = subprocess.Popen(_COMMAND, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield psutil.Process(process.pid), process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.communicate(timeout=30)


def test_a_report_and_nothing_else_is_served_to_this_machine(server: tuple[psutil.Process, str]) -> None:
    process, address = server
    assert {connection.laddr.ip for connection in process.net_connections()} == {"127.0.0.1"}
    with urllib.request.urlopen(f"{address}tiny") as page:
        assert page.read() == b"<!doctype html>the report of tiny"
    with urllib.request.urlopen(address) as page:
        assert b'<a href="/tiny">' in page.read()
    for path in ("mini", "tiny/report", "../tiny/report", "%2e%2e/tiny", "tiny/../../etc/passwd"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}{path}")


def test_a_page_is_found_whatever_else_is_asked_and_one_that_is_lost_is_not(
    server: tuple[psutil.Process, str], tmp_path: Path
) -> None:
    _, address = server
    with urllib.request.urlopen(f"{address}tiny?from=the+ui") as page:
        assert page.read() == b"<!doctype html>the report of tiny"
    with urllib.request.urlopen(urllib.request.Request(f"{address}tiny", method="HEAD")) as page:
        assert (page.headers["Content-Length"], page.read()) == ("33", b"")
    [report] = (tmp_path / "store").glob("tiny/report/*/report.html")
    report.unlink()
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{address}tiny")
    report.mkdir()
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        urllib.request.urlopen(f"{address}tiny")
    assert "report.html" in caught.value.read().decode()
    (report.parents[1] / "latest.json").write_text("garbage")
    with pytest.raises(urllib.error.HTTPError, match="503") as caught:
        urllib.request.urlopen(f"{address}tiny")
    assert "latest.json is damaged" in caught.value.read().decode()
    with urllib.request.urlopen(address) as page:
        assert b'<a href="/tiny">' in page.read()


def test_a_catalog_that_was_broken_meanwhile_is_named(
    server: tuple[psutil.Process, str], tmp_path: Path
) -> None:
    (tmp_path / "catalog.toml").write_text("[models.")
    with pytest.raises(urllib.error.HTTPError, match="503") as answer:
        urllib.request.urlopen(server[1])
    assert b"catalog.toml" in answer.value.read()


def test_a_host_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["pages", "--host", "nowhere.invalid", "--port", "0"]) == 2
    said = capsys.readouterr().err
    assert "nowhere.invalid:0: " in said and "another --port or --host" in said


def test_the_ui_is_served_to_this_machine_unless_asked() -> None:
    def commands(*settings: str) -> str:
        return subprocess.run(
            ["make", "-n", "ui", *settings], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout

    assert commands().count("127.0.0.1") == 2
    assert "0.0.0.0" in commands("UI_HOST=0.0.0.0")


def _make_ui(programs: Path, dagster: str) -> list[str]:
    """The command `make ui`, with scripts for the programs that it starts."""
    for name, script in {"llama4-pipeline": "exec sleep 600", "dagster": dagster}.items():
        (programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (programs / name).chmod(0o755)
    return ["make", "-o", "setup", "ui", f"BIN={programs}"]


@pytest.mark.parametrize("own", [None, "telemetry: {enabled: true}\n"])
def test_a_home_elsewhere_has_the_settings_of_the_project_unless_it_has_its_own(
    tmp_path: Path, own: str | None
) -> None:
    home = tmp_path / "the home"
    home.mkdir()
    if own:
        (home / "dagster.yaml").write_text(own)
    environment = os.environ | {"DAGSTER_HOME": str(home)}
    subprocess.run(_make_ui(tmp_path, dagster="exit 0"), cwd=ROOT, env=environment, check=True)
    assert (home / "dagster.yaml").read_text() == (own or (ROOT / "dagster.yaml").read_text())


def test_an_interrupted_ui_leaves_no_server_of_reports(tmp_path: Path) -> None:
    """Ctrl-C reaches every process of the terminal, but a shell has what it starts in the background ignore it."""
    process = subprocess.Popen(
        _make_ui(tmp_path, dagster='sleep 600 & trap "kill $!; exit" INT; echo up; wait'),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    try:
        assert process.stdout is not None and "up\n" in process.stdout
        family = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, left = psutil.wait_procs(family, timeout=10)
        assert [" ".join(each.cmdline()) for each in left] == []
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate(timeout=30)


@pytest.mark.parametrize(
    ("settings", "host"),
    [((), "127.0.0.1"), (("UI_HOST=ours",), "ours"), (("UI_HOST=0.0.0.0",), platform.node())],
)
def test_links_to_reports_name_a_host_that_others_reach(settings: tuple[str, ...], host: str) -> None:
    shown = "ui: shown\nshown: ; @+echo $$LLAMA4_PIPELINE_PAGES"  # + is run under -n too
    said = subprocess.run(
        ["make", "-n", "--eval", shown, "ui", *settings], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert f"http://{host}:3001" in said.splitlines()
