"""What an engine can be told at its start. Sizes are in bytes or tokens, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine_service.bundled import BUNDLED_MODEL
from engine_service.kv_budget import KVBudget
from service_common.errors import ConfigError
from service_common.logging import LogFormat, LogLevel
from service_common.options import option


class KVCacheType(StrEnum):
    """How keys and values are kept."""

    F16 = "f16"
    F32 = "f32"
    INT8 = "int8"


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
    kv_cache_bytes: str = option(
        "25%", "Memory of the KV cache: bytes, 512MiB, 2GiB, or a share of what the weights leave free", metavar="SIZE"
    )
    kv_cache_type: KVCacheType = option(KVCacheType.F16, "How keys and values are kept")
    block_size: int = option(32, "Tokens per KV block, a multiple of 8", unit="tokens", minimum=8, maximum=256)
    max_num_seqs: int = option(64, "Sequences that may run at once", minimum=1, maximum=4096)
    max_num_batched_tokens: int = option(512, "Tokens computed in one step", unit="tokens", minimum=1, maximum=65536)
    max_prefill_chunk: int | None = option(
        None, "Prompt tokens of one request in one step; default: the whole step", unit="tokens", minimum=1
    )
    max_step_stretch: float = option(
        1.7,
        "How much longer prompts may make a step than the running requests' own tokens do",
        unit="times",
        minimum=1.01,
    )
    max_draft_tokens: int = option(
        0,
        "Tokens that are guessed from what came before and verified in one step, where a request does not say; 0: none",
        unit="tokens",
        minimum=0,
        maximum=16,
    )
    max_queued_requests: int = option(1024, "Requests that may wait; more are refused", minimum=1)
    max_queued_tokens: int | None = option(
        None,
        "Prompt tokens that may wait; more are refused; default: 1048576, or the served context where that is longer",
        unit="tokens",
        minimum=1,
    )
    pause_timeout_seconds: float = option(300.0, "Time without credit that ends a request", unit="seconds", minimum=0)
    metrics: str | None = option(
        None,
        "Address where Prometheus reads the engine's metrics, host:port; one that others can reach needs --insecure",
        metavar="ADDRESS",
    )
    tls_cert: Path | None = option(
        None,
        "Serve by TLS with this certificate, and those that vouch for it, in PEM; read again on change",
        metavar="FILE",
    )
    tls_key: Path | None = option(None, "Private key of --tls-cert", metavar="FILE")
    tls_client_ca: Path | None = option(
        None, "Serve only clients with a certificate that these authorities vouch for", metavar="FILE"
    )
    api_keys: Path | None = option(
        None, "Serve only callers with one of these API keys; see `clforge keys`; read again on change", metavar="FILE"
    )
    drain_seconds: float = option(30.0, "Time for requests in flight to finish at shutdown", unit="seconds", minimum=0)
    portable_kernels: bool = option(False, "Leave out the host's own instructions; same bits, slower")
    cache_dir: Path | None = option(
        None, "Folder of compiled kernels; default: in your own cache folder", metavar="DIR"
    )
    insecure: bool = option(False, "Listen on an address that others can reach, without TLS and keys")
    log_format: LogFormat = option(LogFormat.AUTO, "How log lines look")
    log_level: LogLevel = option(LogLevel.INFO, "Least severe events that are logged")

    @property
    def kv_budget(self) -> KVBudget:
        """`kv_cache_bytes`, read. ConfigError where it cannot be, but not once the configuration is made."""
        return KVBudget.parse(self.kv_cache_bytes)

    def __post_init__(self) -> None:
        """ConfigError for options that contradict each other or the kernels, or cannot be read."""
        KVBudget.parse(self.kv_cache_bytes)
        if self.block_size % 8:
            raise ConfigError(f"--block-size is {self.block_size}; it must be a multiple of 8")
        if self.max_num_batched_tokens < self.max_num_seqs:
            raise ConfigError(
                f"--max-num-batched-tokens is {self.max_num_batched_tokens}; it must be at least --max-num-seqs, "
                f"{self.max_num_seqs}, since each sequence of a step computes at least one token"
            )
        if self.max_prefill_chunk is not None and self.max_prefill_chunk > self.max_num_batched_tokens:
            raise ConfigError(
                f"--max-prefill-chunk is {self.max_prefill_chunk}; it must be at most --max-num-batched-tokens, "
                f"{self.max_num_batched_tokens}, the tokens of a whole step"
            )
        if self.max_queued_tokens and self.context_length and self.max_queued_tokens < self.context_length:
            raise ConfigError(
                f"--max-queued-tokens is {self.max_queued_tokens}; it must be at least --context-length, "
                f"{self.context_length}, or the longest prompts could never be queued"
            )
