"""What a process may use, on machines built from files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from service_common.resources import available_memory_bytes, cpu_quota, processor_flags, usable_cpus

GIB = 2**30


def machine(root: Path, files: dict[str, str]) -> Path:
    """A root folder with the given files and 8 GiB of available memory."""
    for name, text in {"proc/meminfo": f"MemTotal: 99999999 kB\nMemAvailable: {8 * GIB // 1024} kB\n", **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_without_control_groups_the_machine_alone_counts(tmp_path: Path) -> None:
    """MemAvailable is the answer, and no quota is known."""
    root = machine(tmp_path, {})
    assert available_memory_bytes(root) == 8 * GIB
    assert cpu_quota(root) is None


def test_version_2_limit_of_an_ancestor_counts(tmp_path: Path) -> None:
    """The smallest limit on the way up wins; file cache counts as available."""
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "0::/pod/box\n",
            "sys/fs/cgroup/pod/memory.max": f"{4 * GIB}\n",
            "sys/fs/cgroup/pod/memory.current": f"{3 * GIB}\n",
            "sys/fs/cgroup/pod/memory.stat": f"anon 1\nactive_file {GIB}\ninactive_file {GIB // 2}\n",
            "sys/fs/cgroup/pod/box/memory.max": "max\n",
            "sys/fs/cgroup/pod/box/memory.current": "0\n",
            "sys/fs/cgroup/pod/box/cpu.max": "150000 100000\n",
            "sys/fs/cgroup/pod/cpu.max": "max 100000\n",
        },
    )
    assert available_memory_bytes(root) == GIB + GIB + GIB // 2
    assert cpu_quota(root) == 1.5


def test_version_1_limit_is_found_at_the_mount_of_a_container(tmp_path: Path) -> None:
    """A path that only the host can see falls back to the mount; an unlimited group changes nothing."""
    root = machine(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu,cpuacct:/docker/x\n4:memory:/docker/x\n0::/\n",
            "sys/fs/cgroup/memory/memory.limit_in_bytes": f"{2 * GIB}\n",
            "sys/fs/cgroup/memory/memory.usage_in_bytes": f"{GIB}\n",
            "sys/fs/cgroup/memory/memory.stat": "total_active_file 4096\ntotal_inactive_file 0\nactive_file 9\n",
            "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
            "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
        },
    )
    assert available_memory_bytes(root) == GIB + 4096
    assert cpu_quota(root) is None


@pytest.mark.parametrize("text", ["", "garbage", "100000", "100000 0", "-5 100000"])
def test_unreadable_quota_is_no_quota(tmp_path: Path, text: str) -> None:
    """Odd file contents never crash the start-up (BACKEND-2)."""
    files = {
        "proc/self/cgroup": "0::/../outside\n",
        "sys/fs/cgroup/cpu.max": text,
        "sys/fs/cgroup/memory.max": text,
        "sys/fs/cgroup/memory.current": "x",
    }
    root = machine(tmp_path, files)
    assert cpu_quota(root) is None
    assert available_memory_bytes(root) == 8 * GIB


def test_usage_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    """A limit lowered below the usage gives 0, never a negative count."""
    files = {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/memory.max": "10", "sys/fs/cgroup/memory.current": "20"}
    assert available_memory_bytes(machine(tmp_path, files)) == 0


@pytest.mark.parametrize(("quota", "threads"), [("50000 100000", 1), ("1000000000 100000", None)])
def test_threads_stay_within_quota_and_affinity(tmp_path: Path, quota: str, threads: int | None) -> None:
    """Half a CPU still gives one thread; a quota above the CPUs gives all of them."""
    root = machine(tmp_path, {"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": quota})
    assert usable_cpus(root) == (threads or len(os.sched_getaffinity(0)))


def test_this_machine_has_memory() -> None:
    """The real files are understood."""
    assert available_memory_bytes() > 0
    assert usable_cpus() >= 1


def test_processor_flags_are_those_that_the_kernel_lists(tmp_path: Path) -> None:
    """The first processor's flags; none where there is no such file or line."""
    assert processor_flags(tmp_path) == frozenset()
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx2 avx512vl\n\nprocessor\t: 1\n")
    assert processor_flags(tmp_path) == {"fpu", "avx2", "avx512vl"}
