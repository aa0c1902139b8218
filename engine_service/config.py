"""What an engine can be told at its start. Sizes are in bytes or tokens, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine_service.bundled import BUNDLED_MODEL
from service_common.errors import ConfigError
from service_common.logging import LogFormat, LogLevel
from service_common.options import option


class KVCacheType(StrEnum):
    """How keys and values are kept."""

    F16 = "f16"
    F32 = "f32"


@dataclass(frozen=True)
class EngineConfig:
    """Options of `python -m engine_service`, which `clforge serve` takes as well."""

    model: Path = option(
        BUNDLED_MODEL, "The GGUF file to serve; default: the bundled clforge-tiny", metavar="FILE", show_default=False
    )
    engine: str = option("127.0.0.1:50052", "Address the engine listens on: host:port or unix:/path", metavar="ADDRESS")
    device: int = option(0, "OpenCL device, as `clforge devices` counts them", minimum=0)
    threads: int | None = option(None, "CPU threads; default: what the CPU quota allows", minimum=1, maximum=1024)
    context_length: int | None = option(
        None, "Longest prompt plus output; default: the model's own, if the KV cache holds it", unit="tokens", minimum=1
    )
    kv_cache_bytes: int | None = option(
        None, "Memory of the KV cache; default: a quarter of what is free", unit="bytes", minimum=1
    )
    kv_cache_type: KVCacheType = option(KVCacheType.F16, "How keys and values are kept")
    block_size: int = option(32, "Tokens per KV block, a multiple of 8", unit="tokens", minimum=8, maximum=256)
    max_num_seqs: int = option(64, "Sequences that may run at once", minimum=1, maximum=4096)
    max_num_batched_tokens: int = option(512, "Tokens computed in one step", unit="tokens", minimum=1, maximum=65536)
    max_prefill_chunk: int | None = option(
        None, "Prompt tokens of one request in one step; default: the whole step", unit="tokens", minimum=1
    )
    max_queued_requests: int = option(1024, "Requests that may wait; more are refused", minimum=1)
    max_queued_tokens: int = option(1 << 20, "Prompt tokens that may wait; more are refused", unit="tokens", minimum=1)
    pause_timeout_seconds: float = option(300.0, "Time without credit that ends a request", unit="seconds", minimum=0)
    drain_seconds: float = option(30.0, "Time for requests in flight to finish at shutdown", unit="seconds", minimum=0)
    portable_kernels: bool = option(False, "Leave out the host's own instructions; same bits, slower")
    cache_dir: Path | None = option(
        None, "Folder of compiled kernels; default: in your own cache folder", metavar="DIR"
    )
    insecure: bool = option(False, "Listen on an address that others can reach, without TLS or keys")
    log_format: LogFormat = option(LogFormat.AUTO, "How log lines look")
    log_level: LogLevel = option(LogLevel.INFO, "Least severe events that are logged")

    def __post_init__(self) -> None:
        """ConfigError for options that contradict each other or the kernels."""
        if self.block_size % 8:
            raise ConfigError(f"--block-size is {self.block_size}; it must be a multiple of 8")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens is {self.max_num_batched_tokens}; it must be at least --max-num-seqs, "
                f"{self.max_num_seqs}, since each sequence of a step computes at least one token"
            )
