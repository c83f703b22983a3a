"""Schemes fitted to the operators."""

import numpy as np
import onnx_ir as ir
import pytest

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.quantize.plan import plan_schemes
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.graph.quantize.weights import Layout, Weight


def _weight(
    name: str, layout: Layout, *shape: int, node: ir.Node | None = None, half: bool = False
) -> Weight:
    tensor = ir.tensor(np.zeros(shape, np.float16 if half else np.float32), name=name)
    value = ir.Value(name=name, type=ir.TensorType(tensor.dtype), const_value=tensor)
    return Weight(value, layout, (node or ir.node("MatMul", []),))


@pytest.mark.parametrize(
    ("width", "wished", "block"),
    [
        (128, 64, 64),
        (96, 64, 32),  # 72 bytes a row; two blocks of 64 have 80
        (72, 64, 32),  # no block divides it
        (576, 256, 128),  # 360 bytes, as blocks of 64 have, which divide it
        (960, 256, 256),  # 544 bytes; blocks of 64, which divide it, have 600
    ],
)
def test_matmul_takes_the_block_of_which_least_is_read(width: int, wished: int, block: int) -> None:
    weight = _weight("w", Layout.INPUTS_FIRST, width, 8)
    assert plan_schemes([weight], {"w": Scheme(4, wished, True)})["w"].block_size == block


def test_cuda_has_no_kernel_for_larger_blocks_than_128() -> None:
    weight = _weight("w", Layout.INPUTS_FIRST, 1024, 8)
    half = _weight("half", Layout.INPUTS_FIRST, 1024, 8, half=True)
    wished = {"w": Scheme(4, 256, True), "half": Scheme(4, 256, True)}
    assert plan_schemes([weight], wished)["w"].block_size == 256
    assert plan_schemes([weight], wished, "cuda")["w"].block_size == 128
    assert plan_schemes([half], wished)["half"].block_size == 128


def test_experts_agree_on_block_and_take_float16_scales() -> None:
    node = ir.node("MoE", [])
    up = _weight("up", Layout.EXPERTS, 2, 8, 128, node=node)
    down = _weight("down", Layout.EXPERTS, 2, 128, 48, node=node)
    schemes = plan_schemes([up, down], {"up": Scheme(4, 64, True), "down": Scheme(4, 64, True)})
    assert schemes["up"] == schemes["down"] == Scheme(4, 16, True, "float16")


def test_experts_without_a_block_of_cuda_are_refused_for_it() -> None:
    node = ir.node("MoE", [])
    up = _weight("up", Layout.EXPERTS, 2, 8, 128, node=node)
    down = _weight("down", Layout.EXPERTS, 2, 128, 48, node=node)
    with pytest.raises(InputError, match=r"up: widths \[48, 128\] are not all multiples of 32.*QMoE on CUDA"):
        plan_schemes([up, down], {"up": Scheme(4, 64, True), "down": Scheme(4, 64, True)}, "cuda")
    with pytest.raises(InputError, match="QMoE on CUDA has no kernel for blocks of 16: ask for 32 or more"):
        plan_schemes([up, down], {"up": Scheme(4, 16, True), "down": Scheme(4, 16, True)}, "cuda")


def test_scales_follow_the_type_of_the_graph() -> None:
    weight = _weight("w", Layout.INPUTS_FIRST, 64, 8, half=True)
    assert plan_schemes([weight], {"w": Scheme(8, 64, True)})["w"].scale_dtype == "float16"


def test_table_without_a_block_is_refused() -> None:
    weight = _weight("table", Layout.ROWS_FIRST, 10, 40, node=ir.node("Gather", []))
    with pytest.raises(InputError, match=r"table: widths \[40\] are not all multiples of 16"):
        plan_schemes([weight], {"table": Scheme(4, 32, False)})
