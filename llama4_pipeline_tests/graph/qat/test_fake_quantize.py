"""What training sees is what round to nearest stores, bit for bit."""

from pathlib import Path

import numpy as np
import pytest
import torch

from llama4_pipeline.graph.external_data import load_graph
from llama4_pipeline.graph.qat.fake_quantize import fake_quantized, initializer_name, round_to_nearest
from llama4_pipeline.graph.quantize.plan import plan_schemes
from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.scheme import Scheme, dequantize
from llama4_pipeline.graph.quantize.weights import find_weights
from llama4_pipeline.llama4.checkpoint import Checkpoint


@pytest.mark.parametrize("inputs", [96, 72])  # 72 leaves a partial block
@pytest.mark.parametrize(
    "scheme",
    [Scheme(4, 32, True), Scheme(4, 32, False), Scheme(4, 16, False, "float16"), Scheme(8, 32, True)],
)
def test_rounds_as_the_graph_does(inputs: int, scheme: Scheme) -> None:
    rows = np.random.default_rng(0).standard_normal((50, inputs)).astype(np.float32)
    rows[3] = 0
    rows[4] = np.abs(rows[4])
    stored = dequantize(RoundToNearest().quantize(rows, scheme), scheme, inputs)
    np.testing.assert_array_equal(round_to_nearest(torch.from_numpy(rows), scheme).numpy(), stored)


def test_every_stored_weight_is_rounded_and_learns(checkpoint: Checkpoint, fused_graph: Path) -> None:
    weights = find_weights(load_graph(fused_graph).graph)[0]
    schemes = plan_schemes(weights, {weight.name: Scheme(4, 16, False) for weight in weights})
    model = checkpoint.load_model("float32")
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rounded = {}
    with fake_quantized(model, schemes):
        for path, module in model.named_modules():
            for name in getattr(module, "parametrizations", {}):
                rounded[f"{path}.{name}"] = getattr(module, name).detach().clone()
        model(torch.arange(3, 40)[None], use_cache=False).logits.square().mean().backward()
    assert {initializer_name(name) for name in rounded} == schemes.keys()
    for name, value in rounded.items():
        assert 0 < (value - before[name]).abs().max() < 0.5 * before[name].abs().max(), name
    for name in (name for name in rounded if ".experts." in name):
        for seen, expert in zip(rounded[name], before[name].numpy(), strict=True):  # [in, out]
            stored = RoundToNearest().quantize(np.ascontiguousarray(expert.T), schemes[name])
            np.testing.assert_array_equal(seen.T, dequantize(stored, schemes[name], len(expert)), name)
    parameters = dict(model.named_parameters())
    assert parameters.keys() == before.keys()
    for name, parameter in parameters.items():
        assert torch.equal(parameter, before[name]), name
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, name
