"""What stages need follows from the architecture."""

import pytest

from llama4_pipeline.catalog import QuantizationPlan, load_catalog
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


def test_training_for_a_precision_needs_the_model_five_times() -> None:
    plain = CATALOG["mini"]
    trained = plain.model_copy(update={"quantization": QuantizationPlan(int4="qat")})
    assert trained.needs("int8_graph") == plain.needs("int8_graph")
    assert trained.needs("int4_graph").memory_bytes == pytest.approx(1.014e9 * 20 + GIB, rel=0.01)
    plan = QuantizationPlan(compare=("int4 rtn", "int4 qat"))
    compared = plain.model_copy(update={"quantization": plan, "source": "local:here"})
    assert compared.needs("quantization_tradeoff").memory_bytes == trained.needs("int4_graph").memory_bytes
    assert compared.needs("datasets").memory_bytes == pytest.approx(1.014e9 * 8 + GIB, rel=0.01)
    assert plain.needs("datasets").memory_bytes == GIB
