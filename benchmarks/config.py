"""What the benches can be told."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine_service.bench.config import PAIRS, QUICK_PAIRS
from service_common.options import option


@dataclass(frozen=True)
class BenchConfig:
    """Options of the bench."""

    model: Path | None = option(None, "Measure this GGUF file; default: the models of the bench", metavar="FILE")
    pairs: int | None = option(None, f"Pairs of measurements; default: {PAIRS}, {QUICK_PAIRS} if quick", minimum=3)
    quick: bool = option(False, "Measure prefill and the decode of one sequence alone")
    peer: bool = option(True, "Measure llama.cpp too, which is built first if need be")
    profile: bool = option(False, "Time each kernel, too, and hold it against what the machine can do")
    threads: int | None = option(None, "CPU threads of either side; default: all that are usable", minimum=1)
    json: Path | None = option(
        None, "Where results go, with a page of tables beside it; default: benchmarks/results.json", metavar="FILE"
    )


class PartName(StrEnum):
    """The parts of the serving bench, in their order."""

    PREFIX = "prefix"
    STALL = "stall"
    OVERLOAD = "overload"
    SCHEDULER = "scheduler"
    START = "start"
    SDK = "sdk"
    CLIENTS = "clients"
    SPECULATION = "speculation"
    TOKENIZER = "tokenizer"
    CONSTRAINTS = "constraints"


@dataclass(frozen=True)
class ServingConfig:
    """Options of `python -m benchmarks.serving`."""

    only: PartName | None = option(None, "Measure this part alone; default: all of them")
    rounds: int = option(3, "How often each part is measured", minimum=1)
    model: Path | None = option(None, "Serve this GGUF file; default: the one that the part is for", metavar="FILE")
    json: Path | None = option(
        None, "Where results go, with a page beside it; default: benchmarks/results.serving.json", metavar="FILE"
    )


@dataclass(frozen=True)
class AgainstConfig:
    """Options of `python -m benchmarks.serve_against`."""

    model: Path | None = option(None, "Serve this GGUF file; default: the models of the bench", metavar="FILE")
    pairs: int = option(PAIRS, "Pairs of measurements", minimum=1)
    streams: int = option(16, "Requests at once", minimum=1)
    requests: int = option(32, "Requests of one measurement", minimum=1)
    prompt_words: int = option(96, "Length of a prompt", unit="words", minimum=1)
    max_tokens: int = option(48, "Length of an answer", unit="tokens", minimum=1)
    threads: int | None = option(None, "CPU threads of either server; default: all that are usable", minimum=1)
    json: Path | None = option(
        None, "Where results go, with a page beside it; default: benchmarks/results.against.json", metavar="FILE"
    )


@dataclass(frozen=True)
class StubConfig:
    """Options of `python -m benchmarks.stub_engine`, which the bench starts."""

    grpc: str = option(help="Address to listen on", metavar="ADDRESS")
    model: Path = option(help="The GGUF file whose vocabulary it has", metavar="FILE")
    step_seconds: float = option(0.0, "Length of a step; 0 is as short as can be", unit="seconds", minimum=0)


@dataclass(frozen=True)
class CancelledStreamsConfig:
    """Options of `python -m benchmarks.cancelled_streams`."""

    streams: int = option(100_000, "Streams to open and cancel", minimum=2)
    warm_streams: int = option(10_000, "Memory is measured after so many, and again after as many more", minimum=1)
    concurrency: int = option(16, "Streams that are open at a time", minimum=1)
    model: Path | None = option(None, "Serve this GGUF file; default: the bundled model", metavar="FILE")
