"""Trains a model to say under rounding what it says without: distillation, the checkpoint as its own teacher."""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional as F
from torch.nn.utils import parametrize
from transformers import Llama4ForCausalLM

from llama4_pipeline.graph.qat.fake_quantize import fake_quantized
from llama4_pipeline.graph.quantize.calibration import Calibration
from llama4_pipeline.graph.quantize.scheme import Scheme
from llama4_pipeline.llama4.sparse_experts import sparse_experts
from llama4_pipeline.progress import Progress


@dataclass(frozen=True)
class QatPlan:
    """How long and how fast.

    Attributes:
        steps: updates of the weights.
        rows: of text a step.
        row_tokens: of one row; texts follow each other in it.
        learning_rate: of Adam at its height; it rises over the first tenth and falls linearly to zero.
        seed: of the order of the texts.
    """

    steps: int = 240
    rows: int = 2
    row_tokens: int = 512
    learning_rate: float = 1e-4
    seed: int = 0


def train_quantized(
    model: Llama4ForCausalLM, schemes: Mapping[str, Scheme], calibration: Calibration, plan: QatPlan
) -> list[float]:
    """Updates the model's float weights in place, so that their rounded form predicts what they predicted before.

    Args:
        model: float32, what it says now is what it learns to say rounded.
        schemes: by name of the graph's initializer.
        calibration: the texts.
        plan: how long and how fast.

    Returns:
        The divergence from the unrounded model at every step, nats per token.
    """
    teacher = copy.deepcopy(model).eval()
    batches = _batches(calibration, plan)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(parameters, lr=plan.learning_rate, betas=(0.9, 0.98))
    losses = []
    model.train()
    with (
        sparse_experts(teacher) as routed_before,
        sparse_experts(model) as routed,
        fake_quantized(model, schemes),
        Progress("train rounded", plan.steps, "steps") as progress,
    ):
        for step in range(plan.steps):
            for group in optimizer.param_groups:
                group["lr"] = plan.learning_rate * _share_of_rate(step, plan.steps)
            tokens = next(batches)
            with torch.no_grad():
                expected = teacher(tokens, use_cache=False).logits.log_softmax(-1)
            with parametrize.cached():
                said = model(tokens, use_cache=False).logits.log_softmax(-1)
                loss = F.kl_div(said, expected, log_target=True, reduction="none").sum(-1).mean()
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            routed_before.clear()
            routed.clear()
            losses.append(loss.item())
            progress.advance(note=f"divergence {losses[-1]:.5f}")
    model.eval()
    return losses


def _share_of_rate(step: int, steps: int) -> float:
    return min((step + 1) / max(steps // 10, 1), (steps - step) / (0.9 * steps), 1.0)


def _batches(calibration: Calibration, plan: QatPlan) -> Iterator[torch.Tensor]:
    """Rows of tokens [rows, tokens] without end: the texts one after the other, in another order each time."""
    order = np.random.default_rng(plan.seed)
    count = plan.rows * plan.row_tokens
    stream = np.zeros(0, np.int64)
    while True:
        while len(stream) < count:
            texts = [calibration.sequences[i] for i in order.permutation(len(calibration.sequences))]
            stream = np.concatenate([stream, *texts])
        yield torch.from_numpy(stream[:count].copy()).view(plan.rows, plan.row_tokens)
        stream = stream[count:]
