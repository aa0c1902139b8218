"""How a command reaches a server: the options --target, --tls… and --api-key-file, the same for every command.

@app.command()
@with_groups
def status(connection: Connection, as_json: bool = False) -> None:
    async with connection.client() as client: ...
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from clforge.cli.config import environment_api_key
from clforge.client import DEFAULT_TARGET, Client
from clforge.errors import InvalidRequestError
from clforge.tls import TLS
from service_common.errors import ConfigError
from service_common.options import API_KEY_VARIABLE
from service_common.private_files import read_private


def _option(help: str, metavar: str | None = None) -> Any:
    return typer.Option(help=help, metavar=metavar, show_default=False)


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A server, and how to reach it; a group of options. `target` None is for the command to decide."""

    target: Annotated[str | None, _option(f"Address of the server; default: {DEFAULT_TARGET}", "ADDRESS")] = None
    tls: Annotated[bool, typer.Option("--tls", help="Connect by TLS, and trust the public authorities")] = False
    tls_ca: Annotated[Path | None, _option("Connect by TLS, and trust the authorities in this file", "FILE")] = None
    tls_cert: Annotated[Path | None, _option("Connect by TLS, and show the server this certificate", "FILE")] = None
    tls_key: Annotated[Path | None, _option("The private key of --tls-cert", "FILE")] = None
    tls_server_name: Annotated[
        str | None, _option("The name in the server's certificate; default: the one in --target", "NAME")
    ] = None
    api_key_file: Annotated[
        Path | None,
        _option(f"File with the API key and nothing else; default: the variable {API_KEY_VARIABLE}", "FILE"),
    ] = None

    @property
    def options(self) -> list[str]:
        """The options that were given, in this class's order."""
        return [_flag(field.name) for field in fields(self) if getattr(self, field.name) != field.default]

    def client(self) -> Client:
        """A client, not connected yet, of the server at `target` or the default address.

        ConfigError for files that cannot be used, and for a key that may not be sent there.
        """
        try:
            return Client(self.target or DEFAULT_TARGET, tls=self._tls() or False, api_key=self._api_key())
        except InvalidRequestError as error:
            raise ConfigError(str(error)) from error

    def _tls(self) -> TLS | None:
        given = TLS(ca=self.tls_ca, cert=self.tls_cert, key=self.tls_key, server_name=self.tls_server_name)
        return given if self.tls or given != TLS() else None

    def _api_key(self) -> str | None:
        if self.api_key_file is None:
            return environment_api_key()
        return read_private(self.api_key_file, "--api-key-file").decode("ascii", errors="replace").strip()


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
