"""What a Prometheus server would make of a registry."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

_OF_THE_LIBRARY = ("python_", "process_")


def samples(text: str) -> dict[str, float]:
    """The samples of an exposition, each as `name` or `name{label="value"}`."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}" if labels else sample.name] = sample.value
    return found


def read(registry: CollectorRegistry) -> dict[str, float]:
    """The samples of a registry as they go over the wire."""
    return samples(generate_latest(registry).decode())


def own_metrics(registry: CollectorRegistry) -> Iterator[Metric]:
    """The metrics that CLForge defines, without those of the library."""
    return (metric for metric in registry.collect() if not metric.name.startswith(_OF_THE_LIBRARY))


def unfed(registry: CollectorRegistry, seen: dict[str, float]) -> list[str]:
    """Series of `registry` that are always 0 in `seen`; of a histogram its count stands for all."""
    names = []
    for metric in own_metrics(registry):
        for sample in metric.samples:
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            name = f"{sample.name}{{{labels}}}" if labels else sample.name
            if not sample.name.endswith(("_bucket", "_sum")) and not seen.get(name):
                names.append(name)
    return names
