"""The frame around every command: help, exit status, one line on standard error, JSON on standard output."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from llama4_pipeline import cli
from llama4_pipeline.cli.result import show
from llama4_pipeline.errors import CheckFailed, InputError

COMMANDS = tuple(cli.commands.commands)


def test_help_lists_the_commands_without_loading_what_they_need() -> None:
    code = (
        "import sys; from llama4_pipeline.cli import main; status = main(['--help']);"
        "heavy = {'torch', 'transformers', 'onnx', 'onnxruntime', 'pandas', 'matplotlib', 'dagster'};"
        "heavy &= set(sys.modules);"
        "sys.exit(f'loaded {heavy}' if heavy else status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for command in COMMANDS:
        assert f"  {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([command, "--help"]) == 0
    assert f"Usage: llama4-pipeline {command}" in capsys.readouterr().out


def test_a_path_that_is_no_utf8_can_be_shown(capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    show({}, "caf\udce9", as_json=False)
    assert capsysbinary.readouterr().out == b"caf?\n"


@pytest.mark.parametrize("buffering", [{"PYTHONUNBUFFERED": "1"}, {"PYTHONUNBUFFERED": ""}])
def test_a_result_that_a_full_disk_does_not_take_is_one_error(buffering: dict[str, str]) -> None:
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, "-m", "llama4_pipeline.cli", "--version"]
        environment = os.environ | buffering
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, env=environment, check=False
        )
    assert done.returncode == 2
    assert done.stderr.startswith("llama4-pipeline: the disk of standard output or temporary files (")
    assert done.stderr.count("\n") == 1


def leaves(group: click.Group) -> list[click.Command]:
    found = []
    for command in group.commands.values():
        found += leaves(command) if isinstance(command, click.Group) else [command]
    return found


@pytest.mark.parametrize("command", leaves(cli.commands), ids=lambda command: command.name)
def test_every_command_takes_json(command: click.Command) -> None:
    assert "--json" in {option for parameter in command.params for option in parameter.opts}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "Missing command"),
        (("exprot",), "No such command 'exprot'"),
        (("export",), "Missing option '--checkpoint'"),
        (("export", "--checkpoint", "x", "--out", "y", "--opset", "17"), "17"),
        (("quantize", "--graph", "no-such-directory"), "no-such-directory is not a directory"),
        (("export", "--unknown"), "No such option"),
        (("validate", "--lengths", "1,x"), "1,x is not a list of positive integers"),
    ],
)
def test_usage_error_is_one_line_and_status_2(
    arguments: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


def test_graph_directory_without_a_graph_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["generate", "--graph", str(tmp_path), "--prompt", "x"]) == 2
    assert "has no model.onnx" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "status", "line"),
    [
        (InputError("bad\ninput"), 2, "llama4-pipeline: bad input\n"),
        (CheckFailed("off by 1"), 1, "llama4-pipeline: off by 1\n"),
        (KeyboardInterrupt(), 130, "llama4-pipeline: interrupted\n"),
    ],
)
def test_status_tells_what_kind_of_failure(
    error: BaseException,
    status: int,
    line: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    @click.command()
    def fail() -> None:
        raise error

    monkeypatch.setitem(cli.commands.commands, "fail", fail)
    assert cli.main(["fail"]) == status
    assert capsys.readouterr().err.endswith(line)


def test_a_bug_shows_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def fail() -> None:
        raise ZeroDivisionError

    monkeypatch.setitem(cli.commands.commands, "fail", fail)
    with pytest.raises(ZeroDivisionError):
        cli.main(["fail"])
