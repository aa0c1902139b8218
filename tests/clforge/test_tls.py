"""TLS between the SDK and a server: who gets through, what a failed handshake says, and new certificates."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from structlog.testing import capture_logs

from clforge import TLS, Client, InvalidRequestError, TLSError, UnreachableError
from clforge.v1.tokenizer_pb2_grpc import add_TokenizerServiceServicer_to_server
from service_common.addresses import bind, parse_address
from service_common.errors import ConfigError
from service_common.rpc import make_server
from service_common.tls import ServerTLS
from tests.certificates import Authority
from tests.clforge.scripted_server import ScriptedServer


@asynccontextmanager
async def serving(credentials: grpc.ServerCredentials | None) -> AsyncIterator[str]:
    """The address of a server."""
    server = make_server()
    add_TokenizerServiceServicer_to_server(ScriptedServer(), server)  # type: ignore[abstract]
    bound = bind(server, parse_address("127.0.0.1:0", "--grpc"), credentials)
    await server.start()
    yield str(bound)
    await server.stop(None)


async def name_of_model(target: str, tls: TLS | bool = False) -> str:
    """What the server says its model is; fails rather than hang."""
    async with asyncio.timeout(20), Client(target, tls=tls) as client:
        return (await client.model_info()).name


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    """The authority that clients trust."""
    return Authority(tmp_path)


async def test_a_client_that_trusts_the_authority_is_served(authority: Authority) -> None:
    """By the name in the address, and by one that it is told to expect."""
    async with serving(ServerTLS(*authority.issue("server")).credentials()) as target:
        assert await name_of_model(target, TLS(ca=authority.path))
    async with serving(ServerTLS(*authority.issue("other", "clforge.internal")).credentials()) as target:
        assert await name_of_model(target, TLS(ca=authority.path, server_name="clforge.internal"))
        with pytest.raises(TLSError, match="certificate is for another name"):
            await name_of_model(target, TLS(ca=authority.path))


async def test_each_mismatch_says_what_is_wrong(authority: Authority, tmp_path: Path) -> None:
    """Plain text on one side, an authority that is not trusted, a certificate whose time is over: one error each."""
    stranger = TLS(ca=Authority(tmp_path, "stranger").path)
    async with serving(ServerTLS(*authority.issue("server")).credentials()) as target:
        with pytest.raises(TLSError, match="hangs up; it may take TLS only"):
            await name_of_model(target)
        with pytest.raises(TLSError, match="no authority that this client trusts"):
            await name_of_model(target, stranger)
        with pytest.raises(TLSError, match="no authority that this client trusts"):
            await name_of_model(target, True)
    async with serving(None) as target:
        with pytest.raises(TLSError, match="does not speak TLS"):
            await name_of_model(target, TLS(ca=authority.path))
    async with serving(ServerTLS(*authority.issue("old", expired=True)).credentials()) as target:
        with pytest.raises(TLSError, match="has expired"):
            await name_of_model(target, TLS(ca=authority.path))


async def test_nobody_there_is_no_matter_of_tls(authority: Authority) -> None:
    """A connection that is refused says so."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        with pytest.raises(UnreachableError, match="no server answers") as caught:
            await name_of_model(f"127.0.0.1:{free.getsockname()[1]}", TLS(ca=authority.path))
    assert not isinstance(caught.value, TLSError)


async def test_a_server_that_asks_for_certificates_serves_only_who_has_one(
    authority: Authority, tmp_path: Path
) -> None:
    """Mutual TLS: none, and one that somebody else vouches for, are turned away."""
    cert, key = authority.issue("client")
    strange_cert, strange_key = Authority(tmp_path, "stranger").issue("strange")
    async with serving(ServerTLS(*authority.issue("server"), client_ca=authority.path).credentials()) as target:
        assert await name_of_model(target, TLS(ca=authority.path, cert=cert, key=key))
        with pytest.raises(TLSError, match="ask for the client's certificate"):
            await name_of_model(target, TLS(ca=authority.path))
        with pytest.raises(TLSError):
            await name_of_model(target, TLS(ca=authority.path, cert=strange_cert, key=strange_key))


async def test_a_new_certificate_is_taken_without_a_restart(authority: Authority, tmp_path: Path) -> None:
    """Connections that are open go on, new ones see the new certificate; a broken file leaves the old one."""
    files = ServerTLS(*authority.issue("server"))
    credentials = files.credentials()
    later = Authority(tmp_path, "later")
    async with serving(credentials) as target, Client(target, tls=TLS(ca=authority.path)) as early:
        assert await early.model_info()
        later.issue("server")
        assert await name_of_model(target, TLS(ca=later.path))
        assert await early.model_info()
        files.cert.write_bytes(b"-----BEGIN CERTIFICATE-----\nbroken")
        with capture_logs() as logs:
            assert await name_of_model(target, TLS(ca=later.path))
        assert [entry["event"] for entry in logs] == ["the new certificate cannot be used; the old one stays"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
async def test_tls_1_2_is_the_oldest(authority: Authority, version: ssl.TLSVersion) -> None:
    """A client that speaks nothing newer than 1.1 gets no connection."""
    context = ssl.create_default_context(cafile=str(authority.path))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.set_alpn_protocols(["h2"])
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, version
    async with serving(ServerTLS(*authority.issue("server")).credentials()) as target:
        host, _, port = target.rpartition(":")
        if version is ssl.TLSVersion.TLSv1_2:
            _, writer = await asyncio.open_connection(host, int(port), ssl=context)
            writer.close()
        else:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection(host, int(port), ssl=context)


def test_files_that_cannot_be_used_are_named(authority: Authority, tmp_path: Path) -> None:
    """The server's at its start, the client's when it is made; none is quoted."""
    cert, key = authority.issue("server")
    _, strange_key = authority.issue("strange")
    with pytest.raises(ConfigError, match=r"--tls-cert and --tls-key: .* are no certificate and its private key"):
        ServerTLS(cert, strange_key).credentials()
    with pytest.raises(ConfigError, match=r"--tls-client-ca: .* holds no certificates"):
        ServerTLS(cert, key, client_ca=key).credentials()
    with pytest.raises(InvalidRequestError, match=r"tls\.ca .*; must be a PEM file of certificates"):
        Client(tls=TLS(ca=key))
    with pytest.raises(InvalidRequestError, match=r"tls\.cert .*; needs tls\.key as well"):
        Client(tls=TLS(cert=cert))
    with pytest.raises(InvalidRequestError, match=r"tls\.ca .*; cannot be read: No such file"):
        Client(tls=TLS(ca=tmp_path / "missing"))
    key.chmod(0o644)
    with pytest.raises(ConfigError, match=r"--tls-key: other users may use .* \(mode 0644\); .* chmod 600"):
        ServerTLS(cert, key).credentials()


@pytest.mark.parametrize("target", ["example.org:50051", "dns:///clforge:50051", "10.0.0.1:1", "[2001:db8::1]:1"])
def test_a_key_does_not_leave_the_machine_in_plain_text(target: str) -> None:
    """Loopback, a Unix socket and TLS are fine; anything else is refused before a connection is made."""
    with pytest.raises(InvalidRequestError, match="in plain text; connect by TLS"):
        Client(target, api_key="secret")
    Client(target, api_key="secret", tls=True)
    for local in ("127.0.0.1:1", "[::1]:1", "localhost:1", "unix:/run/socket"):
        Client(local, api_key="secret")
