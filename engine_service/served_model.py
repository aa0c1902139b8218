"""What clients may know of the model that is being served."""

from __future__ import annotations

from dataclasses import dataclass, field

from engine_service.token_search import TokenSearch


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A model as served: known in full once its weights are on the device."""

    name: str
    architecture: str
    vocab_size: int
    context_length: int
    trained_context_length: int
    eog_token_ids: tuple[int, ...]
    vocab_sha256: str
    numerics_id: str
    weight_bytes: int
    num_parameters: int
    device: str
    token_search: TokenSearch = field(repr=False)


def numerics_id(kv_cache_type: str) -> str:
    """Names the arithmetic: docs/numerics.md and how keys and values are kept."""
    return f"clf1-kv-{kv_cache_type}"
