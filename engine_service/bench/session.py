"""One run of the bench: both sides in processes of their own, one model after the other."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from engine_service.bench.config import OursConfig
from engine_service.bench.machine import machine_facts
from engine_service.bench.peer import check_peer, peer_build, peer_command, shown_command
from engine_service.bench.protocol import Side, SideProcess
from engine_service.bench.workloads import (
    DECODE_1,
    DECODE_8,
    OURS,
    PEER,
    PREFILL,
    Growth,
    Listener,
    Workload,
    measure,
    num_turns,
    random_prompts,
)
from service_common.options import child_environment, to_argv

_SEED = 1
_PROFILED = (PREFILL, DECODE_1, DECODE_8)
_PROFILED_STEPS = 4


class Display(Listener, Protocol):
    """A Listener that also hears how far a side has loaded its model."""

    def loading(self, name: str, fraction: float) -> None:
        """Side `name` has loaded so much of it."""


@dataclass(frozen=True)
class Plan:
    """What a run measures. `peer_python` None: ours alone."""

    workloads: Sequence[Workload | Growth]
    num_pairs: int
    threads: int
    peer_python: Path | None
    commit: str | None
    profile: bool = False

    @property
    def num_turns(self) -> int:
        """How often `Listener.advance` will be called for a model."""
        return len(self.workloads) * num_turns(self.num_pairs) + len(_PROFILED) * self.profile


class Session:
    """What is the same for all models of a run. BenchError, before anything is measured, where the peer will not do."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self.machine = machine_facts(plan.threads)
        self._peer = None if plan.peer_python is None else peer_build(plan.peer_python)

    def measure(self, path: Path, display: Display) -> dict[str, Any]:
        """All workloads on one model: its entry in the results."""
        plan = self._plan
        peer_facts = self._peer_facts(path)
        with ExitStack() as stack:
            ours = stack.enter_context(self._open_ours(path, display))
            sides: dict[str, Side] = {OURS: ours}
            if plan.peer_python is not None and peer_facts is not None:
                peer = stack.enter_context(self._open_peer(plan.peer_python, path, display))
                sides[PEER], peer_facts = peer, {**peer_facts, **peer.facts}
            prompts = random_prompts(ours.facts["vocab_size"], _SEED)
            figures: dict[str, Any] = {}
            for workload in plan.workloads:
                figure = measure(sides, ours, workload, plan.num_pairs, prompts, display)
                figures[workload.name] = figure.to_json()
                if figure.copies:
                    figures["bandwidth"] = figure.bandwidth(ours.facts["file_bytes"], ours.facts["step_bytes"])
            if plan.profile:
                figures["profile"] = _profiles(ours, display)
        return {**figures, "machine": self.machine, "engine": ours.facts, "peer": peer_facts, "commit": plan.commit}

    def _peer_facts(self, path: Path) -> dict[str, Any] | None:
        if self._peer is None:
            return None
        facts = {**self._peer, "command": shown_command(path, self._plan.threads)}
        check_peer(facts, self.machine["instructions"])
        return facts

    def _open_ours(self, path: Path, display: Display) -> SideProcess:
        plan = self._plan
        sequences = [(workload.num_seqs, workload.max_len(plan.num_pairs)) for workload in plan.workloads]
        if plan.profile:
            sequences += [(workload.num_seqs, workload.prompt_len + 1 + _PROFILED_STEPS) for workload in _PROFILED]
        config = OursConfig(
            model=path,
            threads=plan.threads,
            context_length=max(length for _, length in sequences),
            max_num_seqs=sum(num_seqs for num_seqs, _ in sequences),
            num_cached_tokens=sum(num_seqs * length for num_seqs, length in sequences),
        )
        command = [sys.executable, "-P", "-m", "engine_service.bench.ours", *to_argv(config)]
        return SideProcess(OURS, command, child_environment(), _loading(OURS, display))

    def _open_peer(self, python: Path, path: Path, display: Display) -> SideProcess:
        command = peer_command(python, path, self._plan.threads)
        return SideProcess(PEER, command, on_progress=_loading(PEER, display))


def _loading(name: str, display: Display) -> Callable[[float], None]:
    return lambda fraction: display.loading(name, fraction)


def _profiles(ours: SideProcess, display: Display) -> dict[str, Any]:
    profiles = {}
    for workload in _PROFILED:
        display.say(f"{workload.name}: each kernel is timed")
        num_steps = _PROFILED_STEPS if workload.num_steps else 0
        profiles[workload.name] = ours.profile(
            f"profile of {workload.name}", workload.num_seqs, workload.prompt_len, num_steps
        )
        display.advance()
    return profiles
