"""What a tokenizer service can be told at its start. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from service_common.logging import LogFormat, LogLevel
from service_common.options import option


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of `python -m tokenizer_service`, which `clforge serve` takes as well."""

    grpc: str = option("127.0.0.1:50051", "Address clients connect to: host:port or unix:/path", metavar="ADDRESS")
    engine: str = option(
        "127.0.0.1:50052", "Address of the engine: host:port, unix:/path or dns:///host:port", metavar="ADDRESS"
    )
    max_prompt_bytes: int = option(8 << 20, "Longest text of a prompt", unit="bytes", minimum=1, maximum=12 << 20)
    max_live_requests: int = option(1024, "Requests in flight over all clients; more are refused", minimum=1)
    metrics: str | None = option(
        None,
        "Address where Prometheus reads the tokenizer's metrics, host:port; one that others can reach needs --insecure",
        metavar="ADDRESS",
    )
    drain_seconds: float = option(30.0, "Time for requests in flight to finish at shutdown", unit="seconds", minimum=0)
    insecure: bool = option(False, "Use addresses that others can reach, without TLS or keys")
    log_format: LogFormat = option(LogFormat.AUTO, "How log lines look")
    log_level: LogLevel = option(LogLevel.INFO, "Least severe events that are logged")
