"""Where and of what the figures were taken."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]  # the tree or, installed, the folder that the packages lie in
_BUSY = 0.5  # CPUs' worth of other work that makes figures doubtful


def machine_facts(threads: int) -> dict[str, Any]:
    """The machine as the report shows it. `load_1min` is how many other threads wanted the CPU before the run."""
    fields = _cpu_fields()
    return {
        "cpu": fields.get("model name", platform.machine()),
        "cpus": os.cpu_count(),
        "threads": threads,
        "instructions": [
            name for name in ("avx2", "fma", "f16c", "avx512f") if name in fields.get("flags", "").split()
        ],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
    }


def is_busy(machine: dict[str, Any]) -> bool:
    """Whether other work was running that disturbs the figures."""
    return bool(machine["load_1min"] > _BUSY)


def busy_seconds() -> float:
    """CPU time that all processes together have used since the machine started, time stolen by its host included.

    0 where the system does not tell (Linux, proc(5), stat: user, nice, system, idle, iowait, irq, softirq, steal).
    """
    try:
        ticks = list(map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]))
    except OSError:
        return 0.0
    return (sum(ticks) - sum(ticks[3:5])) / os.sysconf("SC_CLK_TCK")


def commit(outputs: tuple[Path, ...]) -> str | None:
    """The commit that was measured, with `-dirty` where anything but `outputs` differs from it; None outside a tree.

    An installed package may lie in some other project's tree, whose commit says nothing.
    """
    top = _git("rev-parse", "--show-toplevel")
    if top is None or Path(top) != ROOT.resolve():
        return None
    exclude = [f":(exclude){path.resolve()}" for path in outputs if path.resolve().is_relative_to(ROOT)]
    head = _git("rev-parse", "--short=12", "HEAD")
    changes = _git("status", "--porcelain", "--", str(ROOT), *exclude)
    return head and head + ("-dirty" if changes else "")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True)
    except FileNotFoundError:
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _cpu_fields() -> dict[str, str]:
    """The first processor of /proc/cpuinfo; empty where there is none."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.split("\n\n")[0].splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}
