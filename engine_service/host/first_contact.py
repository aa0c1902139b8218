"""First contact with OpenCL drivers, in a child process, since a driver may abort the process that uses it.

The parent's half imports no OpenCL. The child (`python -P -m engine_service.host.first_contact DEVICE REPORT`) lists
the devices, then builds and launches a trivial kernel on one of them, with an empty kernel cache, so that compiler and
linker are really used. It adds a line of JSON to REPORT after each stage: what is missing tells where it died.
Drivers that have loaded an engine before, and have not changed, are not tried again: see driver_stamp.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from engine_service.host import linker
from engine_service.host.device_description import DeviceDescription, describe
from engine_service.host.driver_stamp import DriverStamp
from engine_service.host.linker import Linker
from service_common.errors import ConfigError
from service_common.resources import usable_cpus

NO_DEVICE = "no OpenCL device found; install your device's driver, or for a CPU: pip install pocl-binary-distribution"

_LEAST_FREE_BYTES = 32 << 20  # a driver dies when it cannot write a kernel
_NO_DEVICE_INDEX = -1  # makes the child stop after listing
_NUM_ITEMS = 64
_TRIVIAL_KERNEL = "__kernel void trivial(__global int *x) { int i = get_global_id(0); x[i] = 3 * x[i] + 1; }"


@dataclass(frozen=True)
class ProbeReport:
    """What first contact found. `failure` is None when the kernel ran, else one line that says what to do.

    `driver_died` tells that it was the first launch, with every linker, that ended the child. `libraries` are the files
    whose code the child had in its memory when the kernel had run; empty where the system does not tell.
    """

    devices: tuple[DeviceDescription, ...]
    linker: Linker
    failure: str | None
    driver_died: bool = False
    libraries: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Contact:
    """A device that may be used: its drivers have just been tried, or have loaded an engine before."""

    _stamp: DriverStamp | None
    _stamp_path: Path

    def has_loaded(self) -> None:
        """Tells that an engine has loaded, so that the next start need not try the same drivers again."""
        if self._stamp is not None:
            self._stamp.put(self._stamp_path)


@dataclass(frozen=True)
class _ChildReport:
    """How far a child came. Nothing it could not say is set; `death` tells how it died, if it did."""

    devices: tuple[DeviceDescription, ...] | None = None
    launched: bool = False
    error: str | None = None
    libraries: tuple[Path, ...] = ()
    death: str | None = None


def establish(device: int, cache_dir: Path | None = None, threads: int | None = None) -> Contact:
    """Prepares this process for OpenCL and makes sure that the device works. Takes a second, or with a stamp none.

    Must be called before pyopencl is imported. `cache_dir` None means `default_cache_dir`. Raises ConfigError, with the
    remedy, when the device cannot be used.
    """
    cache_dir = cache_dir or default_cache_dir()
    prepare_environment(cache_dir, threads)
    stamp_path = cache_dir / f"device-{device}.worked"
    stamp = DriverStamp.take(stamp_path, device)
    if stamp is not None:
        stamp.linker.install()
        return Contact(stamp, stamp_path)
    report = probe(device, cache_dir=cache_dir)
    if report.failure is not None:
        raise ConfigError(report.failure)
    stamp = DriverStamp.of(device, report.linker, report.libraries)
    report.linker.install()
    return Contact(stamp, stamp_path)


def prepare_environment(cache_dir: Path, threads: int | None = None) -> None:
    """Points this process's drivers, and pyopencl itself, to a private cache, and tells PoCL its number of threads.

    Must be called before pyopencl is imported. `threads` None means as many as this process may use. Raises ConfigError
    as `check_cache_folder` does.
    """
    check_cache_folder(cache_dir)
    os.environ.update(_cache_variables(cache_dir))
    os.environ["POCL_MAX_PTHREAD_COUNT"] = str(threads or usable_cpus())


def default_cache_dir() -> Path:
    """The user's cache folder for us. ConfigError where the user has no home."""
    if folder := os.environ.get("XDG_CACHE_HOME"):
        return Path(folder) / "clforge"
    with contextlib.suppress(RuntimeError):
        home = Path.home()
        if home.is_absolute() and home != Path("/"):
            return home / ".cache" / "clforge"
    raise ConfigError("the kernel cache has no place, since this user has no home; give --cache-dir or XDG_CACHE_HOME")


def check_cache_folder(cache_dir: Path) -> None:
    """Creates `cache_dir` (0700) if it is missing. What lies there is run as native code.

    Raises ConfigError, with the remedy, when others own it or may write to it, or when kernels cannot be kept there.
    """
    folder = f"kernel cache {cache_dir}"
    try:
        cache_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        status, volume = cache_dir.stat(), os.statvfs(cache_dir)
        if status.st_uid != os.geteuid():
            raise ConfigError(
                f"{folder} belongs to another user ({status.st_uid}); choose another with --cache-dir or XDG_CACHE_HOME"
            )
        if status.st_mode & 0o022:
            raise ConfigError(f"{folder} can be written by other users; run: chmod 700 {cache_dir}")
        if volume.f_flag & os.ST_NOEXEC:
            raise ConfigError(
                f"{folder} is on a volume mounted noexec; choose another with --cache-dir or XDG_CACHE_HOME"
            )
        if volume.f_bavail * volume.f_frsize < _LEAST_FREE_BYTES:
            raise ConfigError(f"{folder} has less than {_LEAST_FREE_BYTES >> 20} MiB of free space; make room")
        with tempfile.TemporaryFile(dir=cache_dir):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise ConfigError(
            f"{folder} cannot be written: {reason}; choose another with --cache-dir or XDG_CACHE_HOME"
        ) from error


def probe(device: int = 0, *, cache_dir: Path | None = None, timeout_seconds: float = 120.0) -> ProbeReport:
    """Tries the device with each way of linking until one works. A driver's faults are reported, never raised.

    `cache_dir` must be private; a linker's shim stays there. With None, nothing stays. `timeout_seconds` bounds a try.
    """
    with tempfile.TemporaryDirectory(prefix="first-contact-", dir=cache_dir) as scratch:
        failed: ProbeReport | None = None
        for number, choice in enumerate(linker.candidates(cache_dir or Path(scratch))):
            kernel_cache = Path(scratch, str(number))
            kernel_cache.mkdir()
            child = _run_child(device, choice, kernel_cache, timeout_seconds)
            driver_died = bool(child.devices) and child.death is not None
            report = ProbeReport(child.devices or (), choice, _failure(child, device), driver_died, child.libraries)
            if not driver_died:
                return report
            failed = failed or report
    assert failed is not None  # the driver's own linker is always a candidate
    return failed


def list_devices(timeout_seconds: float = 60.0) -> tuple[DeviceDescription, ...]:
    """The machine's devices, without using any. ConfigError when the drivers cannot be asked."""
    with tempfile.TemporaryDirectory(prefix="first-contact-") as scratch:
        child = _run_child(_NO_DEVICE_INDEX, linker.DRIVERS_OWN, Path(scratch), timeout_seconds)
    if child.devices is None:
        raise ConfigError(str(_failure(child, 0)))
    return child.devices


def _failure(child: _ChildReport, device: int) -> str | None:
    """One line on why the device cannot be used, with the remedy, or None when it can."""
    if child.devices is None:
        return f"OpenCL drivers cannot be listed: {child.death or child.error}; reinstall the driver"
    if not child.devices:
        return NO_DEVICE
    if not 0 <= device < len(child.devices):
        found = f"found {len(child.devices)}, counted from 0"
        return f"--device {device}: there is no such device ({found}); list them with: clforge devices"
    name = child.devices[device].name
    if child.death is not None:
        return f"{name}: the driver died when it linked and launched a kernel ({child.death}); {linker.REMEDY}"
    if child.error is not None:
        return f"{name}: {child.error}; update its driver, or choose another --device"
    return None if child.launched else f"{name}: a trivial kernel computes wrong results; choose another --device"


def child_environment(cache_dir: Path, choice: Linker) -> dict[str, str]:
    """The environment of a process that uses the device, with its kernels in `cache_dir` and linked by `choice`."""
    environment = os.environ | _cache_variables(cache_dir)
    environment["PATH"] = choice.search_path(environment.get("PATH", ""))
    return environment


def _run_child(device: int, choice: Linker, kernel_cache: Path, timeout_seconds: float) -> _ChildReport:
    report = kernel_cache / "report"
    environment = child_environment(kernel_cache, choice)
    command = [sys.executable, "-P", "-m", "engine_service.host.first_contact", str(device), str(report)]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, timeout=timeout_seconds, check=False)
    except subprocess.TimeoutExpired:
        return _read_report(report, f"no answer within {timeout_seconds:g} s")
    return _read_report(report, _death(done))


def _death(done: subprocess.CompletedProcess[bytes]) -> str | None:
    """How the child died, with the first thing it said; None when it ended by itself."""
    if done.returncode == 0:
        return None
    names = {-number: number.name for number in signal.Signals}
    cause = names.get(done.returncode, f"exit code {done.returncode}")
    words = done.stderr.decode(errors="replace").strip()
    # A traceback's point is its last line; a driver's first complaint is the cause of all that follow.
    lines = words.splitlines()
    return f"{cause}: {lines[-1 if done.returncode > 0 else 0].strip()}" if lines else cause


def _read_report(path: Path, death: str | None) -> _ChildReport:
    facts: dict[str, Any] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        facts |= json.loads(line)
    devices = facts.get("devices")
    return _ChildReport(
        devices=None if devices is None else tuple(map(DeviceDescription.from_json, devices)),
        launched=facts.get("launched", False),
        error=facts.get("error"),
        libraries=tuple(map(Path, facts.get("libraries", ()))),
        death=death,
    )


def _cache_variables(cache_dir: Path) -> dict[str, str]:
    """XDG_CACHE_HOME is for pyopencl, which fails where the home folder cannot be written, and for other drivers."""
    return {"POCL_CACHE_DIR": str(cache_dir / "pocl"), "XDG_CACHE_HOME": str(cache_dir)}


def main(device: int, report: Path) -> None:
    """The child's whole life. Only a driver's death or a fault of our own ends it with a code other than 0."""
    import pyopencl as cl

    handles = list(_list_devices(cl))
    _tell(report, devices=[asdict(describe(index, handle)) for index, handle in enumerate(handles)])
    if not 0 <= device < len(handles):
        return
    try:
        _tell(report, launched=_launch(cl, handles[device]), libraries=_libraries(report.parent))
    except cl.Error as error:
        _tell(report, error=str(error).splitlines()[0])


def _list_devices(cl: Any) -> Iterator[Any]:
    """All devices of all platforms; a platform that fails to list its devices has none."""
    try:
        platforms = cl.get_platforms()
    except cl.Error:  # the loader's way to say that there is no driver
        return
    for platform in platforms:
        with contextlib.suppress(cl.Error):
            yield from platform.get_devices()


def _launch(cl: Any, handle: Any) -> bool:
    """Whether the trivial kernel computes what it should."""
    context = cl.Context([handle])
    queue = cl.CommandQueue(context)
    kernel = cl.Kernel(cl.Program(context, _TRIVIAL_KERNEL).build(), "trivial")
    numbers = array("i", range(_NUM_ITEMS))
    buffer = cl.Buffer(context, cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR, hostbuf=numbers)
    kernel.set_args(buffer)
    cl.enqueue_nd_range_kernel(queue, kernel, (_NUM_ITEMS,), (1,))
    cl.enqueue_copy(queue, numbers, buffer)
    return numbers.tolist() == [3 * number + 1 for number in range(_NUM_ITEMS)]


def _libraries(kernel_cache: Path) -> list[str]:
    """Files with code in this process's memory, but for kernels. Empty where there is no such list."""
    maps = Path("/proc/self/maps")
    mappings = (line.split(maxsplit=5) for line in maps.read_text().splitlines()) if maps.exists() else ()
    files = {Path(mapping[5]) for mapping in mappings if len(mapping) == 6 and "x" in mapping[1]}
    return sorted(str(file) for file in files if kernel_cache not in file.parents and file.is_file())


def _tell(report: Path, **facts: Any) -> None:
    with report.open("a") as file:
        file.write(json.dumps(facts) + "\n")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
