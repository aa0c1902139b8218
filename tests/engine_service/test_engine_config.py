"""Options of the engine that contradict each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from engine_service.config import EngineConfig
from service_common.errors import ConfigError


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_num_batched_tokens": 63}, "--max-num-batched-tokens is 63; it must be at least --max-num-seqs, 64"),
        ({"max_prefill_chunk": 600}, "--max-prefill-chunk is 600; it must be at most --max-num-batched-tokens, 512"),
        (
            {"max_queued_tokens": 99, "context_length": 100},
            "--max-queued-tokens is 99; it must be at least --context-length, 100",
        ),
    ],
)
def test_limits_that_contradict_each_other_are_refused_together(options: dict[str, Any], message: str) -> None:
    """The error names both options and both values (MODEL-13)."""
    with pytest.raises(ConfigError, match=message):
        EngineConfig(model=Path("model.gguf"), **options)
