"""An engine that others are held against: what it said once, it is not made to compute again."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from llama4_pipeline.runtime.decoder import EMPTY_MASK, Decoder


class RememberedDecoder:
    """Answers from disk where it was asked the same before; implements `Decoder` for one `forward` after a `reset`.

    Logits are read-only maps of files, so that a long text takes as much memory as a short one.

    Args:
        decoder: computes what was not asked yet.
        scratch: where the files lie, in a directory that `close` removes; by default among temporary files.
    """

    def __init__(self, decoder: Decoder, scratch: Path | None = None) -> None:
        self.engine, self.vocab_size = decoder.engine, decoder.vocab_size
        self.max_context = decoder.max_context
        self._decoder = decoder
        self._files = TemporaryDirectory(prefix="remembered-", dir=scratch)
        self._said: dict[tuple[tuple[int, ...], bytes, bytes, int], Path] = {}
        self.reset()

    def reset(self) -> None:
        self._asked = False
        self.mask = EMPTY_MASK

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        """As `Decoder.forward`.

        Raises:
            RuntimeError: a second call without a `reset` between; a cache is not remembered.
        """
        if self._asked:
            raise RuntimeError("a remembered decoder keeps no cache: reset it before each forward")
        self._asked = True
        mask = b"" if attention_mask is None else attention_mask.tobytes()
        key = (input_ids.shape, input_ids.tobytes(), mask, logits_to_keep)
        if key not in self._said:
            self._decoder.reset()
            file = Path(self._files.name, f"{len(self._said)}.npy")
            np.save(file, self._decoder.forward(input_ids, attention_mask, logits_to_keep))
            self._said[key] = file
        logits: np.ndarray = np.load(self._said[key], mmap_mode="r")
        return logits

    def cache_bytes(self) -> int:
        return self._decoder.cache_bytes()

    def providers(self) -> dict[str, int]:
        return self._decoder.providers()

    def close(self) -> None:
        self._files.cleanup()
        self._decoder.close()
