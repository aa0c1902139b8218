"""The Python client against a scripted server in the same process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.json_format import MessageToDict
from grpc_status import rpc_status  # type: ignore[import-untyped, unused-ignore]

import clforge
import clforge.client
from clforge import (
    Accepted,
    Chat,
    Client,
    Decoding,
    Delta,
    Encoding,
    Finished,
    FinishReason,
    Message,
    RenderedChat,
)
from clforge.fields import MAX_MESSAGE_BYTES, MAX_NESTING
from clforge.flow_control import CreditWindow, Outgoing
from clforge.params import params_to_proto
from clforge.v1 import generation_pb2, tokenizer_pb2, tokenizer_pb2_grpc
from clforge.v1.generation_pb2 import Update
from tests.clforge.scripted_server import (
    Context,
    Incoming,
    ScriptedServer,
    Step,
    accepted,
    delta,
    failed,
    finished,
    running,
    status,
)
from tests.service_common.test_rpc import unknown_options


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[ScriptedServer]:
    """A running server."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    async with running(servicer, tmp_path):
        yield servicer


@pytest.fixture
async def client(server: ScriptedServer, tmp_path: Path) -> AsyncIterator[Client]:
    """A client of the server."""
    async with Client(f"unix:{tmp_path}/s") as connected:
        yield connected


async def test_events_are_typed_and_in_order(server: ScriptedServer, client: Client) -> None:
    """The plain door yields Accepted, Deltas and Finished as values, with the matched stop and the usage."""
    usage = generation_pb2.Usage(prompt_tokens=3, generated_tokens=2, delivered_tokens=2)
    timings = generation_pb2.Timings(decode=Duration(nanos=500_000_000))
    end = finished(3, stop_token_id=2, usage=usage, timings=timings)
    server.scripts = [[accepted(), delta(1, "a"), delta(2, "b"), end]]
    events = [event async for event in client.generate("x", max_tokens=5)]
    assert events[0] == Accepted(global_id="g", seed=7, numerics_id="", num_prompt_tokens=3)
    assert events[1:3] == [Delta("a", (1,), 1), Delta("b", (1,), 1)]
    last = events[3]
    assert isinstance(last, Finished)
    assert (last.reason, last.matched_stop) == (FinishReason.STOP, 2)
    assert (last.usage.delivered_tokens, last.timings.decode_seconds) == (2, 0.5)


async def test_parameters_travel_and_unset_ones_stay_unset(server: ScriptedServer, client: Client) -> None:
    """A zero is sent as a zero; what was not given leaves no trace in the message; ids are taken as a prompt too."""
    server.scripts = [[accepted(), finished(1)]]
    stream = client.generate([1, 2], temperature=0, stop=["x"], n=1, timeout=2.5, logprobs=0, model="m")
    assert [type(event) for event in [event async for event in stream]] == [Accepted, Finished]
    request = server.requests[0]
    assert list(request.prompt.token_ids.ids) == [1, 2]
    assert request.params.sampling.HasField("temperature")
    assert not request.params.sampling.HasField("top_k")
    assert request.params.HasField("logprobs")
    assert not request.params.HasField("initial_credit")
    assert request.params.timeout.ToTimedelta().total_seconds() == 2.5
    assert (list(request.params.stopping.stop), request.model) == (["x"], "m")


TOOL = {"type": "function", "function": {"name": "f", "parameters": {"required": ["a"], "n": 1}}}
CALL: Message = {"role": "assistant", "content": None, "tool_calls": [{"name": "f", "arguments": {"a": None}}]}


async def test_a_conversation_travels_as_it_is(server: ScriptedServer, client: Client) -> None:
    """Turns, tools and variables arrive, a None is no field, and parameters go along; a text is a user's turn."""
    server.scripts = [[accepted(), delta(1, "yes"), finished(2)]] * 2
    turns: list[Message] = [{"role": "user", "content": "Hi"}, CALL, {"role": "tool", "tool_call_id": "1"}]
    stream = client.chat(turns, system="Be brief.", tools=[TOOL], template_kwargs={"think": False}, max_tokens=3)
    assert [type(event) for event in [event async for event in stream]] == [Accepted, Delta, Finished]
    chat = server.requests[0].prompt.chat
    assert [message.role for message in chat.messages] == ["system", "user", "assistant", "tool"]
    assert chat.messages[0].content == "Be brief."
    assert MessageToDict(chat.messages[2]) == {"role": "assistant", "toolCalls": CALL["tool_calls"]}
    assert MessageToDict(chat.tools[0]) == TOOL
    assert MessageToDict(chat.template_kwargs) == {"think": False}
    assert server.requests[0].params.stopping.max_tokens == 3
    [event async for event in client.chat("Hi")]
    assert server.requests[1].prompt.chat == generation_pb2.Chat(
        messages=[generation_pb2.ChatMessage(role="user", content="Hi")]
    )


async def test_a_conversation_is_a_prompt_everywhere(server: ScriptedServer, client: Client) -> None:
    """`complete` and a session take a Chat as they take a text, and `render_chat` shows what it becomes."""
    assert await client.render_chat("Hi", system="Be") == RenderedChat("Be|Hi", tuple(b"Be|Hi"))
    await client.complete(Chat("Hi"))
    assert server.requests[1].prompt.chat.messages[0].content == "Hi"
    heard: list[tokenizer_pb2.TextSubmit] = []

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for message in incoming:
            if message.HasField("submit"):
                heard.append(message.submit)
                yield [accepted(1), finished(1, 1)]

    server.talk = talk
    async with client.session() as session:
        [event async for event in session.generate(Chat("Hi", system="Be"))]
    assert [message.content for message in heard[0].prompt.chat.messages] == ["Be", "Hi"]


def nested(depth: int) -> dict[str, Any]:
    """An object in an object, and so on."""
    return {"a": nested(depth - 1)} if depth else {}


@pytest.mark.parametrize(
    ("chat", "name"),
    [
        (Chat([{"role": "user", "content": [{"type": "text"}]}]), "messages[0].content"),  # type: ignore[typeddict-item]
        (Chat([{"role": "user", "text": "x"}], system="x"), "messages[1]"),  # type: ignore[typeddict-unknown-key]
        (Chat(["hi"]), "messages[0]"),  # type: ignore[list-item]
        (Chat("x", tools=[{"f": object()}]), "tools[0].f"),
        (Chat("x", tools=5), "tools"),  # type: ignore[arg-type]
        (Chat("x", template_kwargs={"f": {1}}), "template_kwargs.f"),
        (Chat("x", template_kwargs={"f": ["a", b"b"]}), "template_kwargs.f[1]"),
        (Chat("x", template_kwargs={1: 2}), "template_kwargs"),  # type: ignore[dict-item]
        (Chat("x", template_kwargs={"f": 10**400}), "template_kwargs.f"),
        (Chat("x", template_kwargs={"f": float("nan")}), "template_kwargs.f"),
        (Chat("x", template_kwargs=[1]), "template_kwargs"),  # type: ignore[arg-type]
        (Chat("x", template_kwargs=nested(MAX_NESTING + 1)), "template_kwargs" + ".a" * (MAX_NESTING + 1)),
        (Chat("x\ud800"), "messages"),
        (Chat([{"role": "user", "content": "\ud800"}]), "messages[0].content"),
        (Chat([{"role": "a", "tool_calls": [{"\ud800": 1}]}]), "messages[0].tool_calls[0]"),
        (Chat([{"role": "a", "tool_calls": [1]}]), "messages[0].tool_calls[0]"),  # type: ignore[list-item]
        (Chat("x", "\ud800"), "system"),
        (Chat(5), "messages"),  # type: ignore[arg-type]
    ],
)
async def test_a_conversation_that_cannot_be_sent_is_refused_by_name(client: Client, chat: Chat, name: str) -> None:
    """The error names the turn or the tool, before anything is sent."""
    with pytest.raises(clforge.InvalidRequestError) as caught:
        client.generate(chat)
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_tokens", -1),
        ("max_tokens", 1 << 40),
        ("max_tokens", 2.5),
        ("n", "two"),
        ("model", 5),
        ("model", "\ud800"),
        ("cache_salt", "\ud800"),
        ("timeout", "5"),
        ("timeout", float("nan")),
        ("timeout", 1e30),
        ("stop", 5),
        ("seed", "abc"),
        ("stop", "not a list"),
        ("timeout", float("inf")),
        ("temperature", "warm"),
    ],
)
async def test_what_a_message_cannot_hold_is_refused_by_name(client: Client, name: str, value: Any) -> None:
    """The error names the parameter, before anything is sent."""
    with pytest.raises(clforge.InvalidRequestError, match=f"^{name} is ") as caught:
        client.generate("x", **{name: value})
    assert caught.value.field == name


@pytest.mark.parametrize(
    ("prompt", "params", "name"),
    [
        ("x\ud800", {}, "prompt"),
        ([1, -1], {}, "prompt[1]"),
        ([1.5], {}, "prompt[0]"),
        ([1 << 32], {}, "prompt[0]"),
        ({1: 2}, {}, "prompt"),
        (None, {}, "prompt"),
        ("x" * MAX_MESSAGE_BYTES, {}, "prompt"),
        ("x", {"stop": ["a", "\ud800"]}, "stop[1]"),
        ("x", {"stop": ["a", 1]}, "stop[1]"),
        ("x", {"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ("x", {"stop_token_ids": [1, 2.0]}, "stop_token_ids[1]"),
    ],
)
async def test_what_is_wrong_in_a_request_is_told_by_each_door(
    server: ScriptedServer, client: Client, prompt: Any, params: Any, name: str
) -> None:
    """`generate`, `complete` and a session refuse alike, before anything is sent."""

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for _ in incoming:
            yield []

    server.talk = talk
    async with client.session() as session:
        doors: list[Any] = [client.generate, client.complete, session.generate, session.submit]
        for door in doors:
            with pytest.raises(clforge.InvalidRequestError) as caught:
                await door(prompt, **params)  # `generate` raises before there is anything to iterate over
            assert caught.value.field == name
            assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: client.encode("\ud800"), "text"),
        (lambda client: client.encode(b"x"), "text"),
        (lambda client: client.encode_batch("abc"), "texts"),
        (lambda client: client.encode_batch(["a", "\udfff"]), "texts[1]"),
        (lambda client: client.encode_batch(["x" * MAX_MESSAGE_BYTES]), "texts"),
        (lambda client: client.decode([-1]), "token_ids[0]"),
        (lambda client: client.decode([1, 2**33]), "token_ids[1]"),
        (lambda client: client.decode("12"), "token_ids"),
        (lambda client: client.decode(12), "token_ids"),
        (lambda client: client.decode_batch([[1], [2.5]]), "sequences[1][0]"),
        (lambda client: client.decode_batch([1]), "sequences[0]"),
    ],
)
async def test_what_no_tokenizer_takes_is_refused_by_name(
    client: Client, call: Callable[[Any], Awaitable[Any]], name: str
) -> None:
    """The error names the field, before anything is sent."""
    with pytest.raises(clforge.InvalidRequestError, match=re.escape(name)) as caught:
        await call(client)
    assert caught.value.field == name


@pytest.mark.parametrize("window", [0, 2.5, 1 << 31])
async def test_a_window_that_cannot_be_is_refused(client: Client, window: Any) -> None:
    """A session without room for a token would wait forever, and credit has its limit."""
    with pytest.raises(clforge.InvalidRequestError, match="window is"):
        client.session(window=window)


async def test_nested_objects_arrive(server: ScriptedServer, client: Client) -> None:
    """What the client lets through, the server can read."""
    server.scripts = [[accepted(), finished(1)]]
    turns: list[Message] = [{"role": "assistant", "tool_calls": [nested(MAX_NESTING)]}]
    [event async for event in client.chat(turns)]
    assert MessageToDict(server.requests[0].prompt.chat.messages[0].tool_calls[0]) == nested(MAX_NESTING)


async def test_offsets_come_with_batches(client: Client) -> None:
    """Texts in order, each with its ids, and what each id stands for where that is asked for."""
    assert await client.encode("hé") == tuple("hé".encode())
    plain = await client.encode_batch(["hé", ""])
    assert plain == (Encoding(tuple("hé".encode())), Encoding(()))
    (encoding,) = await client.encode_batch(["hé"], with_offsets=True)
    assert encoding.offsets == ((0, 1), (1, 2), (1, 2))
    assert await client.decode(encoding.token_ids) == "hé"
    assert await client.decode_batch([encoding.token_ids, []]) == (Decoding("hé"), Decoding(""))
    assert await client.decode_batch([encoding.token_ids], with_offsets=True) == (Decoding("hé", encoding.offsets),)


async def test_clients_of_one_process_have_connections_of_their_own() -> None:
    """Two of one address: a server of several processes gives each connection to one of them."""
    servicer = ScriptedServer()  # type: ignore[abstract]
    server = grpc.aio.server()
    tokenizer_pb2_grpc.add_TokenizerServiceServicer_to_server(servicer, server)
    target = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    async with Client(target) as one, Client(target) as two:
        for client in (one, two, one):
            await client.encode("x")
    await server.stop(None)
    assert servicer.peers[0] == servicer.peers[2] != servicer.peers[1]


def test_every_channel_option_is_known_to_grpc() -> None:
    """gRPC ignores what it does not know."""
    assert unknown_options(clforge.client) == []


async def test_a_long_value_is_shown_by_its_beginning(client: Client) -> None:
    """What is at fault may be a whole book, and the message stays a line."""
    with pytest.raises(clforge.InvalidRequestError) as caught:
        client.generate(Chat(["book " * 1_000_000]))  # type: ignore[list-item]
    assert str(caught.value).startswith("messages[0] is 'book book")
    assert len(str(caught.value)) < 400


async def test_unknown_parameter_is_a_type_error(client: Client) -> None:
    """A misspelt name fails at once and lists the right ones."""
    with pytest.raises(TypeError, match=r"'max_token'; there are .*max_tokens"):
        client.generate("x", max_token=1)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (grpc.StatusCode.INVALID_ARGUMENT, clforge.InvalidRequestError),
        (grpc.StatusCode.OUT_OF_RANGE, clforge.InvalidRequestError),
        (grpc.StatusCode.NOT_FOUND, clforge.NotFoundError),
        (grpc.StatusCode.FAILED_PRECONDITION, clforge.FailedPreconditionError),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, clforge.OverloadedError),
        (grpc.StatusCode.UNAVAILABLE, clforge.UnavailableError),
        (grpc.StatusCode.DEADLINE_EXCEEDED, clforge.DeadlineError),
        (grpc.StatusCode.UNAUTHENTICATED, clforge.AuthenticationError),
        (grpc.StatusCode.UNIMPLEMENTED, clforge.UnimplementedError),
        (grpc.StatusCode.INTERNAL, clforge.ServerError),
    ],
)
@pytest.mark.parametrize("in_band", [True, False])
async def test_status_becomes_a_typed_error(
    server: ScriptedServer, client: Client, code: grpc.StatusCode, kind: type[clforge.StatusError], in_band: bool
) -> None:
    """Code, message, reason and field arrive, whether the request failed in-band or the RPC itself (ISSUE-2)."""
    error = status(code, field="params.n")
    server.scripts = [[failed(0, error) if in_band else error]]
    with pytest.raises(kind, match=f"it is {code.name}") as caught:
        await anext(client.generate("x"))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.reason, caught.value.field) == (code.name, "BECAUSE", "params.n")


@pytest.mark.parametrize("in_band", [True, False])
async def test_refusal_with_retry_info_is_tried_again(server: ScriptedServer, client: Client, in_band: bool) -> None:
    """The request is sent again after the delay, with what is left of its timeout."""
    error = status(grpc.StatusCode.UNAVAILABLE, retry_seconds=0.05)
    refusal: list[Step] = [accepted(), failed(1, error)] if in_band else [error]
    server.scripts = [refusal, [accepted(), delta(1, "a"), finished(2)]]
    events = [event async for event in client.generate("x", timeout=20.0)]
    assert [type(event) for event in events][-3:] == [Accepted, Delta, Finished]
    first, second = (request.params.timeout.ToTimedelta().total_seconds() for request in server.requests)
    assert first == 20.0
    assert second <= 19.95


async def test_nothing_is_tried_again_after_the_first_token(server: ScriptedServer, client: Client) -> None:
    """A delivered token makes a second attempt visible, so the error comes through."""
    error = status(grpc.StatusCode.UNAVAILABLE, retry_seconds=0.01)
    server.scripts = [[accepted(), delta(1, "a"), failed(2, error)]]
    with pytest.raises(clforge.UnavailableError):
        [event async for event in client.generate("x")]
    assert len(server.requests) == 1


async def test_retries_end_with_the_timeout_of_the_request(server: ScriptedServer, client: Client) -> None:
    """A delay that outlives the request's timeout is not waited for."""
    server.scripts = [[status(grpc.StatusCode.UNAVAILABLE, retry_seconds=0.9)]]
    with pytest.raises(clforge.UnavailableError) as caught:
        await anext(client.generate("x", timeout=0.5))
    assert caught.value.retry_after_seconds == pytest.approx(0.9)


async def test_leaving_the_loop_cancels_the_request(server: ScriptedServer, client: Client) -> None:
    """The server sees the cancellation as soon as the iterator is closed."""
    server.scripts = [[accepted(), delta(1, "a"), 60.0]]
    async with aclosing(client.generate("x")) as events:
        async for event in events:
            if isinstance(event, Delta):
                break
    await asyncio.wait_for(server.cancelled.wait(), 5)


@pytest.mark.parametrize("target", ["127.0.0.1:1", "unix:/nonexistent/socket", "no-such-host.invalid:1"])
async def test_unreachable_server_is_named_with_the_remedy(target: str) -> None:
    """Each way of calling fails soon, with address and advice."""
    async with Client(target) as client:
        for attempt in (lambda: anext(client.generate("x")), client.model_info, lambda: client.complete("x")):
            with pytest.raises(clforge.UnreachableError, match=r"no server answers at .*clforge serve") as caught:
                await asyncio.wait_for(_awaited(attempt), 20)
            assert caught.value.target == target


async def _awaited(start: Callable[[], Awaitable[Any]]) -> Any:
    return await start()


async def test_session_with_an_unreachable_server_fails_its_requests() -> None:
    """A request raises the reason, whether it was submitted before or after the stream was given up; nothing hangs."""
    async with Client("127.0.0.1:1") as client, client.session() as session:
        for _ in range(2):
            with pytest.raises(clforge.UnreachableError):
                await asyncio.wait_for(anext(session.generate("x")), 10)


async def test_connection_that_breaks_after_an_answer_is_told_apart(tmp_path: Path) -> None:
    """A server that dies in the middle gives ConnectionLostError at once, never a hang."""
    path = str(tmp_path / "proxy")

    async def answer_then_hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upstream_reader, upstream_writer = await asyncio.open_unix_connection(tmp_path / "s")
        forward = asyncio.create_task(_copy(reader, upstream_writer))
        backward = asyncio.create_task(_copy(upstream_reader, writer))
        await hang_up.wait()
        for task, side in ((forward, upstream_writer), (backward, writer)):
            task.cancel()
            side.transport.abort()

    hang_up = asyncio.Event()
    servicer = ScriptedServer()  # type: ignore[abstract]
    servicer.scripts = [[accepted(), delta(1, "a"), 60.0]]
    proxy = await asyncio.start_unix_server(answer_then_hang_up, path)
    async with running(servicer, tmp_path), proxy, Client(f"unix:{path}") as client:
        events = client.generate("x")
        assert isinstance(await anext(events), Accepted)
        assert isinstance(await anext(events), Delta)
        hang_up.set()
        with pytest.raises(clforge.ConnectionLostError, match="broke"):
            await asyncio.wait_for(anext(events), 10)


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([accepted(), delta(2, "b")], "update 2 of choice 0 came when 1 was due"),
        ([accepted(), delta(1, "a")], "before the last choice had finished"),
        ([Update()], "without an event"),
    ],
)
async def test_broken_protocol_is_an_error(
    server: ScriptedServer, client: Client, script: list[Step], message: str
) -> None:
    """Gaps, missing ends and empty updates are noticed, not passed over (CLI-2)."""
    server.scripts = [script]
    with pytest.raises(clforge.ProtocolError, match=message):
        [event async for event in client.generate("x")]


async def test_unary_calls_translate_values(server: ScriptedServer, client: Client) -> None:
    """complete, encode, decode and model_info return plain values."""
    completion = await client.complete("hi", max_tokens=1)
    assert completion.text == "hi"
    assert completion.choices[0].finished.reason is FinishReason.STOP
    assert await client.encode("ab") == (97, 98)
    assert await client.decode([97, 98]) == "ab"
    info = await client.model_info()
    assert (info.name, info.vocab_size, info.eog_token_ids) == ("tiny", 512, (2,))


async def test_client_outside_its_block_says_how_to_use_it() -> None:
    """A forgotten `async with` is a programming error with a clear message."""
    with pytest.raises(RuntimeError, match="async with Client"):
        await Client().model_info()


async def test_session_carries_many_requests_at_once(server: ScriptedServer, client: Client) -> None:
    """Updates of all requests come mixed in one message and reach their own iterators; ids increase from 1."""
    seen: list[int] = []

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for message in incoming:
            seen.append(message.submit.request_id)
            if len(seen) == 3:
                break
        yield [accepted(i) for i in seen]
        yield [delta(1, f"text {i}", i) for i in reversed(seen)]
        yield [finished(2, i) for i in seen]

    server.talk = talk

    async def read(session: clforge.Session, prompt: str) -> str:
        return "".join([event.text async for event in session.generate(prompt) if isinstance(event, Delta)])

    async with client.session() as session:
        texts = await asyncio.gather(*(read(session, prompt) for prompt in "abc"))
        assert not session._requests
    assert seen == [1, 2, 3]
    assert texts == ["text 1", "text 2", "text 3"]


async def test_session_grants_credit_as_the_reader_reads(server: ScriptedServer, client: Client) -> None:
    """The server never has more than a window of credit, and a stalled reader grants nothing (D3)."""
    granted = asyncio.Queue[int]()

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        message = await anext(incoming)
        granted.put_nowait(message.submit.params.initial_credit)
        yield [accepted(1)] + [delta(i, "x", 1) for i in range(1, 5)]
        granted.put_nowait((await anext(incoming)).credit.tokens)
        granted.put_nowait((await anext(incoming)).credit.tokens)
        yield [finished(5, 1)]

    server.talk = talk
    async with client.session(window=4) as session:
        request = await session.submit("x")
        assert await granted.get() == 4
        events = request.events()
        for _ in range(3):
            await anext(events)
        await asyncio.sleep(0.05)
        assert granted.empty()
        for _ in range(2):
            await anext(events)
        assert await asyncio.wait_for(granted.get(), 5) == 2
        assert isinstance(await anext(events), Finished)
        assert await asyncio.wait_for(granted.get(), 5) == 2


async def test_leaving_a_session_request_sends_cancel(server: ScriptedServer, client: Client) -> None:
    """The request ends, its entry goes, the stream and its other requests go on."""
    cancelled = asyncio.Queue[int]()

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for message in incoming:
            if message.HasField("submit"):
                yield [accepted(message.submit.request_id), delta(1, "x", message.submit.request_id)]
            if message.HasField("cancel"):
                cancelled.put_nowait(message.cancel.request_id)

    server.talk = talk
    async with client.session() as session:
        other = (await session.submit("other")).events()
        await anext(other)
        async with aclosing(session.generate("x")) as events:
            await anext(events)
        assert await asyncio.wait_for(cancelled.get(), 5) == 2
        assert list(session._requests) == [1]
        assert await anext(other) == Delta("x", (1,), 1)


async def test_cancelled_request_ends_with_its_reason(server: ScriptedServer, client: Client) -> None:
    """cancel() lets the events run to Finished(CANCELLED); crossing an end it does no harm."""

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for message in incoming:
            if message.HasField("submit"):
                yield [accepted(1)]
            else:
                yield [finished(1, 1, reason=generation_pb2.FINISH_REASON_CANCELLED)]

    server.talk = talk
    async with client.session() as session:
        request = await session.submit("x")
        request.cancel()
        events = [event async for event in request]
        assert isinstance(events[-1], Finished)
        assert events[-1].reason is FinishReason.CANCELLED
        request.cancel()


async def test_end_of_the_stream_fails_every_request_and_later_ones(server: ScriptedServer, client: Client) -> None:
    """All live requests raise the stream's status, and submit refuses from then on; nothing hangs."""

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        await anext(incoming)
        await anext(incoming)
        await context.abort_with_status(rpc_status.to_status(status(grpc.StatusCode.UNAVAILABLE, retry_seconds=0.01)))
        yield []

    server.talk = talk
    async with client.session() as session:
        requests = [await session.submit("x"), await session.submit("y")]
        for request in requests:
            with pytest.raises(clforge.UnavailableError):
                await asyncio.wait_for(anext(request.events()), 5)
        with pytest.raises(clforge.UnavailableError):
            await session.submit("z")


async def test_leaving_the_session_ends_its_stream(server: ScriptedServer, client: Client) -> None:
    """Requests still running are cancelled with the stream; a session without any ends it in good order."""
    ended = asyncio.Event()

    async def talk(incoming: Incoming, context: Context) -> AsyncIterator[list[Update]]:
        async for message in incoming:
            yield [accepted(message.submit.request_id)]
        ended.set()

    server.talk = talk
    async with client.session() as session:
        await anext((await session.submit("x")).events())
    async with client.session():
        pass
    await asyncio.wait_for(ended.wait(), 5)


def test_credit_follows_the_choice_that_was_read_least() -> None:
    """No choice ever has more unread tokens than the window; ended choices hold nobody back (D3)."""
    window = CreditWindow(8, num_choices=2)
    assert window.read(0, 8) == 0
    assert window.read(1, 3) == 0
    assert window.read(1, 1) == 4
    assert window.finished(1) == 4
    assert window.finished(0) == 0


async def test_full_queue_holds_back_submits_but_never_cancels() -> None:
    """room() waits until a message was taken; put() never waits; close() frees who waits."""
    outgoing = Outgoing(limit=1)
    await outgoing.room()
    outgoing.put(tokenizer_pb2.GenerateTextRequest())
    waiting = asyncio.create_task(outgoing.room())
    await asyncio.sleep(0)
    outgoing.put(tokenizer_pb2.GenerateTextRequest())
    assert not waiting.done()
    await outgoing.get()
    await outgoing.get()
    await asyncio.wait_for(waiting, 1)
    outgoing.close()
    assert await outgoing.get() is None


def test_every_parameter_has_a_place_in_the_message() -> None:
    """Each name of Params but model is set by params_to_proto, so that none is dropped in silence."""
    values: dict[str, Any] = dict.fromkeys(clforge.Params.__annotations__, 1)
    values |= {"stop": ["a"], "stop_token_ids": [1], "cache_salt": "s", "model": "m", "dry": {"multiplier": 1}}
    values |= {"xtc": {"probability": 1}, "mirostat": {"target": 1}, "logit_bias": {1: 1.0}, "allowed_token_ids": [1]}
    values |= {"bad_token_sequences": [[1]], "bad_words": ["a"], "order": ["temperature"]}
    for name in ("json_schema", "regex", "grammar", "choices"):
        del values[name]
    message = params_to_proto(values)  # type: ignore[arg-type]
    parts = {"sampling": message.sampling, "stopping": message.stopping, "speculation": message.speculation}
    fields = [field for part in (message, *parts.values()) for field, _ in part.ListFields()]
    assert {field.name for field in fields} - set(parts) == set(values) - {"model"}


def test_a_constraint_has_its_place_in_the_message() -> None:
    """A schema is a dict or text; two constraints, and what no message can hold, are refused by name."""
    for schema in ({"type": "integer"}, '{"type": "integer"}'):
        assert params_to_proto({"json_schema": schema}).constraint.json_schema == '{"type": "integer"}'
    assert params_to_proto({"json_schema": True}).constraint.json_schema == "true"
    assert params_to_proto({"regex": "a+"}).constraint.regex == "a+"
    assert params_to_proto({"grammar": 'start: "a"'}).constraint.grammar == 'start: "a"'
    assert list(params_to_proto({"choices": ["a", "b"]}).constraint.choices.texts) == ["a", "b"]
    assert params_to_proto({"choices": []}).constraint.WhichOneof("kind") == "choices"
    for wrong, field in (
        ({"regex": "a", "choices": ["b"]}, "choices"),
        ({"regex": 5}, "regex"),
        ({"json_schema": {"a": object()}}, "json_schema"),
        ({"choices": "text"}, "choices"),
    ):
        with pytest.raises(clforge.InvalidRequestError, match=field):
            params_to_proto(wrong)  # type: ignore[arg-type]


def test_package_exports_what_it_names() -> None:
    """Every name of __all__ can be imported, and an unknown one is an AttributeError."""
    assert all(getattr(clforge, name) is not None for name in clforge.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = clforge.nothing
