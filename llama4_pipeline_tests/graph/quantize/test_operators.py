"""What the quantised operators of ONNX Runtime's CPU compute: each against float math on the dequantised weights."""

import itertools
from collections.abc import Mapping
from typing import Literal

import numpy as np
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Quantised, Scheme, dequantize, pack

SCHEMES = [
    Scheme(bits, block_size, symmetric)
    for bits, block_size, symmetric in itertools.product((4, 8), (16, 32, 64, 128), (True, False))
]
EXACT = 2e-6  # float32 rounding, relative to the largest output
# Largest error of activations rounded to int8 by block; its root mean square stays below 1e-2.
INT8_ACTIVATIONS = 4e-2


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("inputs", [256, 200])  # 200 leaves a partial block at every size but 8
@pytest.mark.parametrize("tokens", [1, 7])
def test_matmul_nbits(scheme: Scheme, inputs: int, tokens: int) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((tokens, inputs)).astype(np.float32)
    quantised, weight = _quantised(rng.standard_normal((37, inputs)), scheme)
    arrays = {
        "codes": pack(quantised.codes, scheme.bits),
        "scales": quantised.scales,
        **_zero_points(quantised, scheme),
    }
    for level, tolerance in ((0, EXACT), (4, INT8_ACTIVATIONS)):
        attributes = {
            "K": inputs,
            "N": 37,
            "bits": scheme.bits,
            "block_size": scheme.block_size,
            "accuracy_level": level,
        }
        y = _run("MatMulNBits", ["x", *arrays], attributes, arrays, {"x": x})
        _assert_close(y, x @ weight.T, tolerance)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
def test_qmoe(scheme: Scheme, scale_dtype: Literal["float32", "float16"]) -> None:
    """8 bits round activations at every level; float16 scales go with float32 activations."""
    scheme = Scheme(scheme.bits, scheme.block_size, scheme.symmetric, scale_dtype)
    rng = np.random.default_rng(1)
    experts, hidden, intermediate, tokens = 4, 256, 128, 9
    x = rng.standard_normal((tokens, hidden)).astype(np.float32)
    router = rng.standard_normal((tokens, experts)).astype(np.float32)
    up = [_quantised(rng.standard_normal((2 * intermediate, hidden)) / 16, scheme) for _ in range(experts)]
    down = [_quantised(rng.standard_normal((hidden, intermediate)) / 16, scheme) for _ in range(experts)]
    arrays = _expert_arrays("fc1", up, scheme) | _expert_arrays("fc2", down, scheme)
    inputs = ["x", "router", "fc1.codes", "fc1.scales", "", "fc2.codes", "fc2.scales"]
    if not scheme.symmetric:
        inputs += ["", "", "", "", "fc1.zero_points", "fc2.zero_points"]
    expected = np.stack(
        [_swiglu(x[t], up[e][1], down[e][1]) for t, e in enumerate(router.argmax(axis=1))],
    )
    for level in (0, 4):
        attributes = {
            "k": 1,
            "normalize_routing_weights": 1,
            "activation_type": "swiglu",
            "swiglu_fusion": 1,
            "activation_alpha": 1.0,
            "activation_beta": 0.0,
            "expert_weight_bits": scheme.bits,
            "block_size": scheme.block_size,
            "accuracy_level": level,
            "weights_prepacked": 0,
        }
        y = _run("QMoE", inputs, attributes, arrays, {"x": x, "router": router})
        _assert_close(y, expected, EXACT if scheme.bits == 4 and level == 0 else 2 * INT8_ACTIVATIONS)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gather_block_quantized(scheme: Scheme) -> None:
    rng = np.random.default_rng(2)
    quantised, table = _quantised(rng.standard_normal((50, 256)), scheme)
    arrays = {
        "codes": pack(quantised.codes, scheme.bits).reshape(50, -1),
        "scales": quantised.scales,
        **_zero_points(quantised, scheme),
    }
    attributes = {"bits": scheme.bits, "block_size": scheme.block_size, "quantize_axis": 1, "gather_axis": 0}
    ids = rng.integers(0, 50, (2, 5))
    y = _run("GatherBlockQuantized", ["codes", "ids", *list(arrays)[1:]], attributes, arrays, {"ids": ids})
    np.testing.assert_array_equal(y, table[ids])


def _quantised(weight: np.ndarray, scheme: Scheme) -> tuple[Quantised, np.ndarray]:
    quantised = RoundToNearest().quantize(weight.astype(np.float32), scheme)
    return quantised, dequantize(quantised, scheme, weight.shape[1])


def _zero_points(quantised: Quantised, scheme: Scheme) -> dict[str, np.ndarray]:
    return {} if quantised.zero_points is None else {"zero_points": pack(quantised.zero_points, scheme.bits)}


def _expert_arrays(
    name: str, experts: list[tuple[Quantised, np.ndarray]], scheme: Scheme
) -> dict[str, np.ndarray]:
    matrices = [quantised for quantised, _ in experts]
    codes = np.stack([pack(matrix.codes, scheme.bits) for matrix in matrices])
    arrays = {
        f"{name}.codes": codes.reshape(*codes.shape[:2], -1),
        f"{name}.scales": np.stack([matrix.scales for matrix in matrices]),
    }
    if not scheme.symmetric:
        zero_points = [_zero_points(matrix, scheme)["zero_points"] for matrix in matrices]
        arrays[f"{name}.zero_points"] = np.stack(zero_points)
    return arrays


def _swiglu(x: np.ndarray, up: np.ndarray, down: np.ndarray) -> np.ndarray:
    gate, linear = (up @ x)[0::2], (up @ x)[1::2]
    return down @ (gate / (1 + np.exp(-gate)) * linear)


def _run(
    operator: str,
    inputs: list[str],
    attributes: Mapping[str, object],
    arrays: Mapping[str, np.ndarray],
    feeds: Mapping[str, np.ndarray],
) -> np.ndarray:
    node = helper.make_node(operator, inputs, ["y"], domain="com.microsoft", **attributes)
    graph = helper.make_graph(
        [node],
        operator,
        [
            helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)
            for name, array in feeds.items()
        ],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, dict(feeds))[0])


def _assert_close(actual: np.ndarray, expected: np.ndarray, tolerance: float) -> None:
    error = np.abs(actual - expected)
    assert error.max() <= tolerance * np.abs(expected).max()
    assert np.linalg.norm(error) <= tolerance * np.linalg.norm(expected)
