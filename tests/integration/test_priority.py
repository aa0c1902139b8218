"""Who gets a CPU first where there are too few."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.gguf_builder import tiny_llama
from tests.integration.processes import two_processes


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has priorities per thread")
def test_compute_gives_way_to_who_answers_callers(tmp_path: Path) -> None:
    """The engine thread and the driver's workers are nicer than the event loops of both processes."""
    model = tmp_path / "tiny.gguf"
    tiny_llama(model, seed=3, layers=1)
    own = os.getpriority(os.PRIO_PROCESS, 0)
    with two_processes(model, "--threads", "2") as running:
        levels = {pid: _niceness(pid) for pid in (running.engine.pid, running.tokenizer.pid)}
        assert [levels[pid][pid] for pid in levels] == [own, own]
        assert sum(nice > own for nice in levels[running.engine.pid].values()) >= 3
        assert set(levels[running.tokenizer.pid].values()) == {own}


def _niceness(pid: int) -> dict[int, int]:
    """Of each thread of a process."""
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
