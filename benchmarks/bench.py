"""`make bench`: tokens per second beside llama.cpp's, the two alternating in one run.

usage: python -m benchmarks.bench [--model FILE] [--pairs N] [--threads N] [--quick] [--no-peer] [--profile]
                                  [--json FILE]

`clforge bench` is the same for one file, of an installed package.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from benchmarks.config import BenchConfig
from benchmarks.llama_cpp import peer_python
from benchmarks.models import FOLDER, MODELS, find_shared_data, make_model
from benchmarks.plots import plot_ratios
from benchmarks.report import markdown
from engine_service.bench.config import PAIRS, QUICK_PAIRS
from engine_service.bench.display import ProgressDisplay, show, warn_if_busy
from engine_service.bench.machine import ROOT, commit
from engine_service.bench.session import Plan, Session
from engine_service.bench.workloads import ALL, QUICK
from service_common.options import command
from service_common.resources import usable_cpus

_RESULTS = ROOT / "benchmarks" / "results.json"
app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False, soft_wrap=True)


def find_models(config: BenchConfig) -> list[Path]:
    """The files to measure, made where they are missing."""
    if config.model is not None:
        return [config.model.absolute()]
    shared_data, paths = find_shared_data(), []
    for model in MODELS:
        if model.needs_peer and not config.peer and not (FOLDER / model.file_name).exists():
            console.print(f"{model.file_name} is left out: only llama.cpp can make it, and --no-peer was given")
            continue
        console.print(f"{model.file_name}: made in build/models if it is not there (a minute or two)")
        paths.append(make_model(model, shared_data, peer_python))
    return paths


def plan_of(config: BenchConfig, outputs: tuple[Path, ...]) -> Plan:
    """What a run measures; its commit does not count changes to `outputs`."""
    return Plan(
        workloads=QUICK if config.quick else ALL,
        num_pairs=config.pairs or (QUICK_PAIRS if config.quick else PAIRS),
        threads=config.threads or usable_cpus(),
        peer_python=peer_python() if config.peer else None,
        commit=commit(outputs),
        profile=config.profile,
    )


def write(results: dict[str, Any], output: Path) -> None:
    """Writes the results so far, the page that people read, and its picture where it can be drawn."""
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    plots = [picture.name] if plot_ratios(results, picture := output.with_suffix(".svg")) else []
    output.with_suffix(".md").write_text(markdown(results, plots), encoding="utf-8")


@app.command()
@command(BenchConfig)
def run(config: BenchConfig) -> None:
    """Measure prefill and decode, beside llama.cpp's, and write a table, a JSON file and a page."""
    output = config.json or _RESULTS
    plan = plan_of(config, tuple(output.with_suffix(suffix) for suffix in (output.suffix, ".md", ".svg")))
    session = Session(plan)
    warn_if_busy(console, session.machine)
    results: dict[str, Any] = {}
    for path in find_models(config):
        with ProgressDisplay(console, path.stem, plan.num_turns) as display:
            results[path.stem] = session.measure(path, display)
        write(results, output)
    show(results)


if __name__ == "__main__":
    app()
