"""Addresses that a server listens on or a client connects to: `host:port`, `[ipv6]:port`, `unix:/path`.

What is not secured stays on this machine unless the operator says otherwise: a loopback port, or a Unix socket in a
folder that only its owner may enter. Any other listening address needs TLS and API keys, or `--insecure`.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import shutil
import socket
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc

from service_common.errors import ConfigError

MAX_PORT = 65535
MAX_SOCKET_PATH_BYTES = 107  # sun_path of Linux less its final zero

_HOST_PORT = re.compile(r"(?:\[(?P<ipv6>[^\]]+)\]|(?P<host>[^:/\[\]]+)):(?P<port>[0-9]{1,5})")


@dataclass(frozen=True)
class Address:
    """Where a server is. Either `path` is set, or `host` and `port`; `option` is the option it came from, for messages.

    `port` 0 lets the system choose; `bind` returns the address with the port chosen. `resolver`, such as "dns:///", is
    only ever set on addresses to connect to.
    """

    option: str
    host: str = ""
    port: int = 0
    path: Path | None = None
    resolver: str = ""

    @property
    def target(self) -> str:
        """The address as gRPC wants it."""
        return str(self)

    @property
    def is_loopback(self) -> bool:
        """Whether data for this address stays on the machine. Host names other than localhost count as leaving it."""
        if self.path is not None or self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        if self.path is not None:
            return f"unix:{self.path}"
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.resolver}{host}:{self.port}"


def parse_address(text: str, option: str) -> Address:
    """Reads an address; `option` is the option's name as the user types it. ConfigError tells what is wrong."""
    if text.startswith("unix:"):
        return Address(option, path=_socket_path(text, option))
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise ConfigError(f"{option}: {text!r} is not an address; write host:port, [ipv6]:port or unix:/path")
    port = int(match["port"])
    if port > MAX_PORT:
        raise ConfigError(f"{option}: port {port} in {text!r} is above {MAX_PORT}")
    return Address(option, host=match["ipv6"] or match["host"], port=port)


def parse_target(text: str, option: str) -> Address:
    """Reads an address to connect to: what `parse_address` takes, and `dns:///host:port`. Port 0 is a ConfigError."""
    resolver = "dns:///" if text.startswith("dns:///") else ""
    address = replace(parse_address(text.removeprefix(resolver), option), resolver=resolver)
    if address.path is None and address.port == 0:
        raise ConfigError(f"{option}: port 0 in {text!r} cannot be connected to")
    return address


_HOW_TO_LISTEN = (
    "listen on 127.0.0.1 or a unix: socket, secure it with --tls-cert, --tls-key and --api-keys, "
    "or allow it with --insecure"
)


def check_exposure(address: Address, *, insecure: bool, remedy: str = _HOW_TO_LISTEN) -> None:
    """Raises ConfigError when listening on `address` unsecured would let others in and this was not allowed.

    `insecure` is true where it was, and where the server is secured; `remedy` ends the message. The folder of a Unix
    socket is made, for its owner alone, if it is missing.
    """
    if not address.is_loopback and not insecure:
        raise ConfigError(
            f"{address.option}: {address} can be reached from other machines, without encryption or authentication; "
            f"{remedy}"
        )
    if address.path is not None:
        _check_socket_folder(address, insecure=insecure)


def check_target(address: Address, *, insecure: bool) -> None:
    """Raises ConfigError when connecting to `address` would send plaintext over a network and this was not allowed."""
    if not address.is_loopback and not insecure:
        raise ConfigError(
            f"{address.option}: requests would travel to {address} without encryption or authentication; "
            f"use TLS with {address.option}-tls-ca, or allow it with --insecure"
        )


def bind(
    server: grpc.aio.Server,
    address: Address,
    credentials: grpc.ServerCredentials | None = None,
    *,
    is_reserved: bool = False,
) -> Address:
    """Adds `address` to `server` and returns it with its final port; in plaintext without `credentials`.

    `is_reserved` says that another process of ours holds it (`reserved`), for servers that share it. ConfigError when
    it is taken or cannot be bound.
    """
    if not is_reserved:
        check_bindable(address)
    try:
        if credentials is None:
            port = server.add_insecure_port(address.target)
        else:
            port = server.add_secure_port(address.target, credentials)
    except RuntimeError as error:
        raise ConfigError(
            f"{address.option}: cannot listen on {address}; choose another with {address.option}"
        ) from error
    return address if address.path is not None else replace(address, port=port)


def check_bindable(address: Address) -> None:
    """Raises ConfigError, with the system's reason, for an address that is taken or cannot be listened on.

    To be asked before gRPC binds: it tells no reason, prints lines of its own, and takes over the path of a Unix socket
    that a server listens on.
    """
    if address.path is None:
        with _explained(address):
            _listen(address.host, address.port).close()
    elif _is_listening(address.path):
        raise _in_use(address)


@contextlib.contextmanager
def reserved(address: Address) -> Iterator[Address]:
    """Holds a port for processes of ours that listen on it together, each with SO_REUSEPORT; gives its final number.

    Nobody else can listen on it meanwhile, whether any of ours does or not. ConfigError when it is taken.
    """
    with _explained(address):
        # A port that the system chose itself it would take back below.
        port = address.port or _free_port(address.host)
        holder = _listen(address.host, port)
    with holder:
        # Listening has shown that nobody else does; from here on being bound keeps others away. Shared from the start,
        # the port could be taken by two of us at once; still listening, it would swallow connections.
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 0)
        holder.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        holder.shutdown(socket.SHUT_RDWR)
        yield replace(address, port=port)


@contextlib.contextmanager
def private_socket_folder() -> Iterator[Path]:
    """A new folder with mode 0700 for Unix sockets, removed with its contents at the end."""
    folder = Path(tempfile.mkdtemp(prefix="clforge-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _socket_path(text: str, option: str) -> Path:
    path = Path(re.sub("^unix:(//)?", "", text))
    if not path.is_absolute():
        raise ConfigError(f"{option}: {text!r} needs an absolute path: unix:/path")
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise ConfigError(f"{option}: the path in {text!r} is longer than {MAX_SOCKET_PATH_BYTES} bytes")
    return path


def _check_socket_folder(address: Address, *, insecure: bool) -> None:
    assert address.path is not None
    folder = address.path.parent
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        status = folder.stat()
    except OSError as error:
        raise ConfigError(f"{address.option}: the folder of {address} cannot be used: {error.strerror}") from error
    private = status.st_uid == os.geteuid() and not stat.S_IMODE(status.st_mode) & 0o077
    if not private and not insecure:
        raise ConfigError(
            f"{address.option}: other users may enter {folder}, the folder of {address}; "
            "use a folder of your own with mode 0700, or allow it with --insecure"
        )


def _is_listening(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, contextlib.suppress(OSError):
        probe.connect(str(path))
        return True
    return False


def _listen(host: str, port: int) -> socket.socket:
    family, kind, _, _, endpoint = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    attempt = socket.socket(family, kind)
    try:
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as gRPC does; a live listener is still noticed
        attempt.bind(endpoint)
        attempt.listen()
    except OSError:
        attempt.close()
        raise
    return attempt


def _free_port(host: str) -> int:
    with _listen(host, 0) as found:
        return int(found.getsockname()[1])


@contextlib.contextmanager
def _explained(address: Address) -> Iterator[None]:
    """Makes a ConfigError of what the system says of an address."""
    try:
        yield
    except socket.gaierror as error:
        raise ConfigError(
            f"{address.option}: {address.host!r} is no address of this machine: {error.strerror}"
        ) from error
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise _in_use(address) from error
        raise ConfigError(f"{address.option}: cannot listen on {address}: {error.strerror}") from error


def _in_use(address: Address) -> ConfigError:
    return ConfigError(f"{address.option}: address already in use: {address}; choose another with {address.option}")
