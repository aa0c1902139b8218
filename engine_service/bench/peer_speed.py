"""llama.cpp as a side of the bench, through its C API.

Runs in the peer's own Python, which has none of our dependencies: what is imported here needs the standard library.

usage: python -m engine_service.bench.peer_speed MODEL.gguf THREADS

All that a user of llama.cpp could choose is left at its default (n_ubatch 512, f16 KV cache, flash attention where it
deems it right) but the number of threads and the size of the context. Only llama_decode and the wait for its end are
timed: filling the batch and choosing the next token are not, in the peer's favour.
"""

from __future__ import annotations

import ctypes
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import llama_cpp as lc  # type: ignore[import-not-found]

from engine_service.bench.protocol import CHUNK_LEN, BenchError, Timed, serve, tell

_silence = lc.llama_log_callback(lambda *message: None)


class Row(NamedTuple):
    """One token of a batch."""

    token_id: int
    position: int
    seq_id: int


class Context:
    """A llama_context with room for `num_seqs` sequences of `max_len` tokens each, and a batch to fill."""

    def __init__(self, model: Any, num_seqs: int, max_len: int, threads: int) -> None:
        params = lc.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_seqs * max_len, num_seqs
        params.n_threads = params.n_threads_batch = threads
        self._context = lc.llama_init_from_model(model, params)
        if not self._context:
            raise BenchError(f"llama.cpp made no context of {num_seqs} sequences of {max_len} tokens")
        self._batch = lc.llama_batch_init(CHUNK_LEN, 0, 1)

    def clear(self) -> None:
        """Empties the KV cache."""
        lc.llama_memory_clear(lc.llama_get_memory(self._context), True)

    def decode(self, rows: Sequence[Row], *, logits_of_all: bool) -> float:
        """Computes rows, at most CHUNK_LEN; logits of all, or of the last alone. Returns seconds."""
        batch, last = self._batch, len(rows) - 1
        batch.n_tokens = len(rows)
        for index, row in enumerate(rows):
            batch.token[index], batch.pos[index] = row.token_id, row.position
            batch.n_seq_id[index], batch.seq_id[index][0] = 1, row.seq_id
            batch.logits[index] = logits_of_all or index == last
        started = time.perf_counter()
        code = lc.llama_decode(self._context, batch)
        lc.llama_synchronize(self._context)
        seconds = time.perf_counter() - started
        if code:
            raise BenchError(f"llama_decode returned {code} for {len(rows)} tokens")
        return seconds

    def prefill(self, prompt_ids: Sequence[int], seq_id: int) -> Timed:
        """Computes a prompt from position 0 on, in batches of CHUNK_LEN. Tells of the last one."""
        rows = [Row(token_id, position, seq_id) for position, token_id in enumerate(prompt_ids)]
        batches = [rows[start : start + CHUNK_LEN] for start in range(0, len(rows), CHUNK_LEN)]
        seconds = [self.decode(batch, logits_of_all=False) for batch in batches]
        return Timed(len(batches[-1]), seconds[-1])


@dataclass
class Group:
    """Sequences that have grown together by `num_decoded` tokens each."""

    context: Context
    prompts: Sequence[Sequence[int]]
    num_decoded: int = 0


class Peer:
    """A Side: one model, with a context per length of prompt and one per group, as if each were all there is to do."""

    def __init__(self, model: Any, threads: int) -> None:
        self._model, self._threads = model, threads
        self._prefill_contexts: dict[int, Context] = {}
        self._groups: dict[str, Group] = {}

    def prefill(self, prompt_ids: Sequence[int]) -> Timed:
        """As Side.prefill."""
        if (context := self._prefill_contexts.get(len(prompt_ids))) is None:
            context = Context(self._model, 1, len(prompt_ids), self._threads)
            self._prefill_contexts[len(prompt_ids)] = context
        context.clear()
        return context.prefill(prompt_ids, 0)

    def start(self, group: str, prompts: Sequence[Sequence[int]], max_len: int) -> None:
        """As Side.start."""
        context = Context(self._model, len(prompts), max_len, self._threads)
        for seq_id, prompt_ids in enumerate(prompts):
            context.prefill(prompt_ids, seq_id)
        self._groups[group] = Group(context, prompts)

    def decode(self, group: str, num_steps: int) -> Timed:
        """As Side.decode. What is fed are the prompt's tokens over again: which ones does not change the work."""
        state, seconds = self._groups[group], 0.0
        for step in range(state.num_decoded, state.num_decoded + num_steps):
            rows = [
                Row(prompt_ids[step % len(prompt_ids)], len(prompt_ids) + step, seq_id)
                for seq_id, prompt_ids in enumerate(state.prompts)
            ]
            seconds += state.context.decode(rows, logits_of_all=True)
        state.num_decoded += num_steps
        return Timed(num_steps * len(state.prompts), seconds)


def open_peer(path: str, threads: int) -> tuple[Peer, dict[str, Any]]:
    """Loads the model; says how far it has got."""
    lc.llama_log_set(_silence, ctypes.c_void_p(0))
    lc.llama_backend_init()
    params = lc.llama_model_default_params()

    def progress(fraction: float, _: object) -> bool:
        tell(progress=fraction)
        return True

    params.progress_callback = lc.llama_progress_callback(progress)
    started = time.perf_counter()
    model = lc.llama_model_load_from_file(path.encode(), params)
    if not model:
        raise BenchError(f"llama.cpp could not load {path}")
    return Peer(model, threads), {"load_seconds": round(time.perf_counter() - started, 2)}


if __name__ == "__main__":
    serve(lambda: open_peer(sys.argv[1], int(sys.argv[2])))
