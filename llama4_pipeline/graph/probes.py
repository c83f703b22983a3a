"""Names for the values that validation looks at: one per block and layer, the same in every form of the graph.

layers.{i}.attention_norm       input of the attention                       [B, S, H]
layers.{i}.attention            its output, behind o_proj                    [B, S, H]
layers.{i}.attention_residual   residual stream behind it                    [B, S, H]
layers.{i}.feed_forward_norm    input of the feed-forward block              [B, S, H]
layers.{i}.router_logits        MoE layers                                   [B, S, E]
layers.{i}.experts              sum of the routed experts                    [B, S, H]
layers.{i}.shared_expert        MoE layers                                   [B, S, H]
layers.{i}.feed_forward         dense MLP, or experts and shared expert      [B, S, H]
layers.{i}.output               residual stream behind the layer             [B, S, H]
embedding, final_norm                                                        [B, S, H]
"""

import onnx_ir as ir

from llama4_pipeline.llama4.architecture import Architecture


def name_probes(model: ir.Model, architecture: Architecture) -> None:
    """Gives the blocks' values, and the nodes that make them, the names above.

    Raises:
        KeyError: the graph lacks a weight of the architecture.
    """
    users = {name: value.consumers()[0] for name, value in model.graph.initializers.items() if value.uses()}
    _name(users["model.embed_tokens.weight"].outputs[0], "embedding")
    for layer in architecture.layers:
        i, weights = layer.index, f"model.layers.{layer.index}"
        after_attention = users[f"{weights}.post_attention_layernorm.weight"]
        last = i + 1 == len(architecture.layers)
        after_layer = users["model.norm.weight" if last else f"model.layers.{i + 1}.input_layernorm.weight"]
        named = {
            "attention_norm": users[f"{weights}.self_attn.qkv_proj.weight"].inputs[0],
            "attention": after_attention.inputs[0],
            "feed_forward_norm": after_attention.outputs[0],
            "attention_residual": after_attention.outputs[1],
            "feed_forward": after_layer.inputs[0],
            "output": after_layer.outputs[1],
        }
        if layer.experts:
            block = f"{weights}.feed_forward"
            named["router_logits"] = users[f"{block}.router.weight"].outputs[0]
            named["experts"] = users[f"{block}.experts.gate_up_proj"].outputs[0]
            named["shared_expert"] = users[f"{block}.shared_expert.down_proj.weight"].outputs[0]
        for block_name, value in named.items():
            assert value is not None
            _name(value, f"layers.{i}.{block_name}")
    _name(users["model.norm.weight"].outputs[0], "final_norm")


def _name(value: ir.Value, name: str) -> None:
    value.name = name
    node = value.producer()
    if node is not None:
        node.name = name
