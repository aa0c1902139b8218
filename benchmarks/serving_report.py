"""From the rounds of a serving part to medians, limits and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from benchmarks.parts import Limit
from benchmarks.report import markdown_table
from engine_service.bench.figures import rounded

Results = Mapping[str, Mapping[str, Any]]

DISTURBED = 0.1  # CPUs' worth of other processes' work above which a figure tells little
_HEAD = ("part", "figure", "median", "smallest", "largest", "limit", "kept")


def summarised(rounds: Sequence[Mapping[str, float]], limits: Mapping[str, Limit]) -> dict[str, Any]:
    """Per figure the median, all rounds and, where it has one, its limit and whether the median keeps it."""
    figures: dict[str, Any] = {}
    for name in rounds[0]:
        values = [figures_of_round[name] for figures_of_round in rounds]
        figures[name] = {"median": rounded(median(values)), "rounds": list(map(rounded, values))}
        if name in limits:
            figures[name] |= {"limit": str(limits[name]), "kept": limits[name].holds(median(values))}
    return {"figures": figures}


def table_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per figure, headings first."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for part, entry in results.items():
        mark = " !" * is_disturbed(entry)
        for name, figure in entry["figures"].items():
            low, high = min(figure["rounds"]), max(figure["rounds"])
            kept = {True: "yes", False: "no"}[figure["kept"]] if "limit" in figure else ""
            cells = list(map(_shown, (figure["median"], low, high)))
            rows.append((part, name, cells[0] + mark, *cells[1:], figure.get("limit", ""), kept))
    return rows


def is_disturbed(entry: Mapping[str, Any]) -> bool:
    """Whether other processes took so much of the CPUs that the part's figures tell little."""
    return bool(entry["other_cpus"] > DISTURBED)


def markdown(results: Results) -> str:
    """The report as a page. Parts may come from different runs, so each tells its own circumstances."""
    facts = [
        f"- {part}: {entry['model']}, commit {entry['commit']}, {entry['machine']['cpu']}, "
        f"{entry['machine']['threads']} of {entry['machine']['cpus']} CPUs; other processes kept "
        f"{entry['other_cpus']:.2f} CPUs busy, load before {entry['machine']['load_1min']}"
        for part, entry in results.items()
    ]
    lines = ["# Serving", "", "Written by `python -m benchmarks.serving`; NOTES.md tells how to read it.", "", *facts]
    return "\n".join([*lines, "", *markdown_table(table_rows(results)), ""])


def _shown(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"
