"""From pairs of rounds on two servers to ratios, and a page."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from benchmarks.report import markdown_table
from engine_service.bench.figures import Results, rounded

_FILE_WIDTH = 120  # columns of the table where standard output is no terminal
_HEAD = ("model", "figure", "ours", "llama-server", "ratio", "spread")


class Round(NamedTuple):
    """What the clients of one server saw in one measurement; the field names are those of the figures."""

    tokens_per_s: float
    first_token_p50_s: float


def figures_of_pairs(pairs: Sequence[Mapping[str, Round]]) -> dict[str, Any]:
    """Per figure the medians of `ours` and `peer`, the median of the pairs' ratios, its spread, and all values."""
    return {
        name: _summary(*([getattr(pair[side], name) for pair in pairs] for side in ("ours", "peer")))
        for name in Round._fields
    }


def table_rows(results: Results) -> list[tuple[str, ...]]:
    """One row per model and figure, headings first."""
    rows: list[tuple[str, ...]] = [_HEAD]
    for model, entry in results.items():
        for name in Round._fields:
            figure = entry[name]
            low, high = figure["ratio_spread"]
            values = f"{figure['ours']:.4g}", f"{figure['peer']:.4g}", f"{figure['ratio']:.2f}"
            rows.append((model, name, *values, f"{low:.2f}–{high:.2f}"))
    return rows


def markdown(results: Results) -> str:
    """The report as a page, of results that were measured in one run."""
    first = next(iter(results.values()))
    machine, peer, load = first["machine"], first["peer"], first["load"]
    lines = [
        "# `clforge serve` beside llama-server",
        "",
        "Written by `python -m benchmarks.serve_against`; NOTES.md tells how to read it.",
        "",
        f"- commit: {first['commit']}",
        f"- machine: {machine['cpu']}, {machine['threads']} threads of {machine['cpus']} CPUs; "
        f"{machine['system']}; load before the run {machine['load_1min']}",
        f"- peer: {peer['version']}, of the sources in {peer['sources']}; `{peer['command']}`",
        f"- its build: {peer['system_info']}",
        f"- load: {load['streams']} streams, {load['requests']} requests a measurement, prompts of "
        f"{load['prompt_words']} words, {load['max_tokens']} new tokens",
        "",
        *markdown_table(table_rows(results)),
    ]
    return "\n".join([*lines, ""])


def show(results: Results) -> None:
    """Prints the table to standard output."""
    head, *body = table_rows(results)
    table = Table(title="clforge serve beside llama-server")
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index > 1 else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else _FILE_WIDTH).print(table)


def _summary(ours: Sequence[float], peer: Sequence[float]) -> dict[str, Any]:
    ratios = [mine / theirs for mine, theirs in zip(ours, peer, strict=True)]
    return {
        "ours": rounded(median(ours)),
        "peer": rounded(median(peer)),
        "ratio": rounded(median(ratios)),
        "ratio_spread": [rounded(min(ratios)), rounded(max(ratios))],
        "ours_values": list(map(rounded, ours)),
        "peer_values": list(map(rounded, peer)),
    }
