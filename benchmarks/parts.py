"""The parts of the serving bench: what each measures on which model, and the limits that its figures have to keep."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from benchmarks import clients, constraints, overload, prefix, scheduler, sdk, speculation, stall, start, tokenizer
from benchmarks.config import PartName
from benchmarks.models import BenchModel, BenchVocabulary
from engine_service.bench.machine import ROOT

_BUNDLED = ROOT / "models" / "clforge-tiny.gguf"


class Limit(NamedTuple):
    """What a figure must not be above or, where `is_floor`, below."""

    value: float
    is_floor: bool = False

    def holds(self, figure: float) -> bool:
        """Whether `figure` keeps it."""
        return figure >= self.value if self.is_floor else figure <= self.value

    def __str__(self) -> str:
        return f"{'≥' if self.is_floor else '≤'} {self.value:g}"


class Part(NamedTuple):
    """`measure` takes a model and a seed and gives figures by name; a name ends with its unit."""

    measure: Callable[[Path, int], dict[str, float]]
    model: BenchModel | BenchVocabulary | Path
    limits: Mapping[str, Limit]


PARTS = {
    PartName.PREFIX: Part(
        prefix.measure, BenchModel("tinyllama-1.1b", "Q8_0"), {"speedup": Limit(20.0, is_floor=True)}
    ),
    PartName.STALL: Part(stall.measure, BenchModel("qwen2.5-0.5b", "Q8_0"), {"p99_ratio": Limit(2.0)}),
    PartName.OVERLOAD: Part(
        overload.measure,
        _BUNDLED,
        {"refusal_p99_ms": Limit(50.0), "num_failed": Limit(0), "memory_growth": Limit(1.1)},
    ),
    PartName.SCHEDULER: Part(
        lambda model, seed: scheduler.figures(scheduler.measure()), _BUNDLED, {"step_p50_us": Limit(500.0)}
    ),
    PartName.START: Part(
        start.measure,
        BenchModel("tinyllama-1.1b", "Q8_0"),
        {"ready_beyond_read_s": Limit(2.0), "peak_share": Limit(1.0)},
    ),
    PartName.SDK: Part(
        sdk.measure,
        BenchModel("tinyllama-1.1b", "Q8_0"),
        {"share_1": Limit(0.95, is_floor=True), "share_16": Limit(0.95, is_floor=True)},
    ),
    PartName.CLIENTS: Part(lambda model, seed: clients.measure(model), _BUNDLED, {}),
    PartName.SPECULATION: Part(
        speculation.measure,
        BenchModel("tinyllama-1.1b", "Q8_0"),
        {
            "speedup_100": Limit(2.0, is_floor=True),
            "speedup_50": Limit(1.3, is_floor=True),
            "speedup_0": Limit(0.95, is_floor=True),
        },
    ),
    PartName.TOKENIZER: Part(tokenizer.measure, _BUNDLED, {}),
    PartName.CONSTRAINTS: Part(constraints.measure, BenchVocabulary("llama-bpe"), {"mask_mean_ms": Limit(0.2)}),
}
