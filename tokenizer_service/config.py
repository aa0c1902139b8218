"""What a tokenizer service can be told at its start. Sizes are in bytes, times in seconds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from service_common.errors import ConfigError
from service_common.logging import LogFormat, LogLevel
from service_common.options import option


@dataclass(frozen=True)
class TokenizerConfig:
    """Options of `python -m tokenizer_service`, which `clforge serve` takes as well."""

    grpc: str = option("127.0.0.1:50051", "Address clients connect to: host:port or unix:/path", metavar="ADDRESS")
    engine: str = option(
        "127.0.0.1:50052", "Address of the engine: host:port, unix:/path or dns:///host:port", metavar="ADDRESS"
    )
    workers: int = option(
        1, "Processes that serve on the one port, each with the limits below for itself", minimum=1, maximum=256
    )
    max_prompt_bytes: int = option(8 << 20, "Longest text of a prompt", unit="bytes", minimum=1, maximum=12 << 20)
    max_live_requests: int = option(1024, "Requests in flight over all clients; more are refused", minimum=1)
    encode_cache_bytes: int = option(
        64 << 20,
        "Memory for the token ids of long texts that come again, such as system prompts",
        unit="bytes",
        minimum=0,
    )
    pre_tokenizer: str | None = option(
        None,
        "Split text by this rule instead of the one that the model file names (tokenizer.ggml.pre)",
        metavar="NAME",
    )
    metrics: str | None = option(
        None,
        "Address where Prometheus reads the tokenizer's metrics, host:port; further workers take the ports after it; "
        "one that others can reach needs --insecure",
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
    engine_tls_ca: Path | None = option(
        None, "Connect to the engine by TLS, and trust these authorities", metavar="FILE"
    )
    engine_tls_cert: Path | None = option(None, "Show the engine this certificate", metavar="FILE")
    engine_tls_key: Path | None = option(None, "Private key of --engine-tls-cert", metavar="FILE")
    engine_tls_server_name: str | None = option(
        None, "Name in the engine's certificate; default: the one in --engine", metavar="NAME"
    )
    engine_api_key_file: Path | None = option(
        None, "File with the API key for the engine and nothing else; needs --engine-tls-ca", metavar="FILE"
    )
    max_connection_age_seconds: float | None = option(
        None,
        "Age at which a connection takes no new requests, so that clients find new servers of the same name; those it "
        "has go on; default: none",
        unit="seconds",
        minimum=1,
    )
    drain_seconds: float = option(30.0, "Time for requests in flight to finish at shutdown", unit="seconds", minimum=0)
    insecure: bool = option(False, "Use addresses that others can reach, without TLS and keys")
    log_format: LogFormat = option(LogFormat.AUTO, "How log lines look")
    log_level: LogLevel = option(LogLevel.INFO, "Least severe events that are logged")

    def __post_init__(self) -> None:
        """ConfigError for options that contradict each other."""
        for name in ("engine_tls_cert", "engine_tls_key", "engine_tls_server_name", "engine_api_key_file"):
            if getattr(self, name) is not None and self.engine_tls_ca is None:
                raise ConfigError(f"--{name.replace('_', '-')} needs --engine-tls-ca: the link would be in plain text")
        if self.workers > 1 and self.grpc.startswith("unix:"):
            raise ConfigError(
                f"--workers: {self.workers} processes cannot share {self.grpc}: a Unix socket belongs to one; "
                "give --grpc a port, or leave --workers at 1"
            )
