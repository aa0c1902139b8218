"""docs/metrics.md tells of every metric, in the words of the metric itself."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import pytest
from prometheus_client import CollectorRegistry

from engine_service.engine_loop import EngineLoop
from engine_service.metrics import EngineMetrics
from tests.prometheus import own_metrics
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.metrics import Counts, TokenizerMetrics

_ROOT = Path(__file__).parent.parent


def _engine() -> CollectorRegistry:
    return EngineMetrics(EngineLoop(_never, lambda events: None), lambda: False).registry


def _tokenizer() -> CollectorRegistry:
    metrics = TokenizerMetrics(lambda: False, EncodeCache(0))
    metrics.read_counts(lambda: Counts(0, 0, 0, 0, 0))
    return metrics.registry


def _never() -> NoReturn:
    raise AssertionError("not started")


def rows(registry: CollectorRegistry) -> list[str]:
    """The rows of the table that describes the registry, sorted by name."""
    found = []
    for metric in own_metrics(registry):
        name = f"{metric.name}_total" if metric.type == "counter" else metric.name
        found.append(f"| `{name}` | {metric.type} | {metric.documentation} |")
    return sorted(found)


@pytest.mark.parametrize(("make", "heading"), [(_engine, "Engine"), (_tokenizer, "Tokenizer")])
def test_documented_metrics_are_those_there_are(make: Callable[[], CollectorRegistry], heading: str) -> None:
    """Each section's table has one row a metric, with its type and its help, and no other row."""
    text = (_ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text, flags=re.MULTILINE)
    table = next(part for part in section if part.startswith(heading))
    documented = [line for line in table.splitlines() if line.startswith("| `")]
    expected = rows(make())
    assert documented == expected, "docs/metrics.md should have:\n" + "\n".join(expected)
