"""What commands can be told beside the options of the services."""

from __future__ import annotations

import os
from dataclasses import dataclass
from enum import StrEnum

from service_common.options import API_KEY_VARIABLE, option


@dataclass(frozen=True)
class ServeConfig:
    """Options that each service has by the same name, so that only one of them can keep it here."""

    tokenizer_metrics: str | None = option(None, "As --metrics, for the tokenizer's metrics", metavar="ADDRESS")


class BenchPeer(StrEnum):
    """Whom `clforge bench --against` can name."""

    LLAMA_CPP = "llama.cpp"


def environment_api_key() -> str | None:
    """The API key that CLFORGE_API_KEY holds; None where it is not set, or empty."""
    return os.environ.get(API_KEY_VARIABLE) or None
