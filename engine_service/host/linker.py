"""A linker for drivers that call one.

PoCL links each kernel at its first launch: clang's driver, inside the process, looks for `ld` in /usr/local/bin, beside
gcc and in PATH, and runs `ld … -shared … -lgcc --as-needed -lgcc_s --no-as-needed -lc …`. Where `ld` or one of these
libraries' development files is missing, the process dies with SIGABRT. Kernels need none of the libraries (what they
call is in the process already), so a shim named `ld` in PATH that drops them and calls any ELF linker is enough.
"""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

REMEDY = "install a linker: pip install ziglang, or apt-get install binutils gcc"

_SHIM = """#!/bin/sh
# Written by CLForge: calls a linker without the libraries that kernels do not need.
for argument do
  shift
  case "$argument" in -lgcc | -lgcc_s | -lc) ;; *) set -- "$@" "$argument" ;; esac
done
exec {command} "$@"
"""


@dataclass(frozen=True)
class Linker:
    """A way for drivers to find `ld`. `folder` goes in front of PATH; None leaves PATH as it is."""

    description: str
    folder: Path | None = None

    def search_path(self, inherited: str) -> str:
        """PATH with this linker first."""
        return inherited if self.folder is None else os.pathsep.join([str(self.folder), *filter(None, [inherited])])

    def install(self) -> None:
        """Makes this process's drivers use this linker from now on."""
        os.environ["PATH"] = self.search_path(os.environ.get("PATH", ""))


DRIVERS_OWN = Linker("the driver's own")


def candidates(cache_dir: Path) -> Iterator[Linker]:
    """Ways to link a kernel, best first; which one works only the driver can tell.

    Shims are written, when their turn comes, under `cache_dir`, which must be private and writable.
    """
    yield DRIVERS_OWN
    for name in ("ld", "ld.lld", "ld.gold"):
        if program := shutil.which(name):
            yield Linker(f"{program} without libgcc", _write_shim(cache_dir / "linker" / name, [program]))
    if zig := _zig():
        yield Linker("the PyPI package ziglang", _write_shim(cache_dir / "linker" / "zig", [str(zig), "ld.lld"]))


def _zig() -> Path | None:
    """The compiler inside the package ziglang; running it directly saves a Python start for each kernel."""
    package = find_spec("ziglang")
    folders = package.submodule_search_locations if package else None
    zig = Path(folders[0]) / "zig" if folders else None
    return zig if zig and zig.exists() else None


def _write_shim(folder: Path, command: list[str]) -> Path:
    """Writes `folder`/ld; atomically, since other engines may be starting with the same cache."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    fresh = folder / f"ld.{os.getpid()}"
    fresh.write_text(_SHIM.format(command=shlex.join(command)))
    fresh.chmod(0o700)
    fresh.replace(folder / "ld")
    return folder
