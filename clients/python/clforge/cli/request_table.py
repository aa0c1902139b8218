"""Live requests as a table, and the load in a line; for `status` and `top` alike."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from rich.console import Console
from rich.table import Table

from clforge.cli.formats import age
from clforge.load import Load, RequestInfo
from service_common.terminal import printable

_FILE_WIDTH = 120  # columns where standard output is no terminal


def output() -> Console:
    """Standard output, for tables that are cut off only where a terminal is narrow."""
    return Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)


def requests_line(load: Load) -> str:
    """How many there are."""
    paused = f", {load.num_requests_paused} paused" if load.num_requests_paused else ""
    return f"{load.num_requests_running} running, {load.num_requests_waiting} waiting{paused}"


def kv_line(load: Load) -> str:
    """What the KV cache holds."""
    cached = load.num_cached_blocks / load.num_blocks if load.num_blocks else 0.0
    return f"{load.kv_usage:.1%} of {load.num_blocks * load.block_size:,} tokens in use, {cached:.1%} kept for reuse"


def request_table(requests: Sequence[RequestInfo], rates: Mapping[str, float] | None = None) -> Table:
    """A row for each; `rates` are tokens per second by global id, a column of its own where given."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("ID", no_wrap=True)
    table.add_column("STATE")
    for name in ("PROMPT", "GENERATED", *(["TOKENS/S"] if rates is not None else []), "BLOCKS", "PRIORITY", "AGE"):
        table.add_column(name, justify="right", no_wrap=True)
    for info in requests:
        rate = [] if rates is None else [f"{rates[info.global_id]:.1f}" if info.global_id in rates else "-"]
        figures = (info.num_prompt_tokens, info.num_generated_tokens)
        others = (info.num_blocks, info.priority, age(info.age_seconds))
        state = info.state or "unknown"
        table.add_row(printable(info.global_id), state, *map(str, figures), *rate, *map(str, others))
    return table
