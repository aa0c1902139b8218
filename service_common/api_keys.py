"""API keys: who may call, and how much each may ask for.

The file is TOML, a table for each key under its name:

    [alice]
    sha256 = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    expires = 2027-01-31T00:00:00Z      # optional, as all that follows
    max_requests = 16                   # in flight at once
    max_waiting_tokens = 200000         # of prompts that wait for their first token
    max_priority = 5                    # the highest that a request may ask for; 0 unless said
    default_priority = 0                # of requests that ask for none

A key is 256 random bits, so its plain sha256 gives nothing away: there is nothing to guess, and a slow hash, which is
for passwords, would only slow calls. Limits are each server process's own.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from service_common.errors import ConfigError
from service_common.private_files import read_private

MAX_NAME_CHARACTERS = 64  # of an owner, in the engine's protocol
MAX_PRIORITY = 100  # of a request, in the protocol
KEY_PREFIX = "clforge_"  # by which secret scanners, and people, know what they have found

_KEY_BYTES = 32
_NAME = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_NAME_CHARACTERS}}}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_COUNTS = ("max_requests", "max_waiting_tokens")
_PRIORITIES = ("max_priority", "default_priority")


@dataclass(frozen=True)
class KeyLimits:
    """What the holder of a key may have in flight; None is unlimited, but by the server's own limits."""

    max_requests: int | None = None
    max_waiting_tokens: int | None = None
    max_priority: int = 0
    default_priority: int = 0


UNLIMITED = KeyLimits(max_priority=MAX_PRIORITY)  # where no keys are asked for


@dataclass(frozen=True)
class ApiKey:
    """A key as the file tells of it: not the key itself, only its hash, in hexadecimal digits."""

    name: str
    sha256: str
    expires: datetime | None = None
    limits: KeyLimits = KeyLimits()

    def is_expired(self) -> bool:
        """Whether its time is over."""
        return self.expires is not None and datetime.now(UTC) >= self.expires


def new_key() -> str:
    """A key that nobody has."""
    return KEY_PREFIX + secrets.token_urlsafe(_KEY_BYTES)


def key_entry(name: str, key: str) -> str:
    """What the file has to hold for `key`. ConfigError for a name that cannot be one."""
    _check_name(name, "NAME")
    return f'[{name}]\nsha256 = "{_digest(key)}"\n'


def find_key(keys: Mapping[str, ApiKey], presented: str) -> ApiKey | None:
    """The key that a caller presents. Takes as long whether and wherever it is found."""
    digest, found = _digest(presented), None
    for key in keys.values():
        if hmac.compare_digest(key.sha256, digest):
            found = key
    return found


def read_keys(path: Path) -> dict[str, ApiKey]:
    """The keys of a file by name; it may hold none. ConfigError tells what is wrong, never what the file holds."""
    where = f"--api-keys: {path}"
    try:
        tables = tomllib.loads(read_private(path, "--api-keys").decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{where} is not UTF-8") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    keys = {name: _key(name, table, f"{where}: [{name}]") for name, table in tables.items()}
    if len({key.sha256 for key in keys.values()}) < len(keys):
        raise ConfigError(f"{where} has one sha256 under two names")
    return keys


def _key(name: str, table: Any, where: str) -> ApiKey:
    _check_name(name, where)
    if not isinstance(table, dict):
        raise ConfigError(f"{where} is no table; see: clforge keys --help")
    unknown = table.keys() - {"sha256", "expires", *_COUNTS, *_PRIORITIES}
    if unknown:
        raise ConfigError(f"{where}: {min(unknown)!r} is none of sha256, expires, {', '.join(_COUNTS + _PRIORITIES)}")
    sha256 = table.get("sha256")
    if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
        raise ConfigError(f"{where}: sha256 must be 64 hexadecimal digits, in lower case")
    expires = table.get("expires")
    if expires is not None and (not isinstance(expires, datetime) or expires.tzinfo is None):
        raise ConfigError(f"{where}: expires must be a time with its zone, such as 2027-01-31T00:00:00Z")
    counts = {field: _number(table[field], 1, 1 << 53, f"{where}: {field}") for field in _COUNTS if field in table}
    priorities = {
        field: _number(table[field], -MAX_PRIORITY, MAX_PRIORITY, f"{where}: {field}")
        for field in _PRIORITIES
        if field in table
    }
    priorities.setdefault("default_priority", min(0, priorities.get("max_priority", 0)))
    limits = KeyLimits(**counts, **priorities)
    if limits.default_priority > limits.max_priority:
        raise ConfigError(
            f"{where}: default_priority is {limits.default_priority}, above max_priority, {limits.max_priority}"
        )
    return ApiKey(name, sha256, expires, limits)


def _check_name(name: str, where: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{where}: a key's name has 1 to {MAX_NAME_CHARACTERS} letters, digits, - and _")


def _number(value: Any, least: int, most: int, where: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ConfigError(f"{where} is {value!r}; it must be a whole number from {least} to {most}")
    return value


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
