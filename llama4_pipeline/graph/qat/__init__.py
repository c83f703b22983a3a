"""Quantization-aware training: the checkpoint learns to be rounded, then leaves through the stages that any other does.

In PyTorch every weight that the graph will store in few bits is seen as round to nearest stores it, bit for bit; what
is trained are the numbers that are rounded. So the result is a checkpoint, and its `rtn` graph is the trained one.
"""

import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from llama4_pipeline.errors import InputError
from llama4_pipeline.graph.convert import require_convertible
from llama4_pipeline.graph.external_data import load_fused_graph
from llama4_pipeline.graph.one_stream import export_in_one_stream
from llama4_pipeline.graph.quantize import Precision, preset_schemes, preset_weights
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.plan import DeviceName
from llama4_pipeline.graph.quantize.rtn import RoundToNearest
from llama4_pipeline.graph.quantize.weights import find_weights
from llama4_pipeline.llama4.checkpoint import Checkpoint
from llama4_pipeline.metadata import exported_context
from llama4_pipeline.methods import QAT

if TYPE_CHECKING:
    from llama4_pipeline.graph.qat.training import QatPlan


@dataclass(frozen=True)
class QatReport:
    """What training and the quantization behind it did.

    Attributes:
        quantize: of the trained checkpoint, as `QuantizeReport.to_json` has it.
        steps: updates of the weights.
        divergence_before: of the rounded model from the float one, nats per token, in the first step.
        divergence_after: the same over the last tenth of the steps.
        training_seconds: wall time of the training alone.
    """

    quantize: dict[str, Any]
    steps: int
    divergence_before: float
    divergence_after: float
    training_seconds: float

    def to_json(self) -> dict[str, Any]:
        """The quantization's report, the training among it."""
        training = {name: value for name, value in asdict(self).items() if name != "quantize"}
        return self.quantize | {"method": QAT, "training": training}


def quantize_aware(
    checkpoint: Checkpoint,
    graph: Path,
    out: Path,
    *,
    precision: Precision,
    calibration: Calibration,
    device: DeviceName = "cpu",
    plan: "QatPlan | None" = None,
) -> QatReport:
    """Trains a checkpoint for a precision and writes the quantized graph of the result.

    The model, its float original and Adam's moments are in memory: 20 bytes a parameter.

    Args:
        checkpoint: what `graph` was made from; it stays as it is.
        graph: directory of the fused float32 graph: its opset, its context, and which weights it stores.
        out: directory to write.
        precision: "int8" or "int4".
        calibration: texts to learn on.
        device: whose kernels are to run the written graph.
        plan: how long and how fast; the default is for the embedded model.

    Raises:
        InputError: the graph is not fused, is in float16 or quantized already or has its cache in 8 bits, or was made
            from another architecture.
    """
    from llama4_pipeline.graph.qat.fake_quantize import initializer_name
    from llama4_pipeline.graph.qat.training import QatPlan, train_quantized

    float_graph = load_fused_graph(graph)
    require_convertible(float_graph, graph)
    stored = {initializer_name(name) for name in checkpoint.architecture.checkpoint_tensors()}
    if strange := sorted({weight.name for weight in find_weights(float_graph.graph)[0]} - stored):
        raise InputError(f"{graph} has {strange[0]}, {checkpoint.directory} has not: give its own checkpoint")
    weights = preset_weights(float_graph.graph, precision)[0]
    schemes = preset_schemes(weights, precision, device=device)
    plan = plan or QatPlan()
    model = checkpoint.load_model("float32")
    start = time.monotonic()
    divergence = train_quantized(model, schemes, calibration, plan)
    seconds = time.monotonic() - start
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out, prefix=".trained-") as trained:
        model.save_pretrained(trained)
        checkpoint.copy_sidecars(Path(trained))
        reports = export_in_one_stream(
            Checkpoint.open(trained),
            out,
            form="fused",
            precision=precision,
            max_context=exported_context(float_graph.metadata_props),
            opset=float_graph.opset_imports[""],
            method=RoundToNearest.name,
            device=device,
        )
    last = divergence[-max(len(divergence) // 10, 1) :]
    return QatReport(reports["quantize"], plan.steps, divergence[0], sum(last) / len(last), seconds)
