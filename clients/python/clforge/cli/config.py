"""What commands can be told beside the options of the services."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from service_common.options import option


@dataclass(frozen=True)
class ServeConfig:
    """Options that each service has by the same name, so that only one of them can keep it here."""

    tokenizer_metrics: str | None = option(None, "As --metrics, for the tokenizer's metrics", metavar="ADDRESS")


class BenchPeer(StrEnum):
    """Whom `clforge bench --against` can name."""

    LLAMA_CPP = "llama.cpp"
