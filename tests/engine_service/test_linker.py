"""Ways to link a kernel: PATH, shims, and what becomes of the libraries that kernels do not need."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from engine_service.host import linker
from engine_service.host.linker import Linker, candidates


def program(path: Path, body: str) -> Path:
    """An executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is all of PATH; ziglang counts as not installed."""
    folder = tmp_path / "path"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(linker, "_zig", lambda: None)
    return folder


def test_drivers_own_linker_comes_first_and_alone_where_there_is_no_other(path: Path, tmp_path: Path) -> None:
    """Without any linker the driver is still asked, since not every driver needs one; nothing is written."""
    assert list(candidates(tmp_path / "cache")) == [Linker("the driver's own")]
    assert not (tmp_path / "cache").exists()


def test_shim_drops_the_libraries_and_keeps_every_other_argument(path: Path, tmp_path: Path) -> None:
    """Arguments reach the linker as they are, spaces and quotes included, without libgcc, libgcc_s and libc."""
    program(path / "ld", 'for a do echo "[$a]"; done')
    _, shim = candidates(tmp_path / "ca che's")
    assert shim.folder is not None
    arguments = ["-shared", "-o", "a b.so", "x'y.o", "-lgcc", "--as-needed", "-lgcc_s", "-lc", "-lcommon"]
    done = subprocess.run([shim.folder / "ld", *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["[-shared]", "[-o]", "[a b.so]", "[x'y.o]", "[--as-needed]", "[-lcommon]"]


def test_shim_is_for_its_owner_only(path: Path, tmp_path: Path) -> None:
    """Folder and script let nobody else in: the driver runs what lies there."""
    program(path / "ld.lld", "true")
    _, shim = candidates(tmp_path / "cache")
    assert shim.folder is not None
    assert shim.folder.stat().st_mode & 0o777 == 0o700
    assert (shim.folder / "ld").stat().st_mode & 0o777 == 0o700
    assert [file.name for file in shim.folder.iterdir()] == ["ld"]


def test_linker_of_the_package_ziglang_is_the_last_resort(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Installed, it is called as `zig ld.lld`, after the system's linkers."""
    program(path / "ld", "true")
    monkeypatch.setattr(linker, "_zig", lambda: program(tmp_path / "zig", 'echo "$@"'))
    choices = list(candidates(tmp_path / "cache"))
    assert [choice.description for choice in choices] == [
        "the driver's own",
        f"{path / 'ld'} without libgcc",
        "the PyPI package ziglang",
    ]
    assert choices[2].folder is not None
    done = subprocess.run([choices[2].folder / "ld", "x.o", "-lc"], capture_output=True, text=True, check=True)
    assert done.stdout == "ld.lld x.o\n"


def test_absent_ziglang_is_found_absent() -> None:
    """The package is looked for without importing it."""
    zig = linker._zig()
    assert zig is None or zig.exists()


def test_installed_linker_is_first_in_the_search_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """A shim wins over what is in PATH; the driver's own changes nothing; an empty PATH gains no empty entry."""
    shim = Linker("shim", Path("/shim"))
    assert shim.search_path("/bin") == "/shim:/bin"
    assert shim.search_path("") == "/shim"
    assert Linker("the driver's own").search_path("/bin") == "/bin"
    monkeypatch.setenv("PATH", "/bin")
    shim.install()
    assert os.environ["PATH"] == "/shim:/bin"
