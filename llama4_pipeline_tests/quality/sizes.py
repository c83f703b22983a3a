"""Size of the catalog's `mini` in each precision, embeddings included; no weight is made or read for it."""

from pathlib import Path

from llama4_pipeline.catalog import find_model
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.llama4.checkpoint import Checkpoint, write_synthetic_checkpoint
from llama4_pipeline.methods import DEFAULT_METHOD

MODEL = "mini"
LARGEST_SHARE = {"int8": 0.27, "int4": 0.16}


def measure_sizes(scratch: Path) -> dict[str, float]:
    """Bytes of all initializers over those of the float32 graph, by precision."""
    model = find_model(MODEL)
    write_synthetic_checkpoint(scratch / MODEL, model.config, model.seed, model.dtype)
    checkpoint = Checkpoint.open(scratch / MODEL, with_weights=False)
    shares = {}
    for precision in ("int8", "int4"):
        report = export_in_one_stream(
            checkpoint,
            scratch / precision,
            form="fused",
            precision=precision,
            max_context=model.max_context,
            method=DEFAULT_METHOD[precision],
            with_weights=False,
        )["quantize"]
        shares[precision] = report["bytes_after"] / report["bytes_before"]
    return shares


def size_faults(shares: dict[str, float]) -> list[str]:
    """The bounds that were missed."""
    return [
        f"{MODEL} {precision}: {share:.3f} of the float32 size, at most {LARGEST_SHARE[precision]} allowed"
        for precision, share in shares.items()
        if share > LARGEST_SHARE[precision]
    ]
