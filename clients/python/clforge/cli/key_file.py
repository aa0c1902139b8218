"""`clforge keys`: a new API key, and its entry in the file that servers read."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from clforge.cli import exit_codes
from service_common.api_keys import key_entry, new_key, read_keys
from service_common.errors import ConfigError


def add_key(name: str, file: Path | None, *, as_json: bool) -> int:
    """Prints a key to standard output, and its entry to standard error, or appends that to `file`.

    Returns the exit code. ConfigError for a name that is none or is taken, and for a file that cannot be used.
    """
    key = new_key()
    entry = key_entry(name, key)
    if file is not None:
        _append(file, name, entry)
    elif not as_json:
        sys.stderr.write(entry)
    sys.stdout.write((json.dumps({"name": name, "key": key, "entry": entry}) if as_json else key) + "\n")
    return exit_codes.OK


def _append(file: Path, name: str, entry: str) -> None:
    """Adds an entry in one write, so that a server reads the file before or after it, and makes the file if needed."""
    has_keys = file.exists() and file.stat().st_size > 0
    if has_keys and name in read_keys(file):
        raise ConfigError(f"{file} has a key {name!r} already; give the new one another name, or remove the old one")
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    except OSError as error:
        raise ConfigError(f"--file: {file} cannot be written: {error.strerror}") from error
    os.write(descriptor, (f"\n{entry}" if has_keys else entry).encode())
    os.close(descriptor)
