"""The client without asyncio: the asynchronous one's methods, and nothing left behind."""

from __future__ import annotations

import inspect
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

import clforge
import clforge.sync
from clforge import Delta, Finished, FinishReason
from clforge.sync import Client
from clforge.testing import FakeServer
from tests.clforge.test_testing import eventually


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that answers with many words, slowly."""
    with FakeServer(lambda prompt: [f"{prompt} "] * 500, pace_seconds=0.002) as running:
        yield running


def _methods(kind: type) -> dict[str, Callable[..., Any]]:
    return {name: value for name, value in vars(kind).items() if not name.startswith("_") and callable(value)}


@pytest.mark.parametrize("name", ["Client", "Session", "Request"])
def test_every_method_is_there(name: str) -> None:
    """Under the same name, with the same parameters and documentation."""
    asynchronous, ours = _methods(getattr(clforge, name)), _methods(getattr(clforge.sync, name))
    assert set(ours) == set(asynchronous) - {"events"}
    for method, function in ours.items():
        wanted = list(inspect.signature(asynchronous[method]).parameters)
        assert list(inspect.signature(function).parameters) == wanted
        assert function.__doc__ == asynchronous[method].__doc__


def test_leaving_the_loop_cancels_at_once(server: FakeServer) -> None:
    """Without a word from the caller, by the plain door and on a session."""
    with Client(server.target) as client, client.session() as session:
        for start in (client.generate, session.generate, session.submit):
            for event in start("word"):
                if isinstance(event, Delta):
                    break
            eventually(lambda: server.num_live == 0)


def test_an_error_in_the_loop_cancels_too(server: FakeServer) -> None:
    """The caller's own exception comes through."""
    with Client(server.target) as client:

        def fail() -> None:
            for _ in client.generate("word"):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            fail()
        eventually(lambda: server.num_live == 0)


def test_threads_share_a_session(server: FakeServer) -> None:
    """Each gets its own request's events."""
    with Client(server.target) as client, client.session(window=8) as session, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> str:
            events = session.generate(str(number), max_tokens=20)
            return "".join(event.text for event in events if isinstance(event, Delta))

        assert list(pool.map(ask, range(16))) == [f"{number} " * 20 for number in range(16)]


def test_a_request_is_cancelled_from_another_thread(server: FakeServer) -> None:
    """While one iterates, another one ends it."""
    with Client(server.target) as client, client.session() as session:
        request = session.submit("word")
        threading.Timer(0.05, request.cancel).start()
        *_, last = request
    assert isinstance(last, Finished)
    assert last.reason is FinishReason.CANCELLED


def test_the_thread_ends_with_the_last_client(server: FakeServer) -> None:
    """Clients share one, which is gone when they are."""

    def num_threads() -> int:
        return [thread.name for thread in threading.enumerate()].count("clforge-sync")

    with Client(server.target) as first:
        first.model_info()
        with Client(server.target) as second:
            second.model_info()
            assert num_threads() == 1
        assert num_threads() == 1
    assert num_threads() == 0


def test_an_iterator_outlives_its_client(server: FakeServer) -> None:
    """Closing it then is no error, reading it is one."""
    with Client(server.target) as client:
        events, others = client.generate("word"), client.generate("word")
        next(events)
        next(others)
    events.close()
    with pytest.raises((RuntimeError, clforge.ClforgeError)):
        list(others)


def test_errors_are_typed_and_soon() -> None:
    """A wrong address, whatever is called; and a client that was never opened says how to."""
    with Client("127.0.0.1:1") as client:
        for call in (client.model_info, lambda: list(client.generate("x")), lambda: client.complete("x")):
            with pytest.raises(clforge.UnreachableError, match=r"127\.0\.0\.1:1"):
                call()
        with pytest.raises(clforge.UnreachableError, match=r"not ready within 0\.2 s"):
            client.wait_for_ready(0.2)
    with pytest.raises(RuntimeError, match="with Client"):
        client.model_info()
    with pytest.raises(clforge.InvalidRequestError, match="max_tokens"), Client() as other:
        other.generate("x", max_tokens=-1)
