"""First contact with real and odd drivers, linkers and cache folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engine_service.host import first_contact, linker
from engine_service.host.device_description import DeviceDescription, describe
from engine_service.host.first_contact import check_cache_folder, default_cache_dir, prepare_environment, probe
from engine_service.host.linker import Linker
from service_common.errors import ConfigError


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    """A private cache folder."""
    folder = tmp_path / "cache"
    folder.mkdir(mode=0o700)
    return folder


def script(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


def fake_child(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, body: str) -> None:
    """Makes the child a shell script; its arguments are -P -m MODULE DEVICE REPORT."""
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "child", body)))


ONE_DEVICE = '{"devices": [{"index": 0, "platform": "P", "name": "D", "driver_version": "1", "opencl_version": "1.2", '
ONE_DEVICE += '"kind": "CPU", "compute_units": 1, "max_work_group_size": 1, "max_allocation_bytes": 1, '
ONE_DEVICE += '"reported_memory_bytes": 1, "extensions": ["e"], "odd_answers": []}]}'


def test_trivial_kernel_runs_on_this_machine(cache: Path) -> None:
    """With an empty cache folder the kernel is compiled, linked and launched, and nothing of it stays."""
    report = probe(cache_dir=cache)
    assert report.failure is None
    assert report.devices[0].compute_units >= 1
    assert not list(cache.glob("first-contact-*"))


def test_hidden_linker_is_replaced_or_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without ld and gcc in PATH, ziglang links where it is installed; else one line says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    report = probe(cache_dir=cache)
    if find_spec("ziglang"):
        assert report.failure is None
        assert report.linker.description == "the PyPI package ziglang"
    else:
        assert report.failure is not None
        assert "pip install ziglang" in report.failure
        assert "\n" not in report.failure


@pytest.mark.skipif(shutil.which("ld") is None, reason="no ld to do the real work")
def test_missing_libgcc_is_done_without(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system whose ld cannot find libgcc, as without gcc, links through the shim."""
    refuse = 'case " $* " in *" -lgcc "*) echo "ld: cannot find -lgcc" >&2; exit 1 ;; esac'
    script(tmp_path / "path/ld", f'{refuse}\nexec {shutil.which("ld")} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "path"))
    report = probe(cache_dir=cache)
    assert report.failure is None
    assert report.linker.folder == cache / "linker/ld"


def test_device_that_does_not_exist_is_refused_with_their_number(cache: Path) -> None:
    """The message names the option and the command that lists devices."""
    failure = probe(99, cache_dir=cache).failure
    assert failure is not None
    assert failure.startswith("--device 99: ")
    assert "clforge devices" in failure


def test_machine_without_a_driver_is_told_what_to_install(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty list of drivers is an answer, not a crash."""
    monkeypatch.setenv("OCL_ICD_VENDORS", str(cache / "absent.icd"))
    assert probe(cache_dir=cache).failure == first_contact.NO_DEVICE


def test_driver_that_kills_its_process_is_reported(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first complaint on standard error and the signal's name come out in one line (BACKEND-2)."""
    fake_child(monkeypatch, tmp_path, "echo first >&2; echo second >&2; kill -SEGV $$")
    failure = probe(cache_dir=cache).failure
    assert failure == "OpenCL drivers cannot be listed: SIGSEGV: first; reinstall the driver"


def test_driver_that_hangs_is_given_up(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit ends the child, and what it said before still counts."""
    monkeypatch.setattr(linker, "candidates", lambda _: iter([Linker("the only one")]))
    fake_child(monkeypatch, tmp_path, f"echo '{ONE_DEVICE}' > $5; exec sleep 60")
    report = probe(cache_dir=cache, timeout_seconds=0.5)
    assert report.devices[0].name == "D"
    assert report.failure is not None
    assert "no answer within 0.5 s" in report.failure


@pytest.mark.parametrize(
    ("facts", "failure"),
    [
        ('{"launched": false}', "D: a trivial kernel computes wrong results; choose another --device"),
        ('{"error": "OUT_OF_LUCK"}', "D: OUT_OF_LUCK; update its driver, or choose another --device"),
        ('{"launched": true}', None),
    ],
)
def test_end_of_a_child_is_told_in_one_line(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, facts: str, failure: str | None
) -> None:
    """Wrong results and the driver's own errors name the device and what to do."""
    fake_child(monkeypatch, tmp_path, f"echo '{ONE_DEVICE}' > $5; echo '{facts}' >> $5")
    report = probe(cache_dir=cache)
    assert report.failure == failure
    assert report.devices[0].extensions == ("e",)


class RefusesToAnswer:
    """A device whose every query fails, in one of the ways pyopencl's do."""

    @property
    def name(self) -> str:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "junk")


@pytest.mark.parametrize(
    "handle",
    [
        RefusesToAnswer(),
        SimpleNamespace(name="", version=" \0", max_compute_units=0, max_work_group_size=-1, platform=None, type=0),
    ],
)
def test_odd_answers_give_way_to_safe_values(handle: Any) -> None:
    """Empty strings, zero limits and failing queries are replaced and named, never raised (BACKEND-2)."""
    description = describe(1, handle)
    assert description == DeviceDescription(
        index=1,
        platform="unnamed platform",
        name="unnamed device",
        driver_version="unknown",
        opencl_version="unknown",
        kind="other",
        compute_units=1,
        max_work_group_size=1,
        max_allocation_bytes=128 << 20,
        reported_memory_bytes=128 << 20,
        extensions=(),
        odd_answers=description.odd_answers,
    )
    assert {"name", "version", "max_compute_units", "extensions"} <= set(description.odd_answers)


def test_environment_points_drivers_to_the_private_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PoCL, pyopencl and the number of threads are set before any of them is loaded."""
    for name in ("POCL_CACHE_DIR", "XDG_CACHE_HOME", "POCL_MAX_PTHREAD_COUNT"):
        monkeypatch.setenv(name, "as it was")
    prepare_environment(tmp_path / "new", threads=3)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700
    assert os.environ["POCL_CACHE_DIR"] == str(tmp_path / "new/pocl")
    assert os.environ["XDG_CACHE_HOME"] == str(tmp_path / "new")
    assert os.environ["POCL_MAX_PTHREAD_COUNT"] == "3"
    prepare_environment(tmp_path / "new")
    assert int(os.environ["POCL_MAX_PTHREAD_COUNT"]) >= 1


def test_cache_that_others_can_write_is_refused(cache: Path) -> None:
    """What lies in the cache is run as code: the message gives the command that repairs it."""
    cache.chmod(0o770)
    with pytest.raises(ConfigError, match=f"chmod 700 {cache}"):
        check_cache_folder(cache)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_cache_of_another_user_is_refused(cache: Path) -> None:
    """The owner is checked as well as the mode."""
    os.chown(cache, 12345, -1)
    with pytest.raises(ConfigError, match="belongs to another user"):
        check_cache_folder(cache)


def test_cache_that_cannot_be_written_is_refused_in_one_line(tmp_path: Path) -> None:
    """A path below a file can never be a folder, for any user."""
    (tmp_path / "file").touch()
    with pytest.raises(
        ConfigError, match=r"cannot be written: Not a directory; choose another with --cache-dir or XDG_CACHE_HOME"
    ):
        check_cache_folder(tmp_path / "file/cache")


def test_full_or_noexec_volume_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Either would let the driver die at the first kernel."""
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=os.ST_NOEXEC, f_bavail=1 << 30, f_frsize=1))
    with pytest.raises(ConfigError, match="noexec"):
        check_cache_folder(cache)
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=0, f_bavail=1, f_frsize=4096))
    with pytest.raises(ConfigError, match="32 MiB of free space"):
        check_cache_folder(cache)


def test_default_cache_follows_the_users_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME wins over the home folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/x")
    assert default_cache_dir() == Path("/x/clforge")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/me")
    assert default_cache_dir() == Path("/home/me/.cache/clforge")


def test_parent_never_loads_opencl() -> None:
    """Importing the parent's half leaves the drivers alone."""
    code = "import sys, engine_service.host.first_contact; sys.exit('pyopencl' in sys.modules)"
    assert subprocess.run([sys.executable, "-P", "-c", code], check=False).returncode == 0
