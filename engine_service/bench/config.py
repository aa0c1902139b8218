"""What the process that the bench measures our engine in can be told, and where llama.cpp is."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from service_common.options import option

PAIRS, QUICK_PAIRS = 5, 3
PEER_VARIABLE = "LLAMA_CPP_PYTHON"


@dataclass(frozen=True)
class OursConfig:
    """Options of `python -m engine_service.bench.ours`, which the bench starts."""

    model: Path = option(help="The GGUF file to measure", metavar="FILE")
    threads: int = option(help="CPU threads", minimum=1)
    context_length: int = option(help="Longest sequence", unit="tokens", minimum=1)
    max_num_seqs: int = option(help="Sequences that are live at once", minimum=1)
    num_cached_tokens: int = option(help="Tokens of all sequences that are live at once", unit="tokens", minimum=1)


def named_peer_python() -> Path | None:
    """The Python with llama.cpp that LLAMA_CPP_PYTHON names, if it does."""
    return Path(named) if (named := os.environ.get(PEER_VARIABLE)) else None


def peer_python() -> Path:
    """The Python that LLAMA_CPP_PYTHON names, or else this one."""
    return named_peer_python() or Path(sys.executable)
