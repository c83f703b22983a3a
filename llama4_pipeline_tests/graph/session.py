"""Runs a graph directory with numpy arrays, as any user of ONNX Runtime would, and transformers beside it."""

from pathlib import Path

import numpy as np
import onnxruntime
import torch

from llama4_pipeline.llama4.checkpoint import Checkpoint

Cache = list[np.ndarray]


class Session:
    """A graph and its cache names; inputs and outputs are plain arrays."""

    def __init__(self, graph: Path) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            graph / "model.onnx", options, providers=["CPUExecutionProvider"]
        )
        self._caches = [i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")]

    def empty(self, batch: int) -> Cache:
        """A cache of no tokens: a chunk's in place, any other to be grown."""
        chunk_size = int(self._session.get_modelmeta().custom_metadata_map.get("llama4.chunk_size", 0))
        shapes = (cache.shape for cache in self._caches)
        return [
            np.zeros((batch, heads, chunk_size if room == "chunk" else 0, head_dim), np.float32)
            for _, heads, room, head_dim in shapes
        ]

    def run(self, ids: np.ndarray, mask: np.ndarray, past: Cache, keep: int = 0) -> tuple[np.ndarray, Cache]:
        """Logits [B, kept, V] of new tokens `ids` [B, S] under `mask` [B, T], and the grown cache."""
        feeds = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": positions(mask)[:, -ids.shape[1] :],
            "logits_to_keep": np.array(keep, np.int64),
            **{cache.name: value for cache, value in zip(self._caches, past, strict=True)},
        }
        logits, *present = self._session.run(None, feeds)
        return logits, present

    def in_pieces(self, ids: np.ndarray, mask: np.ndarray, lengths: list[int]) -> np.ndarray:
        """Logits [B, T, V] of a sequence fed in pieces of these lengths."""
        past, logits, start = self.empty(len(ids)), [], 0
        for length in lengths:
            end = start + length
            piece, past = self.run(ids[:, start:end], mask[:, :end], past)
            logits.append(piece)
            start = end
        return np.concatenate(logits, axis=1)


def positions(mask: np.ndarray) -> np.ndarray:
    """Positions as `generate` of transformers counts them."""
    return np.maximum(mask.cumsum(axis=1) - 1, 0)


def reference_logits(checkpoint: Checkpoint, ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Logits [B, T, V] of transformers in one pass."""
    with torch.no_grad():
        return (
            checkpoint.load_model()(
                torch.tensor(ids),
                attention_mask=torch.tensor(mask),
                position_ids=torch.tensor(positions(mask)),
            )
            .logits.float()
            .numpy()
        )


def random_ids(checkpoint: Checkpoint, batch: int, length: int) -> np.ndarray:
    """Token ids [batch, length]."""
    return np.random.default_rng(7).integers(3, checkpoint.architecture.vocab_size, (batch, length))


def relative_error(logits: np.ndarray, reference: np.ndarray, mask: np.ndarray) -> float:
    """Largest error at real tokens over the standard deviation of the reference."""
    real = mask.astype(bool)
    return float(np.abs(logits - reference)[real].max() / reference[real].std())
