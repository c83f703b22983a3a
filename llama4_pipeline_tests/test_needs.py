"""What stages need follows from the architecture."""

from typing import Any

import pytest

from llama4_pipeline.catalog import QuantizationPlan, load_catalog
from llama4_pipeline.llama4.architecture import Architecture
from llama4_pipeline.needs import Conversion, conversion_needs, position_table_bytes
from llama4_pipeline.stages import STAGES

GIB = 2**30
CATALOG = load_catalog()


@pytest.mark.parametrize("model", CATALOG)
def test_every_stage_of_every_model_has_its_needs(model: str) -> None:
    for stage in STAGES:
        need = CATALOG[model].needs(stage)
        assert need.memory_bytes >= GIB
        assert need.disk_bytes >= 0


@pytest.mark.parametrize(
    ("stage", "bits"), [("exported_graph", 32), ("fp16_graph", 16), ("int8_graph", 8.3), ("int4_graph", 4.7)]
)
def test_graphs_take_the_bits_of_their_weights_and_scales(stage: str, bits: float) -> None:
    parameters = CATALOG["scout"].architecture.parameters()
    assert CATALOG["scout"].needs(stage).disk_bytes == pytest.approx(parameters * bits / 8, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "numbers"),
    [({}, 129), ({"attn_temperature_tuning": False}, 128), ({"no_rope_layers": [0] * 48}, 1)],
)
def test_a_fused_graph_keeps_numbers_of_each_position(changes: dict[str, Any], numbers: int) -> None:
    architecture = Architecture.from_config(CATALOG["scout"].config | changes)
    for half, width in ((False, 4), (True, 2)):
        assert position_table_bytes(architecture, 1000, half=half) == 1000 * numbers * width


def test_graphs_with_the_same_weights_share_them() -> None:
    for stage in ("validated_graph", "simplified_graph", "optimized_graph", "report"):
        assert CATALOG["mini"].needs(stage).disk_bytes == 0


def test_a_checkpoint_takes_disk_only_where_it_is_written() -> None:
    sizes = {name: CATALOG[name].needs("checkpoint").disk_bytes for name in ("tiny", "7b", "scout")}
    assert sizes["7b"] == 0  # made on demand
    assert sizes["tiny"] == CATALOG["tiny"].architecture.parameters() * 4
    assert sizes["scout"] == CATALOG["scout"].architecture.parameters() * 2


def test_streamed_stages_do_not_grow_with_depth() -> None:
    assert CATALOG["scout"].needs("int4_graph").memory_bytes < 3 * GIB
    assert CATALOG["scout"].needs("int4_graph") != CATALOG["maverick"].needs("int4_graph")
    assert (
        CATALOG["scout"].needs("int4_graph").memory_bytes
        == CATALOG["maverick"].needs("int4_graph").memory_bytes
    )


def test_validation_needs_no_more_than_a_layer_of_a_large_model() -> None:
    for stage in ("validated_graph", "simplified_graph", "optimized_graph"):
        assert CATALOG["7b"].needs(stage).memory_bytes < 4 * GIB
        assert CATALOG["7b"].needs(stage).memory_bytes < CATALOG["70b"].needs(stage).memory_bytes < 16 * GIB


def test_a_running_model_holds_its_weights_and_its_cache() -> None:
    model = CATALOG["7b"]
    cache = model.architecture.kv_cache_bytes((128 + 16) * 8)
    weights = model.architecture.parameters() * 2
    assert model.needs("pytorch_baseline").memory_bytes == GIB + weights + cache


def test_on_a_gpu_the_weights_lie_in_its_memory() -> None:
    need = CATALOG["7b"].needs("pytorch_baseline")
    assert need.on_gpu().memory_bytes == GIB
    assert need.on_gpu().device_bytes == need.memory_bytes - GIB
    assert CATALOG["7b"].needs("int4_graph").device_bytes == 0


@pytest.mark.parametrize(("vectors", "width"), [(("avx2",), 4), (("avx2", "avx512f"), 2)])
def test_experts_run_in_float32_where_pytorch_has_no_kernel_for_them(
    vectors: tuple[str, ...], width: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    monkeypatch.setattr("llama4_pipeline.device.cpu_features", lambda: vectors)
    need = CATALOG["mini"].needs("pytorch_baseline")
    in_float16 = need.device_bytes  # on a GPU, whatever the processor
    assert need.memory_bytes == GIB + in_float16 + CATALOG["mini"].architecture.parameters() * (width - 2)


def test_trained_weights_are_judged_beside_their_float32_original(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llama4_pipeline.device.cpu_features", lambda: ("avx2", "avx512f"))
    random = CATALOG["mini"]
    trained = random.model_copy(update={"source": "local:here"})
    parameters = random.architecture.parameters()
    assert trained.needs("pytorch_baseline").memory_bytes == GIB + parameters * (2 + 4)
    assert trained.needs("benchmarks").memory_bytes == GIB + parameters * (4 + 4)
    assert trained.needs("benchmarks").device_bytes == parameters * (2 + 4)
    assert random.needs("benchmarks").memory_bytes < GIB + parameters


def test_training_for_a_precision_needs_the_model_five_times() -> None:
    plain = CATALOG["mini"]
    trained = plain.model_copy(update={"quantization": QuantizationPlan(int4="qat")})
    assert trained.needs("int8_graph") == plain.needs("int8_graph")
    assert trained.needs("int4_graph").memory_bytes == pytest.approx(1.014e9 * 20 + GIB, rel=0.01)
    plan = QuantizationPlan(compare=("int4 rtn", "int4 qat"))
    compared = plain.model_copy(update={"quantization": plan, "source": "local:here"})
    reference = plain.architecture.parameters() * 4
    memory = compared.needs("quantization_tradeoff").memory_bytes
    assert memory == trained.needs("int4_graph").memory_bytes + reference
    assert compared.needs("datasets").memory_bytes == pytest.approx(1.014e9 * 8 + GIB, rel=0.01)
    assert plain.needs("datasets").memory_bytes == GIB


def test_a_tied_head_gets_four_bits_of_its_own() -> None:
    tied = CATALOG["mobilellm-r1-140m"].config
    assert tied["tie_word_embeddings"]
    disks = [
        conversion_needs(Architecture.from_config(config), Conversion("int4")).disk_bytes
        for config in (tied, tied | {"tie_word_embeddings": False})
    ]
    assert disks[0] == disks[1] > 164_594_552  # of the graph that `quantize` writes


def _mini(layers: int) -> Architecture:
    return Architecture.from_config(CATALOG["mini"].config | {"num_hidden_layers": layers})


# What `quantize` was seen to take for two layers of mini, a float32 graph of 738 MB, on 32,768 tokens.
@pytest.mark.parametrize(
    ("conversion", "peak_bytes", "disk_bytes"),
    [
        (Conversion("int4", "rtn"), 0.59e9, 0.117e9),
        (Conversion("int4", "gptq", calibrated=True), 2.84e9, 0.117e9),
        (Conversion("int4", "mixed", calibrated=True), 2.84e9, 0.11e9),
        (Conversion("int8", "qdq-dynamic"), 2.73e9, 1.71e9),
        (Conversion("int8", "qdq-static", calibrated=True), 2.79e9, 1.71e9),
    ],
)
def test_needs_are_a_little_above_what_was_measured(
    conversion: Conversion, peak_bytes: float, disk_bytes: float
) -> None:
    need = conversion_needs(_mini(layers=2), conversion)
    assert peak_bytes <= need.memory_bytes <= peak_bytes + 1.2 * GIB
    assert disk_bytes <= need.disk_bytes <= 1.2 * disk_bytes


def test_calibration_does_not_grow_with_depth_and_sensitivity_does() -> None:
    def memory(method: str, layers: int) -> int:
        return conversion_needs(_mini(layers), Conversion("int4", method, calibrated=True)).memory_bytes

    assert memory("gptq", 16) == memory("gptq", 2)
    whole = [_mini(layers).parameters() * 4 for layers in (64, 16)]
    assert memory("mixed", 64) - memory("mixed", 16) == whole[0] - whole[1]


def test_training_writes_a_checkpoint_beside_the_graph() -> None:
    plain, trained = (conversion_needs(_mini(2), Conversion("int4", method)) for method in ("rtn", "qat"))
    assert trained.disk_bytes - plain.disk_bytes == _mini(2).parameters() * 4


@pytest.mark.parametrize("method", ["rtn", "mixed"])
def test_a_graph_for_cuda_stands_beside_its_float32_form(method: str) -> None:
    here, there = (
        conversion_needs(_mini(2), Conversion("int4", method, device=name)) for name in ("cpu", "cuda")
    )
    assert there.disk_bytes == 2 * here.disk_bytes
    [tiny, on_gpu] = (CATALOG["tiny"].needs("int4_graph", device=name) for name in ("cpu", "cuda"))
    assert on_gpu.disk_bytes == 2 * tiny.disk_bytes


def test_a_comparison_takes_the_disk_of_its_largest_graph() -> None:
    need = CATALOG["tiny"].needs("quantization_tradeoff")
    assert need.disk_bytes == CATALOG["tiny"].needs("int8_graph").disk_bytes > 0


def test_the_default_method_of_a_model_counts() -> None:
    tiny = CATALOG["tiny"]
    plain = tiny.model_copy(update={"quantization": QuantizationPlan(int4="rtn")})
    assert tiny.needs("int4_graph").memory_bytes > plain.needs("int4_graph").memory_bytes
