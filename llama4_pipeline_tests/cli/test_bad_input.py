"""Bad input through the command line: status 2, one line that says what and what to do, nothing half-written."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import onnx
import pytest

from llama4_pipeline import cli
from llama4_pipeline_tests.checkpoints import write_random_checkpoint
from llama4_pipeline_tests.cli.small_disk import small_disk


@pytest.fixture
def checkpoint(tiny_random_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of a good checkpoint, to be spoiled."""
    return Path(shutil.copytree(tiny_random_checkpoint, tmp_path / "in" / "checkpoint"))


@pytest.fixture(scope="session")
def sharded_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_random_checkpoint(tmp_path_factory.mktemp("sharded") / "checkpoint", max_shard_size="200KB")


def assert_refused(
    arguments: list[str], words: list[str], out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs a command that must fail before it leaves anything beside or in `out`."""
    before = sorted(out.parent.iterdir()) if out.parent.exists() else None
    status = cli.main(arguments)
    printed = capsys.readouterr()
    assert status == 2, printed.err
    assert printed.out == ""
    assert printed.err.count("\n") == 1, printed.err
    assert "Traceback" not in printed.err
    for word in words:
        assert word in printed.err
    assert (sorted(out.parent.iterdir()) if out.parent.exists() else None) == before


def without_config(checkpoint: Path) -> list[str]:
    (checkpoint / "config.json").unlink()
    return ["no config.json", str(checkpoint)]


def broken_config(checkpoint: Path) -> list[str]:
    (checkpoint / "config.json").write_text('{"model_type": ')
    return ["config.json", "not JSON"]


def another_architecture(checkpoint: Path) -> list[str]:
    config = {"architectures": ["MistralForCausalLM"], "model_type": "mistral"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    return ["MistralForCausalLM", "Llama4ForCausalLM"]


def impossible_configuration(checkpoint: Path) -> list[str]:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"num_attention_heads": 0}))
    return ["num_attention_heads"]


def truncated_weights(checkpoint: Path) -> list[str]:
    file = checkpoint / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    return ["model.safetensors", "truncated"]


def no_weights(checkpoint: Path) -> list[str]:
    (checkpoint / "model.safetensors").unlink()
    return [str(checkpoint), "safetensors"]


def pickled_weights(checkpoint: Path) -> list[str]:
    (checkpoint / "model.safetensors").unlink()
    (checkpoint / "pytorch_model.bin").write_bytes(pickle.dumps({"model.norm.weight": [1.0]}))
    return ["pytorch_model.bin", "safetensors", "code"]


def weights_of_another_model(checkpoint: Path) -> list[str]:
    config = json.loads((checkpoint / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 777}))
    return ["model.embed_tokens.weight", "777"]


@pytest.mark.parametrize(
    "spoil",
    [
        without_config,
        broken_config,
        another_architecture,
        impossible_configuration,
        truncated_weights,
        no_weights,
        pickled_weights,
        weights_of_another_model,
    ],
)
def test_spoiled_checkpoint(
    spoil: Callable[[Path], list[str]], checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = spoil(checkpoint)
    out = tmp_path / "new" / "graph"
    assert_refused(["export", "--checkpoint", str(checkpoint), "--out", str(out)], words, out, capsys)


def test_missing_shard(sharded_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = Path(shutil.copytree(sharded_checkpoint, tmp_path / "in"))
    [first, *others] = sorted(checkpoint.glob("model-*.safetensors"))
    assert others
    first.unlink()
    out = tmp_path / "out"
    assert_refused(["export", "--checkpoint", str(checkpoint), "--out", str(out)], [first.name], out, capsys)


def test_no_such_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, missing = tmp_path / "out", str(tmp_path / "missing")
    assert_refused(["export", "--checkpoint", missing, "--out", str(out)], [missing], out, capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--opset", "17"], ["--opset", "17", "18"]),
        (["--opset", "99"], ["opset", "99"]),
        (["--max-context", "0"], ["--max-context"]),
        (["--precision", "int8", "--form", "portable"], ["portable", "int8"]),
        (["--precision", "fp16", "--method", "rtn"], ["--method", "fp16"]),
        (["--precision", "fp16", "--device", "cuda"], ["fp16", "--device"]),
    ],
)
def test_export_options(
    options: list[str],
    words: list[str],
    tiny_random_checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    out = tmp_path / "out"
    command = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out), *options]
    assert_refused(command, words, out, capsys)


def test_a_path_that_cannot_be_one(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / ("x" * 256)
    arguments = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out)]
    assert_refused(arguments, ["x" * 256, "File name too long"], out, capsys)


def test_output_directory_with_content(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "notes.txt").write_text("mine")
    command = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out)]
    assert_refused(command, [str(out), "not empty"], out, capsys)
    assert (out / "notes.txt").read_text() == "mine"


def test_no_space_for_the_weights(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = "524 kB"  # 131,088 float32 parameters
    with small_disk(tmp_path / "disk", kilobytes=256) as disk:
        out = disk / "out"
        command = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out)]
        assert_refused(command, [weights, "262 kB", str(out)], out, capsys)


def test_disk_full_while_writing(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with small_disk(tmp_path / "disk", kilobytes=560) as disk:  # the weights fit, the graph does not
        out = disk / "out"
        command = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out)]
        assert_refused(command, ["524 kB needed", "573 kB free", str(out)], out, capsys)


def test_no_space_for_the_tables_of_a_context(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    command = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out), "--form", "fused"]
    words = ["68,000 GB needed", str(out)]  # 16 numbers of rotation and a temperature, float32
    assert_refused([*command, "--max-context", str(10**12)], words, out, capsys)


@pytest.mark.parametrize("command", ["run", "plan"])
def test_unknown_model(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_refused([command, "--model", "tinny"], ["tinny", "tiny"], tmp_path / "out", capsys)


def test_end_by_signal_leaves_nothing(tiny_random_checkpoint: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "llama4_pipeline.cli",
        "export",
        "--checkpoint",
        str(tiny_random_checkpoint),
    ]
    with subprocess.Popen([*command, "--out", str(tmp_path / "new" / "out")]) as process:
        while not (tmp_path / "new").exists():
            assert process.poll() is None
        process.terminate()
    assert process.returncode == 143
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("name", "status"), [("SIGTERM", 143), ("SIGINT", 130), ("SIGHUP", 129)])
def test_a_signal_in_the_midst_of_an_import_is_not_lost(tmp_path: Path, name: str, status: int) -> None:
    """Some modules of others swallow whatever is raised while they are imported, or turn it into an ImportError."""
    (tmp_path / "swallows.py").write_text(
        f"import os, signal\ntry:\n    os.kill(os.getpid(), signal.{name})\n    [0 for _ in range(10)]\n"
        "except BaseException:\n    pass\n"
    )
    # What nohup ignores, a child would ignore too.
    program = f"import signal; signal.signal(signal.{name}, signal.SIG_DFL); "
    program += "import time; from llama4_pipeline import cli; cli.commands.main = lambda *_, **__: work(); "
    program += "work = lambda: (__import__('swallows'), time.sleep(20)); raise SystemExit(cli.main([]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert subprocess.run([sys.executable, "-c", program], env=environment).returncode == status


@pytest.fixture(scope="module")
def fused(tiny_random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tiny_random_checkpoint, tmp_path_factory.mktemp("fused") / "onnx")


def _exported(checkpoint: Path, out: Path, *options: str) -> Path:
    arguments = ["export", "--checkpoint", str(checkpoint), "--out", str(out), "--form", "fused"]
    assert cli.main([*arguments, "--max-context", "64", *options]) == 0
    return out


@pytest.mark.parametrize(
    "command",
    [
        ["quantize", "--out", "out", "--precision", "int4"],
        ["quantize", "--out", "out", "--precision", "fp16"],
        ["quantize-cache", "--out", "out", "--calibration", "text.txt"],
        ["generate", "--prompt", "the"],
    ],
    ids=lambda command: " ".join(command[::4]),
)
def test_a_graph_without_all_of_its_weights_is_refused(
    command: list[str],
    tiny_random_checkpoint: Path,
    fused: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    _exported(tiny_random_checkpoint, tmp_path / "none", "--no-weights")
    shutil.copytree(fused, tmp_path / "part")
    data = tmp_path / "part" / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-1000])
    capsys.readouterr()
    for graph, words in (
        ("none", ["none lacks its weights", "--no-weights"]),
        ("part", ["model.onnx.data has"]),
    ):
        assert_refused([*command, "--graph", graph], words, tmp_path / "out", capsys)


def _lose_a_node(model: onnx.ModelProto) -> None:
    del model.graph.node[len(model.graph.node) // 2]


def _shorten_the_weights(model: onnx.ModelProto) -> None:
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "length":
                entry.value = "5"


@pytest.mark.parametrize(
    ("spoil", "words"),
    [(_lose_a_node, "onnx.checker refuses the graph"), (_shorten_the_weights, "of which the graph names 5")],
)
def test_a_damaged_graph_is_not_quantized(
    spoil: Callable[[onnx.ModelProto], None],
    words: str,
    fused: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    graph = shutil.copytree(fused, tmp_path / "damaged")
    model = onnx.load(graph / "model.onnx", load_external_data=False)
    spoil(model)
    onnx.save(model, graph / "model.onnx")
    command = ["quantize", "--graph", str(graph), "--precision", "int4", "--out", str(tmp_path / "out")]
    assert_refused(command, [words], tmp_path / "out", capsys)


def test_a_prompt_that_is_no_text_is_refused(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["generate", "--graph", str(fused), "--prompt", os.fsdecode(b"caf\xe9")]
    assert_refused(arguments, ["--prompt", "not UTF-8"], tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--top-k", "5"], ["--top-k", "give --temperature"]),
        (["--top-p", "0.9", "--temperature", "0"], ["--top-p", "give --temperature"]),
        (["--top-k", "0", "--temperature", "1"], ["--top-k", "0 is not in the range"]),
        (["--top-p", "0", "--temperature", "1"], ["--top-p", "0"]),
        (["--top-p", "nan", "--temperature", "1"], ["top_p is nan"]),
    ],
)
def test_filters_of_no_draw_or_out_of_range_are_refused(
    options: list[str],
    words: list[str],
    fused: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    arguments = ["generate", "--graph", str(fused), "--prompt", "the", *options]
    assert_refused(arguments, words, tmp_path / "out", capsys)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, ["no chat template", "leave out --chat", "chat_template.jinja"]),
        ("{% for message in messages %}", ["does not render", "endfor", "leave out --chat"]),
        ("{{ raise_exception('no\\nuser') }}", ["does not render (no user)", "leave out --chat"]),
        ("{{ messages[0].content + 1 }}", ["does not render", "leave out --chat"]),
    ],
    ids=["none", "broken", "refuses", "fails"],
)
def test_chat_without_a_template_that_renders_is_refused(
    template: str | None, words: list[str], fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    graph = shutil.copytree(fused, tmp_path / "graph")
    if template is not None:
        (graph / "chat_template.jinja").write_text(template)
    arguments = ["generate", "--graph", str(graph), "--prompt", "the", "--chat"]
    assert_refused(arguments, [str(graph), *words], tmp_path / "out", capsys)


def test_a_block_that_no_kernel_takes_is_refused(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = ["quantize", "--graph", str(fused), "--out", str(out), "--precision", "int4"]
    assert_refused([*arguments, "--block-size", "48"], ["48", "16, 32, 64, 128 or 256"], out, capsys)


@pytest.mark.parametrize("method", ["gptq", "qdq-static", "k_quant"])
def test_calibration_without_two_tokens_is_refused(
    method: str, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "one.jsonl").write_text('{"input_ids": [3]}')
    out = tmp_path / "out"
    arguments = ["quantize", "--graph", str(fused), "--out", str(out), "--precision", "int8"]
    asked = ["--method", method, "--calibration", str(tmp_path / "one.jsonl")]
    assert_refused([*arguments, *asked], ["one.jsonl", "two tokens"], out, capsys)


def test_a_graph_of_another_model_is_not_validated_or_trained(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, changes, words in (
        ("wider", {"hidden_size": 64}, "hidden_size is 48 and 64"),
        ("dense", {"moe_layers": []}, "experts of layer 0 is 4 and 0"),
    ):
        other = write_random_checkpoint(tmp_path / name, **changes)
        capsys.readouterr()
        out = tmp_path / "out"
        for command in (
            ["validate"],
            [
                "quantize",
                "--out",
                str(out),
                "--precision",
                "int4",
                "--method",
                "qat",
                "--calibration",
                "x.txt",
            ],
        ):
            arguments = [*command, "--graph", str(fused), "--checkpoint", str(other)]
            assert_refused(arguments, ["different models", words], out, capsys)


@pytest.mark.parametrize(
    ("rows", "fault"), [("1" + "0" * 12, "no memory"), ("1" * 5_000, "is not a list of positive integers")]
)
def test_a_batch_beyond_all_memory_is_refused(
    rows: str, fault: str, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        "bench",
        "--graph",
        str(fused),
        "--prompt-tokens",
        "16",
        "--new-tokens",
        "4",
        "--batch",
        rows,
    ]
    assert cli.main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("llama4-pipeline: ") and fault in last
