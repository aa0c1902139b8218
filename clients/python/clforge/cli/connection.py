"""How a command reaches a server: the options --target, --tls… and --api-key-file, the same for every command.

@app.command()
@connects()
def status(connection: Connection, as_json: bool = False) -> None:
    async with connection.client() as client: ...
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import typer

from clforge.cli.config import environment_api_key
from clforge.client import DEFAULT_TARGET, Client
from clforge.errors import InvalidRequestError
from clforge.tls import TLS
from service_common.errors import ConfigError
from service_common.options import API_KEY_VARIABLE
from service_common.private_files import read_private

_Decorator = Callable[[Callable[..., None]], Callable[..., None]]


@dataclass(frozen=True, kw_only=True)
class Connection:
    """A server, and how to reach it, as options said. `target` None is for the command to decide."""

    target: str | None = None
    tls: bool = False
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    tls_server_name: str | None = None
    api_key_file: Path | None = None

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


def connects(target_help: str = f"Address of the server; default: {DEFAULT_TARGET}") -> _Decorator:
    """Gives a command the options of a connection in place of its parameter `connection: Connection`."""

    def decorate(run: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(run, include_extras=True)
        own = [
            parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY, annotation=hints[name])
            for name, parameter in inspect.signature(run).parameters.items()
            if name != "connection"
        ]

        def wrapped(**values: Any) -> None:
            connection = Connection(**{field.name: values.pop(field.name) for field in fields(Connection)})
            run(connection=connection, **values)

        wrapped.__name__, wrapped.__doc__ = run.__name__, run.__doc__
        wrapped.__signature__ = inspect.Signature([*own, *_parameters(target_help)])  # type: ignore[attr-defined]
        return wrapped

    return decorate


def _parameters(target_help: str) -> list[inspect.Parameter]:
    descriptions = {
        "target": (target_help, "ADDRESS"),
        "tls": ("Connect by TLS, and trust the public authorities", None),
        "tls_ca": ("Connect by TLS, and trust the authorities in this file", "FILE"),
        "tls_cert": ("Connect by TLS, and show the server this certificate", "FILE"),
        "tls_key": ("The private key of --tls-cert", "FILE"),
        "tls_server_name": ("The name in the server's certificate; default: the one in --target", "NAME"),
        "api_key_file": (f"File with the API key and nothing else; default: the variable {API_KEY_VARIABLE}", "FILE"),
    }
    hints = typing.get_type_hints(Connection)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=typer.Option(field.default, _flag(field.name), help=help, metavar=metavar, show_default=False),
            annotation=hints[field.name],
        )
        for field in fields(Connection)
        for help, metavar in (descriptions[field.name],)
    ]


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
