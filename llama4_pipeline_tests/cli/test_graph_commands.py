"""Commands on a checkpoint that is in no catalog: export, validate, quantize, bench, eval, generate."""

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import TensorProto, helper

from llama4_pipeline import cli, preflight
from llama4_pipeline.artifacts.artifact import damage_of, open_artifact
from llama4_pipeline.catalog import find_model
from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.llama4.checkpoint import write_synthetic_checkpoint
from llama4_pipeline.preflight import Room
from llama4_pipeline_tests.checkpoints import PECULIAR_CONFIG, write_random_checkpoint

SIDECARS = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "manifest.json",
}


def run_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    status = cli.main([*arguments, "--json"])
    printed = capsys.readouterr()
    assert status == 0, printed.err
    record: dict[str, Any] = json.loads(printed.out.splitlines()[-1])
    return record


@pytest.fixture(scope="module")
def fused(tiny_random_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "fused"
    arguments = ["export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out), "--form", "fused"]
    assert cli.main([*arguments, "--max-context", "256"]) == 0
    return out


@pytest.fixture(scope="module")
def int4(fused: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("graphs") / "int4"
    assert cli.main(["quantize", "--graph", str(fused), "--out", str(out), "--precision", "int4"]) == 0
    return out


def test_export_makes_a_whole_directory(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    record = run_json(capsys, "export", "--checkpoint", str(tiny_random_checkpoint), "--out", str(out))
    assert {path.name for path in out.iterdir()} == SIDECARS | {"model.onnx", "model.onnx.data"}
    assert (record["form"], record["precision"], record["opset"]) == ("portable", "fp32", 20)
    assert record["max_context"] == 4096
    assert record["bytes"] == sum(path.stat().st_size for path in out.iterdir())
    assert record["steps"]["export"]["parameters"] == 131088


def test_a_directory_of_any_length_of_name_has_a_manifest(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / ("a" * 120), tmp_path / "onnx"
    checkpoint.symlink_to(tiny_random_checkpoint)
    run_json(capsys, "export", "--checkpoint", str(checkpoint), "--out", str(out), "--no-weights")
    artifact = open_artifact(out).artifact
    assert artifact is not None and artifact.model == "a" * 100


def test_manifest_describes_the_files(fused: Path) -> None:
    artifact = open_artifact(fused).artifact
    assert artifact is not None
    assert damage_of(artifact, hash_all=True) is None
    assert artifact.stage == "optimized_graph"
    assert artifact.manifest.recipe.parameters["max_context"] == 256
    assert artifact.manifest.recipe.parameters["opset"] == load_graph(fused).opset_imports[""] == 23
    assert set(artifact.facts) == {"export", "simplify", "fuse"}


def test_quantized_manifest_names_the_graph_it_is_made_from(fused: Path, int4: Path) -> None:
    made, source = open_artifact(int4).artifact, open_artifact(fused).artifact
    assert made is not None and source is not None
    assert made.manifest.recipe.inputs == {"optimized_graph": source.digest}


@pytest.mark.parametrize("precision", ["fp32", "int4"])
def test_export_without_weights_asks_for_the_configuration_only(
    precision: str, tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, out = tmp_path / "checkpoint", tmp_path / "onnx"
    checkpoint.mkdir()
    shutil.copyfile(tiny_random_checkpoint / "config.json", checkpoint / "config.json")
    arguments = ["--checkpoint", str(checkpoint), "--out", str(out), "--precision", precision]
    run_json(capsys, "export", *arguments, "--no-weights")
    assert {path.name for path in out.iterdir()} == {"config.json", "manifest.json", "model.onnx"}


def test_export_of_random_weights_needs_no_tensors_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_synthetic_checkpoint(tmp_path / "checkpoint", PECULIAR_CONFIG, seed=0, dtype="bfloat16")
    source = ["--checkpoint", str(tmp_path / "checkpoint"), "--precision", "int8"]
    record = run_json(capsys, "export", *source, "--out", str(tmp_path / "onnx"))
    assert record["steps"]["export"]["parameters"] == 131088


def test_export_in_one_stream_equals_the_steps(
    tiny_random_checkpoint: Path, int4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "onnx"
    source = ["--checkpoint", str(tiny_random_checkpoint), "--max-context", "256"]
    asked = ["--precision", "int4", "--method", "k_quant"]
    record = run_json(capsys, "export", *source, "--out", str(out), *asked)
    assert list(record["steps"]) == ["export", "simplify", "fuse", "quantize"]
    for file in ("model.onnx", "model.onnx.data"):
        assert (out / file).read_bytes() == (int4 / file).read_bytes()


def test_validate_passes(
    tiny_random_checkpoint: Path, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pair = ["--checkpoint", str(tiny_random_checkpoint), "--graph", str(fused)]
    asked = ["--lengths", "1,17", "--batch", "1,2"]
    record = run_json(capsys, "validate", *pair, *asked)
    assert record["passed"]
    assert (record["lengths"], record["batches"]) == ([1, 17], [1, 2])
    (tmp_path / "text.txt").write_text("the " * 513)
    with_text = run_json(capsys, "validate", *pair, *asked, "--text", str(tmp_path / "text.txt"))
    assert with_text["compared_tokens"] - record["compared_tokens"] == 513


def test_validate_fails_on_the_graph_of_another_model(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = write_random_checkpoint(tmp_path / "other", seed=1)
    capsys.readouterr()
    pair = ["--checkpoint", str(other), "--graph", str(fused)]
    status = cli.main(["validate", *pair, "--lengths", "5", "--batch", "1", "--json"])
    printed = capsys.readouterr()
    assert status == 1
    assert "differs from PyTorch" in printed.err.splitlines()[-1]
    assert json.loads(printed.out)["passed"] is False


@pytest.mark.parametrize("precision", ["fp16", "int8"])
def test_quantize(precision: str, fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / precision
    record = run_json(capsys, "quantize", "--graph", str(fused), "--out", str(out), "--precision", precision)
    assert record["precision"] == precision
    before, after = ((graph / "model.onnx.data").stat().st_size for graph in (fused, out))
    assert after < 0.8 * before


def test_quantize_cache(
    tiny_random_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("\n".join(json.dumps({"input_ids": [7 * n % 131, n, 3, 5]}) for n in range(1, 60)))
    data = ["--calibration", str(tokens)]
    graph, out = tmp_path / "graph", tmp_path / "out"
    export = ["--checkpoint", str(tiny_random_checkpoint), "--out", str(graph), "--precision", "int4"]
    assert cli.main(["export", *export, "--max-context", "64"]) == 0
    record = run_json(capsys, "quantize-cache", "--graph", str(graph), "--out", str(out), *data)
    facts = record["steps"]["quantize"]
    assert (facts["tokens"], facts["bytes_per_token_after"]) == (236, 256)
    assert json.loads((out / "manifest.json").read_text())["recipe"]["stage"] == "int4_graph"
    bench = ["--engine", "onnxruntime", "--graph", str(out), "--prompt-tokens", "8", "--new-tokens", "4"]
    assert run_json(capsys, "bench", *bench)["precision"] == "int4"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--precision", "int8", "--method", "guess"], ["guess", "rtn"]),
        (["--precision", "fp16", "--method", "rtn"], ["fp16", "--method"]),
        (["--precision", "fp16", "--device", "cuda"], ["fp16", "--device"]),
        (["--precision", "int8", "--method", "qdq-dynamic", "--device", "cuda"], ["qdq-dynamic", "CUDA"]),
        (["--precision", "int8", "--method", "rtn", "--calibration", __file__], ["rtn", "--calibration"]),
        (["--precision", "int4", "--method", "gptq"], ["gptq", "calibration"]),
        (["--precision", "int4", "--method", "qat", "--calibration", __file__], ["qat", "--checkpoint"]),
        (["--precision", "int4", "--method", "rtn", "--checkpoint", "."], ["rtn", "--checkpoint"]),
        (["--precision", "int4", "--method", "qdq-dynamic"], ["qdq-dynamic", "int8", "int4"]),
        (
            ["--precision", "int4", "--method", "gptq", "--calibration", "none.txt"],
            ["none.txt", "no such data file"],
        ),
    ],
)
def test_quantize_refuses(
    options: list[str], words: list[str], fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["quantize", "--graph", str(fused), "--out", str(tmp_path / "out"), *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert all(word in line for word in words), line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["fp16", "int8", "int4"])
def test_quantize_refuses_a_quantized_graph(
    precision: str, int4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "out"), "--precision", precision]
    assert cli.main(["quantize", "--graph", str(int4), *out]) == 2
    assert f"{int4} is quantized already" in capsys.readouterr().err.splitlines()[-1]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "what"),
    [
        (["--precision", "int4", "--method", "mixed", "--calibration", __file__], "4.. GB of memory"),
        (["--precision", "int8", "--method", "qdq-dynamic"], "1,... GB of memory"),
        (["--precision", "int4", "--method", "rtn"], "63.5 GB needed, 60.0 GB free"),
    ],
)
def test_quantize_refuses_what_the_machine_has_no_room_for(
    options: list[str],
    what: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_synthetic_checkpoint(tmp_path / "scout", find_model("scout").config, seed=0, dtype="bfloat16")
    value = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1])
    onnx.save(
        helper.make_model(helper.make_graph([], "scout", [value], [value])), tmp_path / "scout/model.onnx"
    )
    monkeypatch.setattr(preflight, "room", lambda directory: Room(400 * 10**9, 60 * 10**9))
    arguments = ["--graph", str(tmp_path / "scout"), "--out", str(tmp_path / "out"), *options]
    assert cli.main(["quantize", *arguments]) == 2
    assert re.search(what, capsys.readouterr().err.splitlines()[-1])
    assert not (tmp_path / "out").exists()


def test_bench_loads_no_graph_tools_into_the_process_that_it_measures(int4: Path) -> None:
    """They take 40 MB, which would count as the engine's."""
    sizes = ["--prompt-tokens", "8", "--new-tokens", "4", "--repeats", "1", "--threads", "1"]
    code = f"""import sys; from llama4_pipeline import cli
status = cli.main({["bench", "--graph", str(int4), *sizes]!r})
sys.exit('onnx_ir was loaded' if 'onnx_ir' in sys.modules else status)"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_bench_has_the_figures_of_the_contract(int4: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sizes = ["--prompt-tokens", "8", "--new-tokens", "4", "--batch", "1,2", "--threads", "1"]
    record = run_json(capsys, "bench", "--graph", str(int4), "--engine", "onnxruntime", *sizes)
    for figure in ("prefill_tokens_per_second", "decode_tokens_per_second", "time_to_first_token_ms"):
        assert record[figure] > 0
    assert set(record["decode_latency_ms"]) == {"p50", "p90", "p99"}
    assert record["peak_memory_bytes"] > 0
    assert 0 < record["roofline_share"] < 1
    assert set(record["throughput"]) == {"1", "2"}
    assert list(record["providers"]) == ["CPUExecutionProvider"]


def test_bench_wants_one_model(
    tiny_random_checkpoint: Path, int4: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["bench"]) == 2
    assert cli.main(["bench", "--graph", str(int4), "--checkpoint", str(tiny_random_checkpoint)]) == 2
    assert cli.main(["bench", "--graph", str(int4), "--engine", "onnx"]) == 2
    assert cli.main(["bench", "--graph", str(int4), "--dtype", "bfloat16"]) == 2
    assert "onnxruntime" in capsys.readouterr().err.splitlines()[-1]


def test_eval_against_the_original(
    tiny_random_checkpoint: Path, int4: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "text.txt"
    data.write_text("the of and to in is that for it as with on be at by this not or from but all can\n" * 3)
    record = run_json(capsys, "eval", "--graph", str(int4), "--data", str(data))
    assert record["perplexity"] > 1
    assert record["kl_divergence"] is None
    pair = ["--graph", str(int4), "--checkpoint", str(tiny_random_checkpoint)]
    record = run_json(capsys, "eval", *pair, "--data", str(data))
    assert record["kl_divergence"] > 0
    assert 0 <= record["top1_agreement"] <= 1
    assert 0 <= record["expert_change_share"] <= 1


def test_generate_streams_what_json_gives(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--graph", str(fused), "--prompt", "the of and", "--max-new-tokens", "6"]
    record = run_json(capsys, *command)
    assert record["text"]
    assert cli.main(command) == 0
    assert capsys.readouterr().out == record["text"] + "\n"


def test_generate_draws_by_seed(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--graph", str(fused), "--prompt", "the", "--temperature", "2"]
    first, again, other = (run_json(capsys, *command, "--seed", seed)["text"] for seed in ("1", "1", "2"))
    assert first == again != other


def test_generate_draws_from_the_likeliest(fused: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--graph", str(fused), "--prompt", "the"]
    greedy = run_json(capsys, *command)["text"]
    for narrow in (["--top-k", "1"], ["--top-p", "1e-9"]):
        assert run_json(capsys, *command, "--temperature", "2", *narrow)["text"] == greedy


@pytest.fixture
def chatty(fused: Path, tmp_path: Path) -> Path:
    """A graph whose tokenizer opens a text with <s>, and whose chat template writes <s> too."""
    out = Path(shutil.copytree(fused, tmp_path / "chatty"))
    opening = [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
    tokenizer = json.loads((out / "tokenizer.json").read_text())
    tokenizer["post_processor"] = {
        "type": "TemplateProcessing",
        "single": opening,
        "pair": opening,
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}},
    }
    (out / "tokenizer.json").write_text(json.dumps(tokenizer))
    (out / "chat_template.jinja").write_text(
        "{{ bos_token }}{% for message in messages %} {{ message.role }} w40 {{ message.content }} </s>"
        "{% endfor %}{% if add_generation_prompt %} w41{% endif %}"
    )
    return out


def test_chat_is_the_text_that_the_template_makes(chatty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--graph", str(chatty), "--max-new-tokens", "12", "--prompt"]
    written = run_json(capsys, *command, "user w40 the of </s> w41")
    answer = run_json(capsys, *command, "the of", "--chat")
    assert answer["text"] == written["text"]
    assert answer["prompt"] == "the of"
    assert cli.main([*command, "the of", "--chat"]) == 0
    assert capsys.readouterr().out == answer["text"] + "\n"


def test_an_answer_ends_with_the_turn(chatty: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As at the instruct models' <|eot|>: one of several that generation_config.json lists."""
    command = ["generate", "--graph", str(chatty), "--max-new-tokens", "12", "--prompt", "the of", "--chat"]
    words = run_json(capsys, *command)["text"].split()
    turn = next(place for place, word in enumerate(words) if word != words[0])
    vocabulary = json.loads((chatty / "tokenizer.json").read_text())["model"]["vocab"]
    stops = {"eos_token_id": [2, vocabulary[words[turn]]]}
    (chatty / "generation_config.json").write_text(json.dumps(stops))
    assert run_json(capsys, *command)["text"].split() == words[: turn + 1]


def test_text_ends_where_the_context_is_full(
    fused: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    prompt = " ".join(["the"] * 250)
    record = run_json(capsys, "generate", "--graph", str(fused), "--prompt", prompt)
    assert record["text"]
    assert "the context is full: 256 tokens, prompt and text" in caplog.text


def test_text_whose_last_token_ends_it_is_not_cut(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    shutil.copytree(fused, tmp_path / "graph")
    every_token = json.dumps({"eos_token_id": list(range(256))})
    (tmp_path / "graph" / "generation_config.json").write_text(every_token)
    prompt = " ".join(["the"] * 256)
    run_json(capsys, "generate", "--graph", str(tmp_path / "graph"), "--prompt", prompt)
    assert "the context is full" not in caplog.text


def test_a_graph_whose_manifest_names_no_stage_keeps_its_cache_in_8_bits(
    fused: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One of a version, say, that called its stages otherwise."""
    tokens = tmp_path / "tokens.jsonl"
    tokens.write_text("\n".join(json.dumps({"input_ids": [7 * n % 131, n, 3, 5]}) for n in range(1, 60)))
    graph, out = tmp_path / "graph", tmp_path / "out"
    shutil.copytree(fused, graph)
    manifest = json.loads((graph / "manifest.json").read_text())
    manifest["recipe"]["stage"] = "fused_graph"
    (graph / "manifest.json").write_text(json.dumps(manifest))
    run_json(capsys, "quantize-cache", "--graph", str(graph), "--out", str(out), "--calibration", str(tokens))
    assert json.loads((out / "manifest.json").read_text())["recipe"]["stage"] == "optimized_graph"
