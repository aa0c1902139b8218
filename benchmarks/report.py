"""The bench's page, and what its reports share."""

from __future__ import annotations

from collections.abc import Sequence

from engine_service.bench.figures import Results, bandwidth_rows, figure_rows, profile_rows, size_rows


def markdown(results: Results, plots: Sequence[str] = ()) -> str:
    """The report as a page, of results that were measured in one run; `plots` are names of pictures beside it."""
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
    for name in plots:
        lines += ["", f"![{name}]({name})"]
    for rows in (figure_rows(results), bandwidth_rows(results), size_rows(results)):
        lines += ["", *markdown_table(rows)]
    for model, entry in results.items():
        for workload, profile in entry.get("profile", {}).items():
            lines += ["", f"## {model}, {workload}", "", *markdown_table(profile_rows(profile))]
    return "\n".join([*lines, ""])


def markdown_table(rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Lines of a table whose first row has the headings; columns after the first stand right."""
    head, *body = rows
    rule = ["---"] + ["---:"] * (len(head) - 1)
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


def percentile(values: Sequence[float], percent: int) -> float:
    """The smallest of `values` that at least so many percent of them do not exceed (nearest rank)."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]
