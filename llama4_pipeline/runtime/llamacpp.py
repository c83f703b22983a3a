"""llama.cpp as an engine, through the low-level API of llama-cpp-python: a GGUF file, one sequence per row."""

import ctypes
import logging
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np

from llama4_pipeline.errors import CheckFailed, InputError
from llama4_pipeline.metadata import GGUF_CONFIG_KEY
from llama4_pipeline.runtime.decoder import EMPTY_MASK, extend_mask, position_ids

_logger = logging.getLogger(__name__)

_TOKENS_PER_CALL = 512
_LONGEST_CONTEXT = 4096
_ERROR_LEVEL = 4  # GGML_LOG_LEVEL_ERROR
_ALL_FLOAT32 = "0"  # LLAMA_FTYPE_ALL_F32


class LlamaCppDecoder:
    """Runs a GGUF file; implements `Decoder`. Padding tokens are not fed at all.

    Weights of fewer bits run with llama.cpp's defaults: a float16 cache, flash attention where it has the kernel. Which
    attention is the faster one depends on the processor and on the length. A float32 file gets a float32 cache and no
    flash attention, whose kernel rounds to float16.

    llama.cpp loads and decodes in a thread of its own. It describes its AMX tiles once a thread, and once PyTorch or
    ONNX Runtime has used AMX in the same one, its next product is an illegal instruction. And where it packs weights
    for AMX, loading takes as many threads as decoding: with a second thread to start them from, libgomp counts more
    than there are cores, has all sleep at each barrier, and a step takes three times as long.

    Args:
        gguf: the file.
        threads: of prefill and decode; 0 leaves llama.cpp's choice.
        flash_attention: False is llama.cpp's `-fa off`.

    Raises:
        InputError: the file does not open.
    """

    def __init__(self, gguf: Path, threads: int = 0, *, flash_attention: bool = True) -> None:
        if not gguf.is_file():
            raise InputError(f"{gguf} is not a file; llama.cpp runs a GGUF file")
        self.engine = "llama.cpp" if flash_attention else "llama.cpp-no-flash-attention"
        llama_cpp.llama_log_set(_log, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._thread = ThreadPoolExecutor(1)
        loading = self._thread.submit(
            llama_cpp.llama_model_load_from_file,
            str(gguf).encode(),
            llama_cpp.llama_model_default_params(),
        )
        self._model = loading.result()
        if not self._model:
            self._thread.shutdown()
            raise InputError(f"{gguf}: llama.cpp cannot load this file")
        self._threads, self._flash_attention = threads, flash_attention
        self._context: Any = None
        self._exact = self._metadata("general.file_type") == _ALL_FLOAT32
        trained = llama_cpp.llama_model_n_ctx_train(self._model)
        # The whole cache is allocated at once; our own files have the context that was asked for.
        self.max_context = trained if self._metadata(GGUF_CONFIG_KEY) else min(trained, _LONGEST_CONTEXT)
        self.vocab_size: int = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self.mask = EMPTY_MASK
        try:
            self._open_context(1)
        except InputError:
            self.close()
            raise

    def reset(self) -> None:
        if self._context:
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self._context), True)
        self.mask = EMPTY_MASK

    def forward(
        self, input_ids: np.ndarray, attention_mask: np.ndarray | None = None, logits_to_keep: int = 0
    ) -> np.ndarray:
        mask = extend_mask(
            self.mask, input_ids, attention_mask, vocab_size=self.vocab_size, max_context=self.max_context
        )
        batch, new = input_ids.shape
        if batch != self._rows:
            llama_cpp.llama_free(self._context)
            self._open_context(batch)
        kept = min(logits_to_keep, new) if logits_to_keep else new
        positions = position_ids(mask, new)
        rows, columns = np.nonzero(mask[:, -new:])
        logits = np.zeros((batch, kept, self.vocab_size), dtype=np.float32)
        try:
            for start in range(0, len(rows), _TOKENS_PER_CALL):
                part = slice(start, start + _TOKENS_PER_CALL)
                self._decode(input_ids, positions, rows[part], columns[part], logits)
        except BaseException:
            self.reset()
            raise
        self.mask = mask
        return logits

    def cache_bytes(self) -> int:
        form = self._metadata("general.architecture")
        evenly = llama_cpp.llama_model_n_embd(self._model) // llama_cpp.llama_model_n_head(self._model)
        width = int(self._metadata(f"{form}.attention.key_length") or evenly)
        heads = llama_cpp.llama_model_n_head_kv(self._model)
        element_bytes = 4 if self._exact else 2
        per_token = 2 * llama_cpp.llama_model_n_layer(self._model) * heads * width * element_bytes
        slots = llama_cpp.llama_n_ctx(self._context) if self._context else 0  # more than was asked for
        return slots * per_token

    def providers(self) -> dict[str, int]:
        return {"llama.cpp": 0}

    def close(self) -> None:
        self._thread.shutdown()
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)

    def _open_context(self, rows: int) -> None:
        """Makes a cache for a batch of `rows`; llama.cpp allocates all of it at once, or there is none."""
        self._rows = 0
        parameters = llama_cpp.llama_context_default_params()
        parameters.n_ctx = self.max_context * rows
        parameters.n_seq_max = rows
        parameters.n_batch = parameters.n_ubatch = _TOKENS_PER_CALL
        if self._threads:
            parameters.n_threads = parameters.n_threads_batch = self._threads
        if self._exact:
            parameters.type_k = parameters.type_v = llama_cpp.GGML_TYPE_F32
        if self._exact or not self._flash_attention:
            parameters.flash_attn_type = llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._context = llama_cpp.llama_init_from_model(self._model, parameters)
        if not self._context:
            raise InputError(
                f"llama.cpp cannot make a cache of {rows} rows of {self.max_context} tokens; ask for less"
            )
        self._rows = rows

    def _metadata(self, key: str) -> str:
        """A value of the file's metadata; empty where there is none."""
        value = ctypes.create_string_buffer(256)
        found = llama_cpp.llama_model_meta_val_str(self._model, key.encode(), value, len(value))
        return value.value.decode() if found >= 0 else ""

    def _decode(
        self,
        input_ids: np.ndarray,
        positions: np.ndarray,
        rows: np.ndarray,
        columns: np.ndarray,
        logits: np.ndarray,
    ) -> None:
        """Feeds the tokens at (rows, columns) and writes what `logits` [B, kept, vocab] keeps of theirs."""
        first_kept = input_ids.shape[1] - logits.shape[1]
        batch = llama_cpp.llama_batch_init(len(rows), 0, 1)
        try:
            batch.n_tokens = len(rows)
            for index, (row, column) in enumerate(zip(rows, columns, strict=True)):
                batch.token[index] = int(input_ids[row, column])
                batch.pos[index] = int(positions[row, column])
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = int(row)
                batch.logits[index] = bool(column >= first_kept)
            running = self._thread.submit(llama_cpp.llama_decode, self._context, batch)
            try:
                status = running.result()
            finally:
                wait([running])  # an interrupt reaches this thread alone, and the other still reads the batch
            if status:
                raise CheckFailed("llama.cpp could not decode: its cache is full")
        finally:
            llama_cpp.llama_batch_free(batch)
        for index in np.flatnonzero(columns >= first_kept).tolist():
            pointer = llama_cpp.llama_get_logits_ith(self._context, index)
            values = np.ctypeslib.as_array(
                ctypes.cast(pointer, ctypes.POINTER(ctypes.c_float)), (self.vocab_size,)
            )
            logits[rows[index], columns[index] - first_kept] = values


@llama_cpp.llama_log_callback
def _log(level: int, text: bytes, _data: Any) -> None:
    """llama.cpp's own log, of which only errors pass on."""
    if level == _ERROR_LEVEL:
        _logger.error("%s", text.decode(errors="replace").strip())
