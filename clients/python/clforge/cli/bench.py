"""`clforge bench`: one model's speed on this machine, beside llama.cpp's if wanted."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from clforge.cli import exit_codes
from clforge.cli.config import BenchPeer
from engine_service.bench.config import PAIRS, peer_python
from engine_service.bench.display import ProgressDisplay, show, warn_if_busy
from engine_service.bench.machine import commit
from engine_service.bench.session import Plan, Session
from engine_service.bench.workloads import BASIC
from service_common.errors import ConfigError
from service_common.resources import usable_cpus


@dataclass(frozen=True)
class BenchOptions:
    """What was asked for; None stands for a default."""

    against: BenchPeer | None
    output: Path | None
    profile: bool
    threads: int | None
    pairs: int | None


def run(model: Path, options: BenchOptions) -> int:
    """Measures and prints tables; returns the exit code. StartupError where model, peer or output will not do."""
    if options.output is not None and not options.output.absolute().parent.is_dir():
        raise ConfigError(f"--json: there is no folder {options.output.absolute().parent}")
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    plan = Plan(
        workloads=BASIC,
        num_pairs=options.pairs or PAIRS,
        threads=options.threads or usable_cpus(),
        peer_python=None if options.against is None else peer_python(),
        commit=commit(() if options.output is None else (options.output,)),
        profile=options.profile,
    )
    session = Session(plan)
    warn_if_busy(console, session.machine)
    with ProgressDisplay(console, model.stem, plan.num_turns) as display:
        results = session.measure(model.absolute(), display)
    show({model.stem: results})
    if options.output is not None:
        _write(results, options.output)
    return exit_codes.OK


def _write(results: dict[str, Any], output: Path) -> None:
    output.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
