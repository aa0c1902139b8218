"""The server that users test with: it speaks the protocol to every kind of client."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import pytest

import clforge
from clforge import Accepted, Chat, Delta, Finished, FinishReason
from clforge.sync import Client
from clforge.testing import FakeServer


def words(prompt: str) -> list[str]:
    """The prompt's own words."""
    return [f"{word} " for word in prompt.split()]


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """A server that echoes."""
    with FakeServer(words) as running:
        yield running


@pytest.fixture
def client(server: FakeServer) -> Iterator[Client]:
    """A client of the server."""
    with Client(server.target) as connected:
        yield connected


def eventually(condition: Callable[[], bool]) -> None:
    """Fails unless the condition becomes true."""
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_events_and_answers_are_those_of_a_server(server: FakeServer, client: Client) -> None:
    """One token for each piece, counted; the limit on tokens holds; what was asked is remembered."""
    events = list(client.generate("a b c", max_tokens=2, seed=7))
    assert [type(event) for event in events] == [Accepted, Delta, Delta, Finished]
    assert (events[0].seed, events[3].reason) == (7, FinishReason.LENGTH)  # type: ignore[union-attr]
    completion = client.complete("a b c", n=2)
    assert [choice.text for choice in completion.choices] == ["a b c "] * 2
    assert completion.choices[0].finished.usage.delivered_tokens == 3
    assert (server.prompts, server.num_sent_tokens) == (("a b c", "a b c"), 2 + 2 * 3)


def test_every_kind_of_prompt_is_a_text_to_the_function(server: FakeServer, client: Client) -> None:
    """Token ids are bytes, a conversation one line for each turn, and the calls about text agree."""
    ids = client.encode("Hi")
    assert client.decode(ids) == "Hi"
    client.complete(ids)
    client.complete(Chat("Hi", system="Be"))
    assert server.prompts == ("Hi", "system: Be\nuser: Hi\n")
    assert client.render_chat("Hi").text == "user: Hi\n"
    assert client.model_info().vocab_size == 256


@pytest.mark.parametrize("door", ["generate", "complete", "session"])
def test_failures_are_the_sdk_s_own_errors(server: FakeServer, client: Client, door: str) -> None:
    """What a test asks for is what the client raises, with all it says, and the next request is answered."""
    told = clforge.InvalidRequestError("too hot", code="INVALID_ARGUMENT", reason="BAD_PARAMETER", field="params.top_p")
    server.fail(told)
    with client.session() as session:
        ask: Callable[[], object] = {
            "generate": lambda: list(client.generate("a")),
            "complete": lambda: client.complete("a"),
            "session": lambda: list(session.generate("a")),
        }[door]
        with pytest.raises(clforge.InvalidRequestError, match=r"^too hot$") as caught:
            ask()
        assert ask()
    assert (caught.value.code, caught.value.reason, caught.value.field) == (told.code, told.reason, told.field)


def test_a_refusal_with_a_time_is_tried_again(server: FakeServer, client: Client) -> None:
    """As a server that is overloaded would have it."""
    busy = clforge.OverloadedError("busy", code="RESOURCE_EXHAUSTED", reason="QUEUE_FULL", retry_after_seconds=0.01)
    server.fail(busy, busy)
    assert client.complete("a b").text == "a b "


def test_credit_stops_a_request_that_nobody_reads(server: FakeServer, client: Client) -> None:
    """Without a grant no more than the window comes; with its reader back, everything."""
    with client.session(window=4) as session:
        request = session.submit("word " * 50)
        eventually(lambda: server.num_sent_tokens == 4)
        assert server.num_live == 1
        text = "".join(event.text for event in request if isinstance(event, Delta))
    assert text == "word " * 50


@pytest.mark.parametrize("reason", [FinishReason.DEADLINE, FinishReason.CANCELLED])
def test_requests_end_as_they_are_told(reason: FinishReason) -> None:
    """By their time, or by a cancel."""
    is_cancelled = reason is FinishReason.CANCELLED
    with FakeServer(words, pace_seconds=0.02) as server, Client(server.target) as client, client.session() as session:
        request = session.submit("word " * 1000, timeout=60.0 if is_cancelled else 0.1)
        if is_cancelled:
            request.cancel()
        *_, last = request
        assert isinstance(last, Finished)
        assert last.reason is reason
        eventually(lambda: server.num_live == 0)


async def test_asynchronous_clients_are_served_too(server: FakeServer) -> None:
    """The server has threads of its own, and needs no event loop."""
    async with clforge.Client(server.target) as client, client.session(window=2) as session:
        events = [event async for event in session.generate("a b c d e")]
    assert "".join(event.text for event in events if isinstance(event, Delta)) == "a b c d e "


@pytest.mark.parametrize("by_session", [False, True])
def test_a_server_that_stops_breaks_the_connection(by_session: bool) -> None:
    """As a crash would: the client has one typed error, whatever door it came by."""
    with FakeServer(words, pace_seconds=0.01) as server, Client(server.target) as client, client.session() as session:
        events = (session if by_session else client).generate("word " * 10_000)
        while not isinstance(next(events), Delta):
            pass
        server.stop()
        with pytest.raises(clforge.ConnectionLostError, match=server.target):
            list(events)


def test_requests_take_turns_over_several_servers() -> None:
    """A target that stands for two servers, as a name in the DNS may, is both of them."""
    with FakeServer(words) as one, FakeServer(words) as other, Client(f"ipv4:{one.target},{other.target}") as client:

        def both_asked() -> bool:
            client.complete("a")
            return bool(one.prompts and other.prompts)

        eventually(both_asked)


def test_several_servers_that_are_gone_are_one_clear_error() -> None:
    """As for a single one."""
    with Client("ipv4:127.0.0.1:1,127.0.0.1:2") as client, pytest.raises(clforge.UnreachableError, match="refused"):
        client.model_info()
