from llama4_pipeline.report.plots import to_png, to_svg
from llama4_pipeline.report.sensitivity import draw_sensitivity

_REPORT = {
    "sensitivity": {
        "model.embed_tokens.weight": 5e-3,
        "model.layers.0.self_attn.qkv_proj.weight": 2e-3,
        "model.layers.0.feed_forward.experts.gate_up_proj": 1e-3,
        "model.layers.1.feed_forward.shared_expert.down_proj.weight": 0.0,
    },
    "expert_sensitivity": {"model.layers.0.feed_forward.experts.gate_up_proj": [4e-4, 1e-4, 3e-4]},
}


def test_every_weight_and_every_expert_has_its_cell():
    figure = draw_sensitivity(_REPORT)
    weights, experts, _ = figure.axes
    assert [label.get_text() for label in weights.get_yticklabels()] == ["outside", "layer 0", "layer 1"]
    names = [label.get_text() for label in weights.get_xticklabels()]
    assert names == ["embedding", "qkv", "experts", "shared_expert down"]
    cells = weights.collections[0].get_array()
    assert cells[1, 1] == 2e-3
    assert cells.count() == 4
    assert experts.collections[0].get_array().tolist() == [[4e-4, 1e-4, 3e-4]]


def test_it_is_a_small_png_and_an_svg_in_the_ink_of_the_page():
    figure = draw_sensitivity(_REPORT)
    assert len(to_png(figure)) < 100_000
    assert "#123456" not in to_svg(figure)
    assert "layer 1" in to_svg(figure)


def test_nothing_measured_gives_no_picture():
    assert draw_sensitivity({}) is None
    assert draw_sensitivity({"sensitivity": {"lm_head.weight": 0.0}}) is None
