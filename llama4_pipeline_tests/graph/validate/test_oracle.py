import numpy as np
import torch
from transformers import DynamicCache

from llama4_pipeline.graph.validate.causes import _attend, _attention_forms, _experts
from llama4_pipeline.graph.validate.oracle import Oracle
from llama4_pipeline.graph.validate.probes import LOGITS, probes_of
from llama4_pipeline.graph.validate.uses import make_case
from llama4_pipeline.llama4.checkpoint import Checkpoint

TOKENS = range(131)


def test_every_probe_is_read(checkpoint: Checkpoint) -> None:
    oracle = Oracle(checkpoint.load_model())
    case = make_case("decode", 20, 2, tokens=TOKENS, padding="left", max_context=64)

    values = list(oracle.run(case))

    for step, found in zip(case.steps, values, strict=True):
        assert set(found.values) == {probe.name for probe in probes_of(checkpoint.architecture)}
        assert all(value.shape[:2] == (2, step.sequence) for value in found.values.values())


def test_probes_add_up(checkpoint: Checkpoint) -> None:
    oracle = Oracle(checkpoint.load_model())
    (found,) = oracle.run(make_case("prefill", 20, 2, tokens=TOKENS, max_context=64))
    v = {name.removeprefix("layers.2."): value for name, value in found.values.items()}

    np.testing.assert_allclose(v["feed_forward"], v["experts"] + v["shared_expert"], atol=1e-5)
    np.testing.assert_allclose(v["output"], v["attention_residual"] + v["feed_forward"], atol=1e-5)
    np.testing.assert_allclose(v["attention_residual"], v["layers.1.output"] + v["attention"], atol=1e-5)


def test_logits_are_those_of_a_call_without_hooks(checkpoint: Checkpoint) -> None:
    model = checkpoint.load_model()
    case = make_case("prefill", 20, 1, tokens=TOKENS, max_context=64)
    (found,) = Oracle(model).run(case)

    with torch.no_grad():
        expected = model(torch.from_numpy(case.steps[0].input_ids)).logits.numpy()
    np.testing.assert_allclose(found.values[LOGITS], expected, atol=1e-5)


def test_a_cache_that_drops_what_chunked_layers_no_longer_see_gives_the_same(checkpoint: Checkpoint) -> None:
    model = checkpoint.load_model()
    case = make_case("second turn", 60, 2, tokens=TOKENS, max_context=64)
    cropped = DynamicCache(config=model.config)

    for step, found in zip(case.steps, Oracle(model).run(case), strict=True):
        logits = Oracle(model).forward(step, cropped).numpy()
        np.testing.assert_allclose(logits, found.values[LOGITS], atol=2e-4)


def test_the_right_forms_of_attention_and_experts_are_those_of_transformers(checkpoint: Checkpoint) -> None:
    """A cause is only as good as the computation that it changes."""
    model = checkpoint.load_model()
    case = make_case("prefill", 40, 3, tokens=TOKENS, padding="left", positions="scattered", max_context=64)
    (found,) = Oracle(model).run(case)
    step = case.steps[0]

    with torch.no_grad():
        for layer in checkpoint.architecture.layers:
            module, prefix = model.model.layers[layer.index], f"layers.{layer.index}."
            given = torch.from_numpy(found.values[prefix + "attention_norm"])
            right, _ = _attention_forms(module.self_attn, layer.chunk_size)
            attended = _attend(module.self_attn, model, given, step, layer.chunk_size, right).numpy()
            expected = found.values[prefix + "attention"]
            np.testing.assert_allclose(attended[step.real], expected[step.real], atol=1e-4)
            if layer.is_moe:
                given = torch.from_numpy(found.values[prefix + "feed_forward_norm"])
                routed = _experts(module.feed_forward, given).numpy()
                np.testing.assert_allclose(routed, found.values[prefix + "experts"], atol=1e-4)
