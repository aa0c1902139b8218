"""When a start may do without first contact: never after a crash, and never where anything has changed."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from engine_service.host import driver_stamp, first_contact, linker
from engine_service.host.driver_stamp import DriverStamp
from engine_service.host.first_contact import ProbeReport
from engine_service.host.linker import Linker
from service_common.errors import ConfigError


@pytest.fixture
def library(tmp_path: Path) -> Path:
    """A driver's library, in a folder of its own, which names a driver too."""
    folder = tmp_path / "driver"
    folder.mkdir()
    (folder / "driver.icd").write_text("libdriver.so")
    path = folder / "libdriver.so"
    path.write_bytes(b"code")
    return path


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Where the stamp is kept."""
    return tmp_path / "stamp"


def stamped(path: Path, library: Path, device: int = 0) -> DriverStamp:
    """A stamp, written to `path`."""
    stamp = DriverStamp.of(device, linker.DRIVERS_OWN, [library])
    assert stamp is not None
    stamp.put(path)
    return stamp


def test_a_stamp_is_taken_once(path: Path, library: Path) -> None:
    """Where nothing has changed it is as it was put, and gone afterwards, until the engine that took it has loaded."""
    stamp = stamped(path, library)
    assert path.stat().st_mode & 0o777 == 0o600
    assert DriverStamp.take(path, 0) == stamp
    assert not path.exists()
    assert DriverStamp.take(path, 0) is None


def test_the_linker_is_kept(path: Path, library: Path, tmp_path: Path) -> None:
    """A shim's folder comes back, and a shim that is another one since makes the stamp void."""
    shim = tmp_path / "shim/ld"
    shim.parent.mkdir()
    shim.write_text("#!/bin/sh\n")
    shim.chmod(0o700)
    stamp = DriverStamp.of(0, Linker("a shim", shim.parent), [library])
    assert stamp is not None
    stamp.put(path)
    taken = DriverStamp.take(path, 0)
    assert taken is not None
    assert taken.linker == Linker("a shim", shim.parent)
    stamp.put(path)
    shim.write_text("#!/bin/sh\nexit 1\n")
    assert DriverStamp.take(path, 0) is None


@pytest.mark.parametrize(
    "change",
    [
        lambda library, patch: library.write_bytes(b"other code"),
        lambda library, patch: os.utime(library, ns=(0, 0)),
        lambda library, patch: library.unlink(),
        lambda library, patch: (library.parent / "another.icd").touch(),
        lambda library, patch: (library.parent / "driver.icd").write_text("libother.so"),
        lambda library, patch: patch.setenv("POCL_DEVICES", "basic"),
        lambda library, patch: patch.setattr("sys.executable", "/another/python"),
    ],
    ids=["bytes", "time", "absence", "another driver", "a driver's name", "environment", "python"],
)
def test_a_change_makes_it_void(
    path: Path, library: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path, pytest.MonkeyPatch], object]
) -> None:
    """Libraries, the folders they lie in, what names drivers, the environment and Python are all compared."""
    stamped(path, library)
    change(library, monkeypatch)
    assert DriverStamp.take(path, 0) is None
    assert not path.exists()


def test_it_is_of_one_boot_and_one_device(
    path: Path, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a reboot, or on another machine with the same folder, it is void, and so it is for another device."""
    stamped(path, library)
    assert DriverStamp.take(path, 1) is None
    stamped(path, library)
    (tmp_path / "boot_id").write_text("another boot")
    monkeypatch.setattr(driver_stamp, "_BOOT_ID", tmp_path / "boot_id")
    assert DriverStamp.take(path, 0) is None
    monkeypatch.setattr(driver_stamp, "_BOOT_ID", tmp_path / "absent")
    assert DriverStamp.of(0, linker.DRIVERS_OWN, [library]) is None


def test_shells_and_our_own_options_do_not_matter(path: Path, library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What differs between two starts from one shell, and options, leave it as it is; no value is legible in it."""
    monkeypatch.setenv("API_TOKEN", "hush-hush")
    stamp = stamped(path, library)
    assert "hush-hush" not in path.read_text()
    monkeypatch.setenv("SHLVL", "7")
    monkeypatch.setenv("CLFORGE_PARENT_PID", "1")
    assert DriverStamp.take(path, 0) == stamp


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "{}", '{"setting": 1, "linker": {"folder": null}, "paths": {}}', "\udcff"]
)
def test_what_cannot_be_read_counts_as_none(path: Path, text: str) -> None:
    """Junk is removed, and first contact is made."""
    path.write_bytes(text.encode(errors="surrogateescape"))
    assert DriverStamp.take(path, 0) is None
    assert not path.exists()


@pytest.mark.parametrize("states", [{"/": [1]}, {"/": "x"}, {"\0": [1, 1]}, [1]])
def test_states_of_another_form_count_as_none(path: Path, library: Path, states: object) -> None:
    """A file of another version of ours is no reason to fail."""
    stamped(path, library)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"paths": states}))
    assert DriverStamp.take(path, 0) is None


def test_a_foreign_stamp_counts_as_none(path: Path, library: Path, tmp_path: Path) -> None:
    """One that others may write, or a link, may say anything."""
    stamped(path, library)
    path.chmod(0o666)
    assert DriverStamp.take(path, 0) is None
    stamped(tmp_path / "elsewhere", library)
    path.symlink_to(tmp_path / "elsewhere")
    assert DriverStamp.take(path, 0) is None
    path.mkdir()
    assert DriverStamp.take(path, 0) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_another_user_s_stamp_counts_as_none(path: Path, library: Path) -> None:
    """Its owner is asked as well."""
    stamped(path, library)
    os.chown(path, 12345, -1)
    assert DriverStamp.take(path, 0) is None


class Starts:
    """Starts of engines whose first contact is counted."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, cache_dir: Path, library: Path) -> None:
        self.num_contacts = 0
        self.failure: str | None = None
        self._cache_dir, self._library = cache_dir, library
        monkeypatch.setattr(first_contact, "probe", self._probe)
        monkeypatch.setattr(os, "environ", dict(os.environ))

    def _probe(self, device: int, *, cache_dir: Path) -> ProbeReport:
        self.num_contacts += 1
        return ProbeReport((), linker.DRIVERS_OWN, self.failure, libraries=(self._library,))

    def start(self, *, crashes: bool = False) -> int:
        """The number of first contacts that one start makes."""
        before = self.num_contacts
        contact = first_contact.establish(0, self._cache_dir)
        if not crashes:
            contact.has_loaded()
        return self.num_contacts - before


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: Path) -> Starts:
    return Starts(monkeypatch, tmp_path / "cache", library)


def test_a_start_after_a_good_one_makes_no_contact(starts: Starts) -> None:
    """The first one does, then none, for as often as engines load."""
    assert [starts.start() for _ in range(3)] == [1, 0, 0]


def test_a_crash_brings_contact_back(starts: Starts) -> None:
    """An engine that ends before it has loaded leaves no stamp, whether it had found one or not."""
    assert [starts.start(crashes=crashes) for crashes in (True, False, True, False, False)] == [1, 1, 0, 1, 0]


def test_a_changed_driver_is_tried_again(starts: Starts, library: Path) -> None:
    """And if it is broken now, the start is refused in words, and the next one tries again."""
    starts.start()
    library.write_bytes(b"broken code")
    starts.failure = "the driver died"
    for num_contacts in (2, 3):
        with pytest.raises(ConfigError, match="the driver died"):
            starts.start()
        assert starts.num_contacts == num_contacts


def test_first_contact_names_the_code_it_ran(tmp_path: Path) -> None:
    """The real child lists the driver, the loader and Python, and no kernel."""
    report = first_contact.probe(cache_dir=tmp_path)
    names = " ".join(path.name for path in report.libraries)
    assert report.failure is None
    assert "OpenCL" in names
    assert "python" in names
    assert all(path.is_file() for path in report.libraries)
    assert not any(tmp_path in path.parents for path in report.libraries)
