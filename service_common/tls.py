"""TLS of both services: the certificate that a server shows, and what a link to an engine trusts.

gRPC speaks TLS 1.2 and 1.3 and nothing older. A server looks at its files at each handshake, so that a new certificate
needs no restart and costs no stream: what is open stays as it was agreed on.
"""

from __future__ import annotations

import ssl
import threading
from dataclasses import dataclass
from pathlib import Path

import grpc
import structlog

from service_common.errors import ConfigError
from service_common.private_files import Stamp, read_private, stamp


@dataclass(frozen=True)
class ServerTLS:
    """PEM files: the chain that the server shows, its private key, and who must vouch for its clients (mutual TLS).

    Without `client_ca` clients need no certificate.
    """

    cert: Path
    key: Path
    client_ca: Path | None = None

    def credentials(self) -> grpc.ServerCredentials:
        """What gRPC takes; it must be kept as long as the server. ConfigError names the file that cannot be used."""
        certificates = _Certificates(self)
        return grpc.dynamic_ssl_server_credentials(
            certificates.first,
            certificates.newer,  # type: ignore[arg-type]  # the stub knows no None, which is no change
            require_client_authentication=self.client_ca is not None,
        )


class _Certificates:
    """The files' contents as gRPC wants them. `newer` is asked before each handshake, on gRPC's own threads."""

    def __init__(self, files: ServerTLS) -> None:
        self._files = files
        self._lock = threading.Lock()
        self._seen = self._stamp()
        self.first = self._read()

    def newer(self) -> grpc.ServerCertificateConfiguration | None:
        """What has changed since it was last asked; None where nothing has, or what is there cannot be used."""
        log = structlog.get_logger(__name__).bind(certificate=str(self._files.cert))
        with self._lock:
            found = self._stamp()
            if found == self._seen:
                return None
            self._seen = found
            try:
                configuration = self._read()
            except ConfigError as error:
                log.error("the new certificate cannot be used; the old one stays", error=str(error))
                return None
        log.info("certificate renewed")
        return configuration

    def _read(self) -> grpc.ServerCertificateConfiguration:
        files = self._files
        key, cert = read_private(files.key, "--tls-key"), _read(files.cert, "--tls-cert")
        client_ca = None if files.client_ca is None else authorities(files.client_ca, "--tls-client-ca")
        check_pair(files.cert, files.key, "--tls-cert", "--tls-key")
        return grpc.ssl_server_certificate_configuration([(key, cert)], client_ca)

    def _stamp(self) -> Stamp:
        paths = (self._files.cert, self._files.key, self._files.client_ca)
        return stamp(*(path for path in paths if path is not None))


def authorities(path: Path, option: str) -> bytes:
    """The certificates of authorities in a PEM file. ConfigError where there are none."""
    data = _read(path, option)
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=data.decode("ascii"))
    except (ssl.SSLError, UnicodeDecodeError):
        raise ConfigError(f"{option}: {path} holds no certificates in PEM format") from None
    return data


def check_pair(cert: Path, key: Path, cert_option: str, key_option: str) -> None:
    """Raises ConfigError unless `key` is the private key of the certificate `cert`, and not encrypted."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(cert, key, password="")
    except (ssl.SSLError, OSError):
        raise ConfigError(
            f"{cert_option} and {key_option}: {cert} and {key} are no certificate and its private key, both in PEM "
            "format and without a password"
        ) from None


def link_credentials(ca: Path, cert: Path | None, key: Path | None, api_key: Path | None) -> grpc.ChannelCredentials:
    """What connects to an engine by TLS: its authority, our certificate where it asks for one, and our API key.

    ConfigError names the option whose file cannot be used.
    """
    if (cert is None) != (key is None):
        raise ConfigError("--engine-tls-cert and --engine-tls-key need each other")
    pair = None
    if cert is not None and key is not None:
        check_pair(cert, key, "--engine-tls-cert", "--engine-tls-key")
        pair = read_private(key, "--engine-tls-key"), _read(cert, "--engine-tls-cert")
    credentials = grpc.ssl_channel_credentials(authorities(ca, "--engine-tls-ca"), *(pair or (None, None)))
    if api_key is None:
        return credentials
    secret = read_private(api_key, "--engine-api-key-file").decode("ascii", errors="replace").strip()
    return grpc.composite_channel_credentials(credentials, grpc.access_token_call_credentials(secret))


def _read(path: Path, option: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{option}: {path} cannot be read: {error.strerror}") from error
