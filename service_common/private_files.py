"""Files that hold secrets, or decide who may do what: read only where nobody else can have read or written them."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from service_common.errors import ConfigError

Stamp = tuple[tuple[int, int, int], ...]

_GROUP_WRITES, _OTHERS_READ_OR_WRITE = 0o020, 0o006


def read_private(path: Path, option: str) -> bytes:
    """What the file at `path` holds; `option` names the option that named it, for messages.

    ConfigError for a file that cannot be read, belongs to another user than root or this process's, may be read or
    written by every user, or written by its group. The group may read: that is how Kubernetes hands secrets over.
    """
    try:
        with path.open("rb") as file:
            _check(os.fstat(file.fileno()), path, option)
            return file.read()
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be read: {error.strerror}") from error


def stamp(*paths: Path) -> Stamp:
    """Tells files from what they were before, by modification time, inode and size; empty where one is missing."""
    try:
        return tuple((status.st_mtime_ns, status.st_ino, status.st_size) for status in (path.stat() for path in paths))
    except OSError:
        return ()


def _check(status: os.stat_result, path: Path, option: str) -> None:
    if status.st_uid not in (0, os.geteuid()):
        raise ConfigError(f"{option}: {path} belongs to user {status.st_uid}; it must be your own, or root's")
    mode = stat.S_IMODE(status.st_mode)
    if mode & (_GROUP_WRITES | _OTHERS_READ_OR_WRITE):
        raise ConfigError(f"{option}: other users may use {path} (mode {mode:04o}); protect it with: chmod 600 {path}")
