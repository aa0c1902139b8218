"""`make bench`, second half: prefix cache, long prompts beside running requests, overload, the scheduler's cost, start
and memory, what the SDK costs, how much each SDK reads, drafts, the tokenizer, structured output.

usage: python -m benchmarks.serving [--only PART] [--rounds N] [--model FILE] [--json FILE]
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.table import Table

from benchmarks.config import PartName, ServingConfig
from benchmarks.llama_cpp import peer_python
from benchmarks.models import BenchVocabulary, find_shared_data, make_model
from benchmarks.parts import PARTS, Part
from benchmarks.serving_report import markdown, summarised, table_rows
from engine_service.bench.machine import ROOT, busy_seconds, commit, machine_facts
from service_common.options import command
from service_common.resources import usable_cpus

_RESULTS = ROOT / "benchmarks" / "results.serving.json"
_FILE_WIDTH = 120  # columns of the table where standard output is no terminal
app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False, soft_wrap=True)


class ServingBench:
    """One run. Parts that it leaves out keep the results that they had."""

    def __init__(self, config: ServingConfig) -> None:
        self.output = config.json or _RESULTS
        self._config = config
        self._commit = commit((self.output, self.output.with_suffix(".md")))

    def measure(self, name: PartName) -> dict[str, Any]:
        """A part's entry in the results: medians and all rounds, beside what it was measured on."""
        part = PARTS[name]
        model = self._find_model(part)
        machine = machine_facts(usable_cpus())
        rounds, others = [], []
        for number in range(1, self._config.rounds + 1):
            console.print(f"{name}: round {number} of {self._config.rounds}")
            started, busy = time.perf_counter(), _others_seconds()
            rounds.append(part.measure(model, number))
            others.append((_others_seconds() - busy) / (time.perf_counter() - started))
        facts = {"model": model.name, "machine": machine, "commit": self._commit, "other_cpus": round(max(others), 2)}
        return {**summarised(rounds, part.limits), **facts}

    def read(self) -> dict[str, Any]:
        """The results of earlier runs."""
        results: dict[str, Any] = json.loads(self.output.read_text("utf-8")) if self.output.exists() else {}
        return results

    def write(self, results: dict[str, Any]) -> None:
        """Writes the results so far, parts in their fixed order."""
        ordered = {str(name): results[name] for name in PartName if name in results}
        self.output.write_text(json.dumps(ordered, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.output.with_suffix(".md").write_text(markdown(ordered), encoding="utf-8")

    def _find_model(self, part: Part) -> Path:
        if self._config.model is not None:
            return self._config.model.absolute()
        if isinstance(part.model, Path):
            return part.model
        if isinstance(part.model, BenchVocabulary):
            return find_shared_data() / part.model.file_name
        return make_model(part.model, find_shared_data(), peer_python)


def _others_seconds() -> float:
    """CPU time of all processes but this one and those it has started and seen the end of."""
    times = os.times()
    return busy_seconds() - sum(times[:4])


def show(results: dict[str, Any]) -> None:
    """Prints the table to standard output."""
    head, *body = table_rows(results)
    table = Table(title="serving")
    for index, column in enumerate(head):
        table.add_column(column, justify="right" if index > 1 else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else _FILE_WIDTH).print(table)


@app.command()
@command(ServingConfig)
def run(config: ServingConfig) -> None:
    """Measure how the server serves many, and write a table, a JSON file and a page."""
    bench = ServingBench(config)
    results = bench.read()
    for name in [config.only] if config.only else PartName:
        results[name] = bench.measure(name)
        bench.write(results)
    show(results)


if __name__ == "__main__":
    app()
