"""From rates to medians, ratios and reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.protocol import Timed

Results = Mapping[str, Mapping[str, Any]]

DISTURBED = 0.3  # disturbance above which a figure tells little; benchmarks/NOTES.md has what was seen
_HEAD = ("model", "tokens/s", "ours", "llama.cpp", "ratio", "spread", "disturbed")
_SIZE_HEAD = ("model", "file bytes", "device bytes", "device ÷ file", "load, s")
_NONE = "–"


class Figure(NamedTuple):
    """What was measured of one workload, one entry a pair; `peer` is empty where it was not measured."""

    ours: Sequence[Timed]
    peer: Sequence[Timed]

    def to_json(self) -> dict[str, Any]:
        """Medians of tokens/s, the median of the pairs' ratios, its spread (smallest and largest), and all rates.

        The ratio is not that of the medians: two measurements of a pair share the machine's state, two medians may not.
        `disturbance` is the largest of all measurements: see Timed.
        """
        ours, peer = [timed.rate for timed in self.ours], [timed.rate for timed in self.peer]
        ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)] if peer else []
        waits = [timed.disturbance for timed in (*self.ours, *self.peer) if timed.disturbance is not None]
        return {
            "ours": rounded(median(ours)),
            "peer": rounded(median(peer)) if peer else None,
            "ratio": rounded(median(ratios)) if ratios else None,
            "ratio_spread": [rounded(min(ratios)), rounded(max(ratios))] if ratios else None,
            "ours_rates": list(map(rounded, ours)),
            "peer_rates": list(map(rounded, peer)),
            "disturbance": rounded(max(waits)) if waits else None,
        }


def figures_of(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """The figures of one model's entry, by workload."""
    return {name: value for name, value in entry.items() if isinstance(value, Mapping) and "ratio" in value}


def figure_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model and workload, headings first."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for model, entry in results.items():
        for workload, figure in figures_of(entry).items():
            rates = [_NONE if figure[side] is None else shown_rate(figure[side]) for side in ("ours", "peer")]
            rows.append((model, workload, *rates, *_ratio_cells(figure), _disturbance_cell(figure)))
    return rows


def size_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model: what its weights take in the file and on the device, headings first."""
    rows: list[tuple[str, ...]] = [_SIZE_HEAD]
    for model, entry in results.items():
        file_bytes, device_bytes, seconds = (
            entry["engine"][name] for name in ("file_bytes", "device_bytes", "load_seconds")
        )
        share = f"{device_bytes / file_bytes:.3f}"
        rows.append((model, f"{file_bytes:,}", f"{device_bytes:,}", share, f"{seconds:.1f}"))
    return rows


def is_disturbed(figure: Mapping[str, Any]) -> bool:
    """Whether other work took so much of the CPU that the figure tells little."""
    return bool((figure["disturbance"] or 0.0) > DISTURBED)


def shown_rate(rate: float) -> str:
    """Tokens per second for the eye."""
    return f"{rate:,.0f}" if rate >= 1000 else f"{rate:.3g}"


def markdown(results: Results) -> str:
    """The report as a page, of results that were measured in one run."""
    first = next(iter(results.values()))
    machine, engine, peer = first["machine"], first["engine"], first["peer"]
    lines = [
        "# Results",
        "",
        "Written by `make bench`; NOTES.md tells how to read it.",
        "",
        f"- commit: {first['commit']}",
        f"- machine: {machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs, "
        f"{', '.join(machine['instructions'])}; {machine['system']}; load before the run {machine['load_1min']}",
        f"- device: {engine['device']} ({engine['driver']}), numerics {engine['numerics_id']}",
    ]
    if peer:
        lines += [f"- peer: {peer['version']}, `{peer['command']}`", f"- its build: {peer['system_info']}"]
    return "\n".join([*lines, "", *markdown_table(figure_rows(results)), "", *markdown_table(size_rows(results)), ""])


def markdown_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose first row has the headings; columns after the first stand right."""
    head, *body = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


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


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
