"""The methods of quantization by name: what each needs and gives. Imports no heavy library."""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from llama4_pipeline.errors import InputError

MIXED, QAT, QDQ_DYNAMIC, QDQ_STATIC = "mixed", "qat", "qdq-dynamic", "qdq-static"


@dataclass(frozen=True)
class Terms:
    """What a method asks for and what it gives.

    Attributes:
        does: in one phrase.
        precisions: that it can make.
        calibration: whether it needs text, can use it, or has no use for it.
        checkpoint: whether it needs the PyTorch original.
        block_size: whether it takes one.
        cuda: whether it makes graphs that CUDA runs.
    """

    does: str
    precisions: tuple[str, ...] = ("int8", "int4")
    calibration: Literal["needed", "used", "unused"] = "needed"
    checkpoint: bool = False
    block_size: bool = True
    cuda: bool = True

    @property
    def needs_text(self) -> bool:
        """Whether it cannot do without calibration text."""
        return self.calibration == "needed"


METHODS: Mapping[str, Terms] = MappingProxyType(
    {
        "rtn": Terms("round to nearest; a block's range sets its scale", calibration="unused"),
        "k_quant": Terms(
            "searches the scale and zero point of each block for the least squared error", calibration="used"
        ),
        "gptq": Terms(
            "inputs make up for each other's errors and for layers before, by the calibration tokens of each expert"
        ),
        MIXED: Terms(
            "gptq, bits and blocks by measured sensitivity, within the size of the other methods",
            precisions=("int4",),
            block_size=False,
        ),
        QAT: Terms(
            "trains the checkpoint to say rounded what it says unrounded", checkpoint=True, block_size=False
        ),
        QDQ_DYNAMIC: Terms(
            "ONNX Runtime's own quantizer, activations measured on every call; experts stay in float32",
            precisions=("int8",),
            calibration="unused",
            block_size=False,
            cuda=False,
        ),
        QDQ_STATIC: Terms(
            "ONNX Runtime's own quantizer, activations measured once; experts stay in float32",
            precisions=("int8",),
            block_size=False,
            cuda=False,
        ),
    }
)
STATISTICS_TOKENS = 1 << 15  # of the calibration text that second moments are taken from, at most
SENSITIVITY_TOKENS = 1 << 10  # that each weight's rounding alone is judged on, where bits are mixed
MINIMUM_TOKENS = 128  # that must reach a matrix, or a cache
BLOCK_SIZES = (16, 32, 64, 128, 256)  # inputs to a scale that ONNX Runtime's kernels take
DEFAULT_METHOD: Mapping[str, str] = MappingProxyType({"int8": "k_quant", "int4": "k_quant"})


def choose_method(
    method: str | None,
    precision: str,
    *,
    calibration: object | None,
    checkpoint: object | None = None,
    block_size: int | None = None,
    device: str | None = None,
) -> str:
    """The method of a quantization; refuses one that lacks what it needs or is given what it has no use for.

    Args:
        method: a name of `METHODS`; None takes the precision's default.
        precision: "int8" or "int4".
        calibration: text, or where it lies; looked at for None only, like the next.
        checkpoint: the PyTorch original.
        block_size: inputs that share a scale.
        device: "cpu" or "cuda", that is to run the graph.

    Raises:
        InputError: says what to give or to leave out.
    """
    if precision not in DEFAULT_METHOD:
        raise InputError(f"unknown precision {precision!r}: choose one of {', '.join(DEFAULT_METHOD)}")
    method = method or DEFAULT_METHOD[precision]
    terms = METHODS.get(method)
    if terms is None:
        raise InputError(f"unknown method {method!r}: choose one of {', '.join(METHODS)}")
    if precision not in terms.precisions:
        raise InputError(f"method {method} makes {' and '.join(terms.precisions)}, not {precision}")
    if device == "cuda" and not terms.cuda:
        raise InputError(
            f"method {method} makes graphs for the CPU: choose another for CUDA, as {DEFAULT_METHOD[precision]}"
        )
    if terms.needs_text and calibration is None:
        raise InputError(f"method {method} looks at the inputs of the weights: give text with --calibration")
    if terms.calibration == "unused" and calibration is not None:
        raise InputError(f"method {method} looks at weights only: leave out --calibration")
    if terms.checkpoint and checkpoint is None:
        raise InputError(f"method {method} trains the PyTorch original: give it with --checkpoint")
    if checkpoint is not None and not terms.checkpoint:
        raise InputError(f"method {method} has no use for the PyTorch original: leave out --checkpoint")
    if block_size is not None and not terms.block_size:
        raise InputError(f"method {method} has no use for a block size: leave out --block-size")
    return method
