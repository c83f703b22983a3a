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


def test_matmul_takes_the_wished_block_or_one_that_divides() -> None:
    wish = Scheme(4, 64, False)
    weights = [_weight(str(k), Layout.INPUTS_FIRST, k, 8) for k in (128, 96, 72)]
    schemes = plan_schemes(weights, {weight.name: wish for weight in weights})
    assert [schemes[name].block_size for name in ("128", "96", "72")] == [64, 32, 64]  # 72: a partial block


def test_experts_agree_on_block_and_take_float16_scales() -> None:
    node = ir.node("MoE", [])
    up = _weight("up", Layout.EXPERTS, 2, 8, 128, node=node)
    down = _weight("down", Layout.EXPERTS, 2, 128, 48, node=node)
    schemes = plan_schemes([up, down], {"up": Scheme(4, 64, True), "down": Scheme(4, 64, True)})
    assert schemes["up"] == schemes["down"] == Scheme(4, 16, True, "float16")


def test_scales_follow_the_type_of_the_graph() -> None:
    weight = _weight("w", Layout.INPUTS_FIRST, 64, 8, half=True)
    assert plan_schemes([weight], {"w": Scheme(8, 64, True)})["w"].scale_dtype == "float16"


def test_table_without_a_block_is_refused() -> None:
    weight = _weight("table", Layout.ROWS_FIRST, 10, 40)
    with pytest.raises(InputError, match=r"table: widths \[40\] are not all multiples of 16"):
        plan_schemes([weight], {"table": Scheme(4, 32, False)})
