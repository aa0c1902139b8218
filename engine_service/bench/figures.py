"""From measurements to medians, ratios and tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple, Self

from engine_service.bench.protocol import Timed

Results = Mapping[str, Mapping[str, Any]]

DISTURBED = 0.3  # disturbance above which a figure tells little; benchmarks/NOTES.md has what was seen
RATE_UNIT, GROWTH_UNIT = "tokens/s", "times"
_HEAD = ("model", "workload", "ours", "llama.cpp", "ratio", "spread", "disturbed")
_SIZE_HEAD = ("model", "file bytes", "device bytes", "device ÷ file", "load, s")
_COPY_HEAD = ("model", "file, GB/s", "copied, GB/s", "file ÷ copied", "read ÷ copied")
_PROFILE_HEAD = ("kernel", "launches", "ms", "share", "GB/s", "of copy", "GOP/s", "of multiply-add")
_SIDES = ("ours", "peer")
_NONE = "–"
_GIGA = 1e9


class Figure(NamedTuple):
    """What was measured of one workload, one entry a pair; `peer` is empty where it was not measured.

    `copies` are the bytes/s that the machine copied meanwhile, where that was measured.
    """

    unit: str
    ours: Sequence[float]
    peer: Sequence[float]
    disturbances: Sequence[float]
    copies: Sequence[float] = ()

    @classmethod
    def of_rates(cls, ours: Sequence[Timed], peer: Sequence[Timed], copies: Sequence[Timed] = ()) -> Self:
        """Tokens per second."""
        rates = [[timed.rate for timed in measured] for measured in (ours, peer, copies)]
        return cls(RATE_UNIT, rates[0], rates[1], _disturbances([*ours, *peer, *copies]), rates[2])

    @classmethod
    def of_growth(cls, ours: Sequence[tuple[Timed, Timed]], peer: Sequence[tuple[Timed, Timed]]) -> Self:
        """How many times longer the second of two measurements took."""
        grown = [[last.seconds / first.seconds for first, last in measured] for measured in (ours, peer)]
        timed = [timed for pair in (*ours, *peer) for timed in pair]
        return cls(GROWTH_UNIT, grown[0], grown[1], _disturbances(timed))

    def to_json(self) -> dict[str, Any]:
        """Medians, the median of the pairs' ratios, its spread (smallest and largest), and all that was measured.

        The ratio is not that of the medians: two measurements of a pair share the machine's state, two medians may not.
        `disturbance` is the largest of all measurements: see Timed.
        """
        ratios = [mine / theirs for mine, theirs in zip(self.ours, self.peer, strict=True)] if self.peer else []
        return {
            "unit": self.unit,
            "ours": rounded(median(self.ours)),
            "peer": rounded(median(self.peer)) if self.peer else None,
            "ratio": rounded(median(ratios)) if ratios else None,
            "ratio_spread": [rounded(min(ratios)), rounded(max(ratios))] if ratios else None,
            "ours_rates": list(map(rounded, self.ours)),
            "peer_rates": list(map(rounded, self.peer)),
            "disturbance": rounded(max(self.disturbances)) if self.disturbances else None,
        }

    def bandwidth(self, file_bytes: int, step_bytes: int) -> dict[str, Any]:
        """The decode of one sequence beside copies of memory, in pairs: medians in bytes/s, and medians of fractions.

        `file_bytes` is the size of the file, `step_bytes` of those of its tensors that each step reads.
        """
        per_copied = [rate / copied for rate, copied in zip(self.ours, self.copies, strict=True)]
        return {
            "file_bytes_per_s": rounded(median(self.ours) * file_bytes),
            "copied_bytes_per_s": rounded(median(self.copies)),
            "file_fraction": rounded(median(per_copied) * file_bytes),
            "read_fraction": rounded(median(per_copied) * step_bytes),
        }


def _disturbances(measured: Sequence[Timed]) -> list[float]:
    return [timed.disturbance for timed in measured if timed.disturbance is not None]


def figures_of(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of one model's entry, by workload."""
    return {name: value for name, value in entry.items() if isinstance(value, Mapping) and "ratio" in value}


def figure_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model and workload, headings first."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for model, entry in results.items():
        for workload, figure in figures_of(entry).items():
            values = [_NONE if figure[side] is None else _shown(figure[side], figure["unit"]) for side in _SIDES]
            rows.append((model, workload, *values, *_ratio_cells(figure), _disturbance_cell(figure)))
    return rows


def size_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model: what its weights take in the file and on the device, headings first."""
    rows: list[tuple[str, ...]] = [_SIZE_HEAD]
    for model, entry in results.items():
        tensor_bytes, device_bytes, seconds = (
            entry["engine"][name] for name in ("tensor_bytes", "device_bytes", "load_seconds")
        )
        share = f"{device_bytes / tensor_bytes:.3f}"
        rows.append((model, f"{tensor_bytes:,}", f"{device_bytes:,}", share, f"{seconds:.1f}"))
    return rows


def bandwidth_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model: its bytes that one sequence's decode gets through, beside a copy of memory; headings first."""
    rows: list[tuple[str, ...]] = [_COPY_HEAD]
    for model, entry in results.items():
        if (bandwidth := entry.get("bandwidth")) is not None:
            rates = [f"{bandwidth[name] / _GIGA:.1f}" for name in ("file_bytes_per_s", "copied_bytes_per_s")]
            rows.append((model, *rates, *(f"{bandwidth[name]:.2f}" for name in ("file_fraction", "read_fraction"))))
    return rows


def profile_rows(profile: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """One row per kernel of a profile's JSON, headings first."""
    rows: list[tuple[str, ...]] = [_PROFILE_HEAD]
    for kernel in profile["kernels"]:
        share = f"{kernel['ms'] / profile['sum_ms']:.0%}"
        rates = [_cell(kernel[name], ".3g") for name in ("gb_per_s", "gop_per_s")]
        shares = [_cell(kernel[name], ".0%") for name in ("of_copy", "of_multiply_add")]
        times = f"{kernel['launches']:g}", f"{kernel['ms']:.3g}", share
        rows.append((kernel["kernel"], *times, rates[0], shares[0], rates[1], shares[1]))
    return rows


def _cell(value: float | None, form: str) -> str:
    return _NONE if value is None else format(value, form)


def is_disturbed(figure: Mapping[str, Any]) -> bool:
    """Whether other work took so much of the CPU that the figure tells little."""
    return bool((figure["disturbance"] or 0.0) > DISTURBED)


def shown_rate(rate: float) -> str:
    """Tokens per second for the eye."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def _shown(value: float, unit: str) -> str:
    return shown_rate(value) if unit == RATE_UNIT else f"{value:.2f} ×"


def _ratio_cells(figure: Mapping[str, Any]) -> tuple[str, str]:
    if figure["ratio"] is None:
        return _NONE, _NONE
    low, high = figure["ratio_spread"]
    return f"{figure['ratio']:.2f}", f"{low:.2f}–{high:.2f}"


def _disturbance_cell(figure: Mapping[str, Any]) -> str:
    return _NONE if figure["disturbance"] is None else f"{figure['disturbance']:.2f}{' !' * is_disturbed(figure)}"


def rounded(value: float) -> float:
    """To four significant digits: more is noise."""
    return float(f"{value:.4g}")
