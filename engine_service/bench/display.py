"""A run of the bench for the eye: how far it is, and its tables."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from engine_service.bench.figures import (
    Results,
    bandwidth_rows,
    figure_rows,
    figures_of,
    is_disturbed,
    profile_rows,
    size_rows,
)
from engine_service.bench.machine import is_busy

_FILE_WIDTH = 120  # columns of the tables where standard output is no terminal


class ProgressDisplay:
    """A session.Display on standard error: a line per measurement and, on a terminal, a bar below them."""

    def __init__(self, console: Console, title: str, num_turns: int) -> None:
        self._title = title
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        self._progress = Progress(*columns, console=console, transient=True)
        self._task = self._progress.add_task(title, total=num_turns)
        self._loading: dict[str, Any] = {}

    def say(self, text: str) -> None:
        """Shows a line."""
        self._progress.console.print(f"{self._title} {text}")

    def advance(self) -> None:
        """Moves the bar on."""
        self._progress.advance(self._task)

    def loading(self, name: str, fraction: float) -> None:
        """Shows a bar of its own until the model is loaded."""
        if name not in self._loading:
            self._loading[name] = self._progress.add_task(f"{name} loads, %", total=100)
        task = self._loading[name]
        self._progress.update(task, completed=round(100 * fraction), visible=fraction < 1)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._progress.stop()


def warn_if_busy(console: Console, machine: dict[str, Any]) -> None:
    """Says so before hours are spent on figures that will tell little."""
    if is_busy(machine):
        console.print(f"[yellow]other work keeps {machine['load_1min']} CPUs busy: figures will be noisy")


def show(results: Results) -> None:
    """Prints the tables to standard output."""
    out = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH)
    tables = {
        "tokens per second": figure_rows(results),
        "one sequence's decode, beside copies of memory": bandwidth_rows(results),
        "weights": size_rows(results),
    }
    for model, entry in results.items():
        for workload, profile in entry.get("profile", {}).items():
            times = f"a step takes {profile['step_ms']:.3g} ms, its kernels one by one {profile['sum_ms']:.3g} ms"
            tables[f"{model} {workload}: {times}"] = profile_rows(profile)
    for title, rows in tables.items():
        _print(out, title, rows)
    figures = [figure for entry in results.values() for figure in figures_of(entry).values()]
    if any(map(is_disturbed, figures)):
        err = Console(stderr=True, highlight=False, soft_wrap=True)
        err.print("[yellow]figures with ! tell little: other work took the CPU away; run again on a quiet machine")


def _print(out: Console, title: str, rows: Sequence[tuple[str, ...]]) -> None:
    head, *body = rows
    if not body:
        return
    table = Table(title=title)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in body:
        table.add_row(*row)
    out.print(table)
