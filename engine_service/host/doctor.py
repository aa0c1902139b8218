"""`clforge doctor`: whether this machine can serve, checked part by part, each with its remedy."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from engine_service.host import linker
from engine_service.host.first_contact import (
    NO_DEVICE,
    ProbeReport,
    check_cache_folder,
    child_environment,
    default_cache_dir,
    probe,
)
from service_common.errors import ConfigError
from service_common.resources import available_memory_bytes, cpu_quota, usable_cpus

_LITTLE_MEMORY_BYTES = 2 << 30
_SELF_TEST_SECONDS = 180  # nearly all of it compiling, and only the first time


class Level(StrEnum):
    """How bad a finding is: nothing, slower or smaller than need be, or no serving at all."""

    OK = "OK"
    WARN = "WARN"
    FAIL = "FAIL"


@dataclass(frozen=True)
class Finding:
    """One line of the report; `message` holds the remedy where there is something to do."""

    check: str
    level: Level
    message: str


def examine(device: int = 0, cache_dir: Path | None = None) -> Iterator[Finding]:
    """Yields findings as they are made: cache folder, drivers, linker, self-test, threads, memory. Takes seconds."""
    usable_folder: Path | None = None
    try:
        folder = cache_dir or default_cache_dir()
        check_cache_folder(folder)
        usable_folder = folder
        yield Finding("cache folder", Level.OK, str(folder))
    except ConfigError as error:
        yield Finding("cache folder", Level.FAIL, str(error))
    report = probe(device, cache_dir=usable_folder)
    yield from _drivers(report)
    if report.devices:
        yield _linker(report)
        yield _self_test(report, device, usable_folder)
    yield _threads()
    yield _memory()


def _drivers(report: ProbeReport) -> Iterator[Finding]:
    if not report.devices:
        yield Finding("drivers", Level.FAIL, report.failure or NO_DEVICE)
    for device in report.devices:
        name = f"device {device.index}: {device.name} ({device.platform} {device.driver_version})"
        if device.odd_answers:
            odd = f"; no usable answer for {', '.join(device.odd_answers)}, safe values are used; update the driver"
            yield Finding("drivers", Level.WARN, name + odd)
        else:
            yield Finding("drivers", Level.OK, name)


def _linker(report: ProbeReport) -> Finding:
    if report.driver_died:
        return Finding("linker", Level.FAIL, f"no kernel could be linked; {linker.REMEDY}")
    return Finding("linker", Level.OK, report.linker.description)


def _self_test(report: ProbeReport, device: int, cache_dir: Path | None) -> Finding:
    if report.failure is not None:
        return Finding("self-test", Level.FAIL, report.failure)
    trivial = f"device {device} built, launched and computed a trivial kernel"
    if cache_dir is None:
        return Finding("self-test", Level.WARN, f"{trivial}; the others need the cache folder")
    environment = child_environment(cache_dir, report.linker)
    command = [sys.executable, "-P", "-m", "engine_service.compute.check_device", str(device)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=_SELF_TEST_SECONDS)
    except subprocess.TimeoutExpired:
        hint = f"the kernels gave no result within {_SELF_TEST_SECONDS} s; update the driver, or choose another device"
        return Finding("self-test", Level.FAIL, hint)
    match done.stdout.strip():
        case "native":
            return Finding("self-test", Level.OK, f"every kernel on device {device} computes what numpy does")
        case "portable":
            wrong = f"native kernels are wrong on device {device}, portable ones right: slower; update the driver"
            return Finding("self-test", Level.WARN, wrong)
    reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return Finding("self-test", Level.FAIL, f"{reason}; update the driver, or choose another device")


def _threads() -> Finding:
    cpus, quota = usable_cpus(), cpu_quota()
    threads = f"{cpus} compute threads"
    if quota is not None and quota < len(os.sched_getaffinity(0)):
        return Finding("threads", Level.WARN, f"{threads}: the CPU quota is {quota:g}; raise it for more speed")
    return Finding("threads", Level.OK, threads)


def _memory() -> Finding:
    available = available_memory_bytes()
    message = f"{available / 2**30:.1f} GiB available for weights and KV cache of a CPU device"
    if available < _LITTLE_MEMORY_BYTES:
        return Finding("memory", Level.WARN, f"{message}; free some, or raise the container's limit")
    return Finding("memory", Level.OK, message)
