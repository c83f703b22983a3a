"""A hand-built graph with every kind of weight that quantisation meets: table, linear, router, experts, (tied) head."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from llama4_pipeline.graph.external_data import save_graph
from llama4_pipeline.metadata import FORM_KEY


@dataclass(frozen=True)
class Toy:
    """Sizes of the toy; with the defaults no long block divides the hidden width."""

    vocab: int = 80
    hidden: int = 96
    experts: int = 4
    intermediate: int = 64
    tied: bool = True
    half: bool = False

    def write(self, out: Path, seed: int = 0) -> Path:
        """Writes the graph directory: input_ids int64 [tokens] to logits [tokens, vocab]."""
        dtype = np.float16 if self.half else np.float32
        arrays = {
            name: array.astype(dtype) for name, array in self._weights(np.random.default_rng(seed)).items()
        }
        head = "head_t" if self.tied else "lm_head.weight"
        nodes = [
            helper.make_node("Gather", ["model.embed_tokens.weight", "input_ids"], ["x"]),
            helper.make_node("MatMul", ["x", "model.layers.0.self_attn.qkv_proj.weight"], ["q"]),
            helper.make_node("Mul", ["q", "model.norm.weight"], ["n"]),
            helper.make_node("MatMul", ["n", "model.layers.0.feed_forward.router.weight"], ["r"]),
            helper.make_node(
                "MoE",
                ["n", "r", "model.layers.0.experts.gate_up_proj", "", "model.layers.0.experts.down_proj"],
                ["m"],
                domain="com.microsoft",
                k=1,
                normalize_routing_weights=1,
                activation_type="swiglu",
                swiglu_fusion=1,
                activation_alpha=1.0,
                activation_beta=0.0,
            ),
            helper.make_node("Add", ["m", "n"], ["h"]),
        ]
        if self.tied:
            nodes.append(
                helper.make_node("Transpose", ["model.embed_tokens.weight"], ["head_t"], perm=[1, 0])
            )
        nodes.append(helper.make_node("MatMul", ["h", head], ["logits"]))
        element = TensorProto.FLOAT16 if self.half else TensorProto.FLOAT
        graph = helper.make_graph(
            nodes,
            "toy",
            [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["tokens"])],
            [helper.make_tensor_value_info("logits", element, ["tokens", self.vocab])],
            [numpy_helper.from_array(array, name) for name, array in arrays.items()],
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("com.microsoft", 1)],
            ir_version=10,
        )
        helper.set_model_props(model, {FORM_KEY: "fused"})
        save_graph(ir.serde.deserialize_model(model), out, share_weights=False)
        (out / "config.json").write_text('{"model_type": "toy"}')
        return out

    def _weights(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape) / np.sqrt(shape[-1])

        arrays = {
            "model.embed_tokens.weight": rng.standard_normal((self.vocab, self.hidden)),
            "model.layers.0.self_attn.qkv_proj.weight": normal(self.hidden, self.hidden),
            "model.norm.weight": 1 + 0.1 * rng.standard_normal(self.hidden),
            "model.layers.0.feed_forward.router.weight": normal(self.hidden, self.experts),
            "model.layers.0.experts.gate_up_proj": normal(self.experts, 2 * self.intermediate, self.hidden),
            "model.layers.0.experts.down_proj": normal(self.experts, self.hidden, self.intermediate),
        }
        if not self.tied:
            arrays["lm_head.weight"] = normal(self.hidden, self.vocab)
        return arrays


def logits(graph: Path, input_ids: np.ndarray) -> np.ndarray:
    """Runs a toy graph."""
    import onnxruntime as ort

    session = ort.InferenceSession(str(graph / "model.onnx"), providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": input_ids})[0]


def operators(graph: Path) -> list[str]:
    """Operator of each node, in order."""
    return [node.op_type for node in onnx.load(graph / "model.onnx", load_external_data=False).graph.node]
