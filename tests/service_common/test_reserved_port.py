"""A port that several processes of ours listen on together: theirs, and nobody else's."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import grpc
import pytest

from service_common.addresses import bind, check_bindable, parse_address, reserved
from service_common.errors import ConfigError
from service_common.rpc import make_server

FREE = parse_address("127.0.0.1:0", "--grpc")


@contextmanager
def listening(port: int, *, shares: bool) -> Iterator[None]:
    """A listener on the port; OSError where it may not."""
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(shares))
        listener.bind(("127.0.0.1", port))
        listener.listen()
        yield


async def test_servers_that_share_a_reserved_port_all_listen_on_it() -> None:
    """Each binds it; one that does not share is refused, before, while and after they do."""
    with reserved(FREE) as held:
        servers = [make_server(shares_port=True) for _ in range(2)]
        with pytest.raises(ConfigError, match="already in use"):
            check_bindable(held)
        for server in servers:
            bind(server, held, is_reserved=True)
            await server.start()
        with pytest.raises(ConfigError, match=f"already in use: {held}"):
            check_bindable(held)
        async with grpc.aio.insecure_channel(held.target) as channel:
            await channel.channel_ready()
        for server in servers:
            await server.stop(None)
        with pytest.raises(OSError, match="in use"), listening(held.port, shares=False):
            pass
    check_bindable(held)


@pytest.mark.parametrize("text", ["127.0.0.1:0", "[::1]:0", "localhost:0", "0.0.0.0:0"])
def test_a_port_is_reserved_once(text: str) -> None:
    """A second one who wants to share it with processes of his own is refused, and free it is only afterwards."""
    with reserved(parse_address(text, "--grpc")) as held:
        assert held.port != 0
        with pytest.raises(ConfigError, match=f"already in use: .*{held.port}"), reserved(held):
            pass
        with pytest.raises(ConfigError, match="already in use"):
            check_bindable(held)
    with reserved(held) as again:
        assert again == held


@pytest.mark.parametrize("shares", [False, True])
def test_a_port_that_somebody_listens_on_cannot_be_reserved(shares: bool) -> None:
    """Whether he would share it or not."""
    with reserved(FREE) as held:
        pass
    with listening(held.port, shares=shares), pytest.raises(ConfigError, match="already in use"), reserved(held):
        pass


def test_a_reserved_port_takes_no_connections_itself() -> None:
    """Without a server a client is refused, and does not wait for an answer."""
    with reserved(FREE) as held, pytest.raises(ConnectionRefusedError):
        socket.create_connection((held.host, held.port), 5)


def test_a_port_just_left_with_connections_can_be_reserved() -> None:
    """A server that restarts does not wait for the connections that it has closed to be forgotten (TIME_WAIT)."""
    with reserved(FREE) as held:
        pass
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((held.host, held.port))
        listener.listen()
        client = socket.create_connection((held.host, held.port), 5)
        served, _ = listener.accept()
        served.close()
        with suppress(OSError):
            client.recv(1)
        client.close()
    with reserved(held):
        pass


def test_what_goes_wrong_inside_is_not_blamed_on_the_port() -> None:
    """An OSError of the block stays one."""
    with pytest.raises(FileNotFoundError), reserved(FREE):
        raise FileNotFoundError
