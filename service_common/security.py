"""What stands between a server and whoever can reach it: TLS, and API keys."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import grpc

from service_common.authentication import Authentication
from service_common.errors import ConfigError
from service_common.tls import ServerTLS


class SecurityOptions(Protocol):
    """The part of a service's configuration that is read here."""

    @property
    def tls_cert(self) -> Path | None: ...
    @property
    def tls_key(self) -> Path | None: ...
    @property
    def tls_client_ca(self) -> Path | None: ...
    @property
    def api_keys(self) -> Path | None: ...
    @property
    def insecure(self) -> bool: ...


@dataclass(frozen=True)
class ServerSecurity:
    """How a server shows who it is, and asks callers who they are. To be kept as long as the server."""

    credentials: grpc.ServerCredentials | None
    authentication: Authentication | None
    may_be_reached: bool

    @classmethod
    def of(cls, options: SecurityOptions) -> ServerSecurity:
        """Reads the files. ConfigError names the option that cannot be used.

        `may_be_reached` tells whether the server may listen where others can connect: encrypted, and with callers who
        show a key or a certificate; or because the operator says so.
        """
        if (options.tls_cert is None) != (options.tls_key is None):
            raise ConfigError("--tls-cert and --tls-key need each other")
        tls = None
        if options.tls_cert is not None and options.tls_key is not None:
            tls = ServerTLS(options.tls_cert, options.tls_key, options.tls_client_ca)
        elif options.tls_client_ca is not None:
            raise ConfigError("--tls-client-ca needs --tls-cert and --tls-key")
        authentication = None if options.api_keys is None else Authentication(options.api_keys)
        knows_callers = options.api_keys is not None or options.tls_client_ca is not None
        return cls(
            None if tls is None else tls.credentials(),
            authentication,
            options.insecure or (tls is not None and knows_callers),
        )

    @property
    def interceptors(self) -> tuple[grpc.aio.ServerInterceptor, ...]:
        """What `rpc.make_server` takes."""
        return () if self.authentication is None else (self.authentication,)

    @contextlib.contextmanager
    def kept_fresh(self) -> Iterator[None]:
        """Follows changes of the API keys while the block runs."""
        watching = None if self.authentication is None else asyncio.create_task(self.authentication.watch())
        try:
            yield
        finally:
            if watching is not None:
                watching.cancel()
