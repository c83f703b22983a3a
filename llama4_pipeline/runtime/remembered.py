"""An engine that others are held against: what it said once, it is not made to compute again."""

import numpy as np

from llama4_pipeline.runtime.decoder import EMPTY_MASK, Decoder


class RememberedDecoder:
    """Answers from memory where it was asked the same before; implements `Decoder` for one `forward` after a `reset`.

    Args:
        decoder: computes what was not asked yet.
    """

    def __init__(self, decoder: Decoder) -> None:
        self.engine, self.vocab_size = decoder.engine, decoder.vocab_size
        self.max_context = decoder.max_context
        self._decoder = decoder
        self._said: dict[tuple[bytes, bytes, int], np.ndarray] = {}
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
        key = (input_ids.tobytes(), mask, logits_to_keep)
        if key not in self._said:
            self._decoder.reset()
            self._said[key] = self._decoder.forward(input_ids, attention_mask, logits_to_keep)
        return self._said[key]

    def cache_bytes(self) -> int:
        return self._decoder.cache_bytes()

    def providers(self) -> dict[str, int]:
        return self._decoder.providers()

    def close(self) -> None:
        self._said.clear()
        self._decoder.close()
