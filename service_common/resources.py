"""What this process may use of the machine: the smallest of the hardware's and its control groups' figures.

An OpenCL driver on a CPU reports the machine's memory, or less, or nonsense; inside a container the limits that end a
process are the control group's. Both versions of control groups are read, with every ancestor: any may hold the limit.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

_ROOT = Path("/")


def available_memory_bytes(root: Path = _ROOT) -> int:
    """Bytes that this process can still allocate before the kernel would have to swap or kill.

    The smallest of /proc/meminfo's MemAvailable and, for each control group above this process, limit − usage + file
    cache: cache is given up before a process is killed. At least 0. `root` stands for `/`, so that tests can build one.
    """
    figures = [
        _machine_available_bytes(root),
        *(_group_available_bytes(group, "memory.max", "memory.current", "") for group in _groups(root, None)),
        *(_group_available_bytes(group, "memory.high", "memory.current", "") for group in _groups(root, None)),
        *(
            _group_available_bytes(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_")
            for group in _groups(root, "memory")
        ),
    ]
    return max(0, min(figure for figure in figures if figure is not None))


def cpu_quota(root: Path = _ROOT) -> float | None:
    """CPUs' worth of time that the control groups allow (1.5 means one and a half), or None where nothing limits it."""
    quotas = [_quota(_words(group / "cpu.max")) for group in _groups(root, None)]
    quotas += [
        _quota([*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")])
        for group in _groups(root, "cpu")
    ]
    return min((quota for quota in quotas if quota is not None), default=None)


def usable_cpus(root: Path = _ROOT) -> int:
    """Threads worth starting for compute: the CPUs this process may run on, within the quota rounded down; at least 1.

    Rounded down because kernels end at a barrier: a thread that is throttled stalls all others.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota(root)
    return cpus if quota is None else max(1, min(cpus, int(quota)))


def processor_flags(root: Path = _ROOT) -> frozenset[str]:
    """Names of the processor's instruction set extensions, as the kernel lists them; empty where it does not."""
    flags = (words[2:] for words in _lines(root / "proc/cpuinfo") if words[:2] == ["flags", ":"])
    return frozenset(next(flags, []))


def _machine_available_bytes(root: Path) -> int:
    fields = {words[0]: int(words[1]) * 1024 for words in _lines(root / "proc/meminfo") if len(words) >= 2}
    if "MemAvailable:" in fields:
        return fields["MemAvailable:"]
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _group_available_bytes(group: Path, limit_file: str, usage_file: str, prefix: str) -> int | None:
    """Bytes left in one control group, or None where it has no such limit; `prefix` is that of names in memory.stat."""
    limit, usage = _words(group / limit_file), _words(group / usage_file)
    if not (limit and usage and limit[0].isdigit() and usage[0].isdigit()):
        return None
    stat = {words[0]: int(words[1]) for words in _lines(group / "memory.stat") if len(words) == 2}
    cache = stat.get(f"{prefix}active_file", 0) + stat.get(f"{prefix}inactive_file", 0)
    return int(limit[0]) - int(usage[0]) + cache


def _quota(words: list[str]) -> float | None:
    """CPUs from a quota and a period in microseconds; "max" and -1 mean no limit."""
    if len(words) < 2 or not (words[0].isdigit() and words[1].isdigit()) or int(words[1]) == 0:
        return None
    return int(words[0]) / int(words[1])


def _groups(root: Path, controller: str | None) -> Iterator[Path]:
    """Folders of this process's control group and its ancestors, innermost first.

    `controller` is a version 1 controller's name, None means version 2. The path in /proc/self/cgroup may be the host's
    while the mount shows the container's part only; then its folders do not exist, and the mount holds the limits.
    """
    for line in _text(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller is None and (number, controllers) == ("0", ""):
            mount = root / "sys/fs/cgroup"
        elif controller is not None and controller in controllers.split(","):
            mount = root / "sys/fs/cgroup" / controller
        else:
            continue
        group = Path(path.lstrip("/"))
        if ".." in group.parts:
            group = Path()
        yield from (mount / folder for folder in dict.fromkeys([group, *group.parents]))


def _lines(path: Path) -> list[list[str]]:
    return [line.split() for line in _text(path).splitlines()]


def _words(path: Path) -> list[str]:
    return _text(path).split()


def _text(path: Path) -> str:
    """The file's text, or nothing: a machine may lack any of these files or refuse to show them."""
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
