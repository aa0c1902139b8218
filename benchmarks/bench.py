"""`make bench`: tokens per second beside llama.cpp's, the two alternating in one run.

usage: python -m benchmarks.bench [--model FILE] [--pairs N] [--quick] [--no-peer] [--threads N] [--json FILE]
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from benchmarks.config import PAIRS, QUICK_PAIRS, BenchConfig, OursConfig
from benchmarks.figures import figure_rows, figures_of, is_disturbed, markdown, size_rows
from benchmarks.machine import commit, is_busy, machine_facts
from benchmarks.models import FOLDER, MODELS, find_shared_data, make_model
from benchmarks.peer import VARIABLE, peer_python, peer_version
from benchmarks.protocol import ROOT, BenchError, Side, SideProcess
from benchmarks.workloads import DECODE_1, DECODE_8, OURS, PEER, PREFILL, measure, random_prompts
from service_common.options import child_environment, command, to_argv
from service_common.resources import usable_cpus

_SEED = 1
_FILE_WIDTH = 120  # columns of the tables where standard output is no terminal
_RESULTS = ROOT / "benchmarks" / "results.json"
app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False, soft_wrap=True)


class Bench:
    """One run: what is the same for all its models."""

    def __init__(self, config: BenchConfig) -> None:
        self.output = config.json or _RESULTS
        self._threads = config.threads or usable_cpus()
        self._num_pairs = config.pairs or (QUICK_PAIRS if config.quick else PAIRS)
        self._workloads = (PREFILL, DECODE_1) if config.quick else (PREFILL, DECODE_1, DECODE_8)
        self._peer = peer_build() if config.peer else None
        self._machine = machine_facts(self._threads)
        self._commit = commit((self.output, self.page))
        if is_busy(self._machine):
            console.print(f"[yellow]other work keeps {self._machine['load_1min']} CPUs busy: figures will be noisy")

    @property
    def page(self) -> Path:
        """Where the report goes that people read."""
        return self.output.with_suffix(".md")

    def measure(self, path: Path) -> dict[str, Any]:
        """All workloads on one model: its entry in the results."""
        with ExitStack() as stack:
            ours = stack.enter_context(self._open_ours(path))
            sides: dict[str, Side] = {OURS: ours}
            peer_facts = None
            if self._peer is not None:
                peer = stack.enter_context(self._open_peer(path))
                sides[PEER] = peer
                command_line = f"python -m benchmarks.peer_speed {path.name} {self._threads}"
                peer_facts = {**self._peer, **peer.facts, "command": command_line}
            prompts = random_prompts(ours.facts["vocab_size"], _SEED)
            figures = {
                workload.name: measure(sides, workload, self._num_pairs, prompts, _say_of(path)).to_json()
                for workload in self._workloads
            }
        facts = {"machine": self._machine, "engine": ours.facts, "peer": peer_facts, "commit": self._commit}
        return {**figures, **facts}

    def write(self, results: dict[str, Any]) -> None:
        """Writes the results so far."""
        self.output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        self.page.write_text(markdown(results), encoding="utf-8")

    def _open_ours(self, path: Path) -> SideProcess:
        config = OursConfig(
            model=path,
            threads=self._threads,
            context_length=max(workload.max_len(self._num_pairs) for workload in self._workloads),
            max_num_seqs=sum(workload.num_seqs for workload in self._workloads),
        )
        return _open(OURS, path, [sys.executable, "-m", "benchmarks.ours", *to_argv(config)], child_environment())

    def _open_peer(self, path: Path) -> SideProcess:
        python = str(find_peer())
        return _open(PEER, path, [python, "-m", "benchmarks.peer_speed", str(path), str(self._threads)])


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
        paths.append(make_model(model, shared_data, find_peer))
    return paths


def find_peer() -> Path:
    """The peer's Python, built if need be. BenchError where that fails."""
    try:
        return peer_python()
    except (subprocess.CalledProcessError, OSError) as error:
        raise BenchError(f"llama.cpp could not be built; --no-peer measures ours alone ({error})") from error


def peer_build() -> dict[str, str]:
    """The peer's version and instruction sets, without which a ratio says nothing. BenchError where one is missing."""
    python = find_peer()
    try:
        build = peer_version()
    except (subprocess.CalledProcessError, OSError) as error:
        said = getattr(error, "stderr", None) or str(error)
        raise BenchError(
            f"{python} has no llama.cpp ({said.splitlines()[-1]}): unset {VARIABLE} to have it built"
        ) from error
    if not all(build.values()):
        raise BenchError(f"llama.cpp tells no version or no instruction sets: {build}")
    return build


def _open(name: str, path: Path, arguments: list[str], environment: dict[str, str] | None = None) -> SideProcess:
    """Starts a side, showing how far it has loaded the model."""
    with Progress(console=console) as progress:
        task = progress.add_task(f"{path.name}: {name} loads", total=1.0)
        side = SideProcess(name, arguments, environment, lambda fraction: progress.update(task, completed=fraction))
        progress.update(task, completed=1.0)
    return side


def _say_of(path: Path) -> Callable[[str], None]:
    return lambda text: console.print(f"{path.stem} {text}")


def show(results: dict[str, Any]) -> None:
    """Prints the tables to standard output."""
    out = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    for title, (head, *body) in (("tokens per second", figure_rows(results)), ("weights", size_rows(results))):
        table = Table(title=title)
        for index, name in enumerate(head):
            table.add_column(name, justify="right" if index else "left", overflow="fold")
        for row in body:
            table.add_row(*row)
        out.print(table)
    figures = [figure for entry in results.values() for figure in figures_of(entry).values()]
    if any(map(is_disturbed, figures)):
        console.print("[yellow]figures with ! tell little: other work took the CPU away; run again on a quiet machine")


@app.command()
@command(BenchConfig)
def run(config: BenchConfig) -> None:
    """Measure prefill and decode, beside llama.cpp's, and write a table, a JSON file and a page."""
    bench = Bench(config)
    results: dict[str, Any] = {}
    for path in find_models(config):
        results[path.stem] = bench.measure(path)
        bench.write(results)
    show(results)


if __name__ == "__main__":
    app()
