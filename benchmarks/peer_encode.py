"""How fast llama.cpp turns texts into token ids, through its C API.

Runs in the peer's own Python, which has none of our dependencies: what is imported here needs the standard library.
Prints one JSON object: bytes per second, and how many tokens all texts have.

usage: python -m benchmarks.peer_encode VOCABULARY.gguf TEXTS.json
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from pathlib import Path
from typing import Any

import llama_cpp as lc  # type: ignore[import-not-found]

_SECONDS = 2.0
_silence = lc.llama_log_callback(lambda *message: None)


def main(vocabulary: str, texts: list[bytes]) -> dict[str, float]:
    """Encodes all texts, special tokens spelled in them as text, until enough time has passed."""
    lc.llama_log_set(_silence, ctypes.c_void_p(0))
    lc.llama_backend_init()
    params = lc.llama_model_default_params()
    params.vocab_only = True
    vocab = lc.llama_model_get_vocab(lc.llama_model_load_from_file(vocabulary.encode(), params))
    room = max(map(len, texts)) + 8
    ids = (lc.llama_token * room)()
    num_tokens = encode(vocab, texts, ids, room)
    num_rounds, started = 0, time.perf_counter()
    while time.perf_counter() - started < _SECONDS:
        encode(vocab, texts, ids, room)
        num_rounds += 1
    seconds = time.perf_counter() - started
    return {"bytes_per_second": num_rounds * sum(map(len, texts)) / seconds, "num_tokens": num_tokens}


def encode(vocab: Any, texts: list[bytes], ids: Any, room: int) -> int:
    """How many tokens all texts have; `ids` has room for those of each."""
    return sum(lc.llama_tokenize(vocab, text, len(text), ids, room, False, False) for text in texts)


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], [text.encode() for text in json.loads(Path(sys.argv[2]).read_text("utf-8"))])))
