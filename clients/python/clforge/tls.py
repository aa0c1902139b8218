"""How a client knows its server, and how it makes itself known: certificates, and the API key."""

from __future__ import annotations

import contextlib
import ipaddress
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from clforge.errors import InvalidRequestError, invalid

AUTHORIZATION = "authorization"  # the header that carries the key

Metadata = tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class TLS:
    """A connection by TLS. The files are PEM, and are read when the client is made.

    `ca` holds the authorities that may vouch for the server; None trusts the public ones that gRPC ships.
    `cert` and `key`, both or neither, are what a server that asks for certificates is shown. `server_name` is the name
    that the server's certificate must hold; None takes it from the address.
    """

    ca: str | Path | None = None
    cert: str | Path | None = None
    key: str | Path | None = None
    server_name: str | None = None

    def credentials(self) -> grpc.ChannelCredentials:
        """What gRPC takes. InvalidRequestError names the file that cannot be used."""
        if (self.cert is None) != (self.key is None):
            given, missing = ("cert", "key") if self.key is None else ("key", "cert")
            raise invalid(f"tls.{given}", str(getattr(self, given)), f"needs tls.{missing} as well")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ca, cert, key = _read(self.ca, "tls.ca"), _read(self.cert, "tls.cert"), _read(self.key, "tls.key")
        # gRPC would take any bytes, and then only fail to connect.
        if ca is not None:
            with _explained("tls.ca", self.ca):
                context.load_verify_locations(cadata=ca.decode("ascii"))
        if self.cert is not None:
            with _explained("tls.cert", self.cert):
                context.load_cert_chain(self.cert, self.key, password="")
        return grpc.ssl_channel_credentials(ca, key, cert)

    def channel_options(self) -> list[tuple[str, Any]]:
        """What gRPC has to be told beside the credentials."""
        return [] if self.server_name is None else [("grpc.ssl_target_name_override", self.server_name)]


def authorization(api_key: str | None, target: str, *, secured: bool) -> Metadata:
    """The header of every call to `target`. InvalidRequestError for a key that cannot be sent.

    Nor is it sent where others could read it: in plain text beyond this machine.
    """
    if api_key is None:
        return ()
    if not (api_key.isascii() and api_key.isprintable()) or not api_key.strip():
        raise InvalidRequestError(
            "api_key is empty, or holds characters that no key has", code="INVALID_ARGUMENT", field="api_key"
        )
    if not (secured or _stays_on_this_machine(target)):
        raise InvalidRequestError(
            f"api_key would travel to {target} in plain text; connect by TLS",
            code="INVALID_ARGUMENT",
            reason="KEY_IN_PLAIN_TEXT",
            field="api_key",
        )
    return ((AUTHORIZATION, f"Bearer {api_key}"),)


def _stays_on_this_machine(target: str) -> bool:
    if target.startswith(("unix:", "unix-abstract:")):
        return True
    host = target.rpartition("/")[2].rpartition(":")[0].strip("[]")
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def _read(path: str | Path | None, field: str) -> bytes | None:
    if path is None:
        return None
    with _explained(field, path):
        return Path(path).read_bytes()


@contextlib.contextmanager
def _explained(field: str, path: str | Path | None) -> Iterator[None]:
    """Makes an InvalidRequestError of what is wrong with a file; says nothing of what it holds."""
    try:
        yield
    except ssl.SSLError:
        what = "a key that belongs to the certificate, without a password" if field == "tls.cert" else "certificates"
        raise invalid(field, str(path), f"must be a PEM file of {what}") from None
    except UnicodeDecodeError:
        raise invalid(field, str(path), "must be a PEM file of certificates") from None
    except OSError as error:
        raise invalid(field, str(path), f"cannot be read: {error.strerror}") from None
