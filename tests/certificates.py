"""Certificates for tests, made anew for each run: nothing private is kept."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import trustme


class Authority:
    """An authority, and the files of what it vouches for."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._ca, self._folder = trustme.CA(), folder
        self.path = folder / f"{name}.pem"
        self._ca.cert_pem.write_to_path(str(self.path))

    def issue(self, name: str, *hosts: str, expired: bool = False) -> tuple[Path, Path]:
        """The files of a certificate for `hosts` (default: this machine) and of its key, named `name`.

        Files that are there are replaced by new ones, as Kubernetes does.
        """
        ended = datetime(2020, 1, 1, tzinfo=UTC) if expired else None
        leaf = self._ca.issue_cert(*(hosts or ("localhost", "127.0.0.1")), not_after=ended)
        chain = b"".join(blob.bytes() for blob in leaf.cert_chain_pems)
        return self._write(f"{name}.crt", chain), self._write(f"{name}.key", leaf.private_key_pem.bytes())

    def _write(self, name: str, data: bytes) -> Path:
        path, new = self._folder / name, self._folder / f"{name}.new"
        new.write_bytes(data)
        new.chmod(0o600)
        return new.replace(path)
