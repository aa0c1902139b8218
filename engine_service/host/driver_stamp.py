"""What an engine leaves behind that has loaded: with exactly these drivers, its device worked.

A start that finds such a stamp may do without first contact. The stamp is taken away before the drivers are used, and
put back when the engine has loaded: a driver that ends the process leaves none, so that the next start asks a child,
whose death is reported, and not the engine's own once more.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import stat
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Self

from engine_service.host.linker import Linker

_VENDORS = Path("/etc/OpenCL/vendors")  # where loaders look for drivers
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_SHELLS_OWN = frozenset({"_", "PWD", "OLDPWD", "SHLVL"})  # these differ between starts and tell drivers nothing,
_OUR_OWN = "CLFORGE_"  # nor do names that begin like this

_State = tuple[int, int] | None  # size and time of change in ns; None for what is absent


@dataclass(frozen=True)
class DriverStamp:
    """Under which `setting`, with which `linker` and with which state of `paths` a device worked.

    `setting` is a digest, since the environment may hold secrets: of that, the device's number, Python and pyopencl,
    and this boot of this machine, with which its processor, its kernel and the drivers in that stay the same.
    """

    setting: str
    linker: Linker
    paths: Mapping[str, _State]

    @classmethod
    def of(cls, device: int, linker: Linker, libraries: Iterable[Path]) -> Self | None:
        """As things are now, with `libraries` for the files that the device's work needed. None without any, or where
        the system does not tell one boot from another."""
        setting, files = _setting(device), sorted(libraries)
        if setting is None or not files:
            return None
        return cls(setting, linker, {str(path): _state(path) for path in (*files, *_places(files), *_tools(linker))})

    @classmethod
    def take(cls, path: Path, device: int) -> Self | None:
        """Removes the stamp at `path`. None where there is none, or it is not ours, or anything has changed since."""
        try:
            stamp = cls._read(path)
            path.unlink()
            return stamp if stamp._is_current(device) else None
        except (OSError, ValueError, TypeError, LookupError):
            with contextlib.suppress(OSError):
                path.unlink()
            return None

    def put(self, path: Path) -> None:
        """Writes it to `path`, in a private folder. Where that fails, the next start takes a second longer."""
        fresh = path.with_name(f"{path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            fresh.write_text(json.dumps(asdict(self), default=str))
            fresh.chmod(0o600)
            fresh.replace(path)

    @classmethod
    def _read(cls, path: Path) -> Self:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode) or status.st_uid != os.geteuid() or status.st_mode & 0o022:
            raise ValueError(f"{path} is not ours alone")
        facts = json.loads(path.read_text())
        folder = facts["linker"]["folder"]
        linker = Linker(facts["linker"]["description"], None if folder is None else Path(folder))
        states = {name: None if state is None else (state[0], state[1]) for name, state in dict(facts["paths"]).items()}
        return cls(facts["setting"], linker, states)

    def _is_current(self, device: int) -> bool:
        return self.setting == _setting(device) and all(_state(Path(p)) == state for p, state in self.paths.items())


def _setting(device: int) -> str | None:
    """A digest of what decides how drivers behave, beside their files; None without a boot's id."""
    try:
        boot_id = _BOOT_ID.read_text()
    except OSError:
        return None
    environment = sorted(
        (name, value) for name, value in os.environ.items() if name not in _SHELLS_OWN and not name.startswith(_OUR_OWN)
    )
    pyopencl = find_spec("pyopencl")
    facts = [boot_id, device, sys.executable, sys.version, pyopencl and pyopencl.origin, environment]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def _places(files: Iterable[Path]) -> Iterator[Path]:
    """Folders that change when a driver or a library comes or goes, and the files in them that name drivers."""
    named = (os.environ.get(name) for name in ("OCL_ICD_VENDORS", "OPENCL_VENDOR_PATH"))
    folders = {_VENDORS, *(path.parent for path in files), *(Path(place) for place in named if place)}
    for folder in sorted(folders):
        yield folder
        yield from sorted(folder.glob("*.icd"))


def _tools(linker: Linker) -> Iterator[Path]:
    """What links kernels."""
    if ld := shutil.which("ld", path=linker.search_path(os.environ.get("PATH", ""))):
        yield Path(ld)


def _state(path: Path) -> _State:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_size, status.st_mtime_ns
