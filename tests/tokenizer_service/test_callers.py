"""API keys at the tokenizer service: who is let in, what each may have, and what a revocation ends."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from structlog.testing import capture_logs

from clforge import AuthenticationError, Client, OverloadedError, PermissionDeniedError
from clforge.v1 import tokenizer_pb2 as pb
from service_common.api_keys import key_entry, new_key
from service_common.authentication import Authentication
from service_common.errors import Code, ConfigError
from service_common.rpc import make_server
from tests.tokenizer_service.tokenizer_world import World, rpc_failure, world

ALICE, BOB = new_key(), new_key()


class Keys:
    """A file of keys that a test changes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.write(alice=(ALICE, ""), bob=(BOB, ""))
        self.authentication = Authentication(path)

    def write(self, **keys: tuple[str, str]) -> None:
        """Replaces the file: a key and further lines of its table for each name."""
        self.path.write_text("\n".join(key_entry(name, key) + lines + "\n" for name, (key, lines) in keys.items()))
        self.path.chmod(0o600)

    def change(self, **keys: tuple[str, str]) -> None:
        """Replaces the file, and has it read."""
        self.write(**keys)
        self.authentication.refresh()


@pytest.fixture
def keys(tmp_path: Path) -> Keys:
    """Alice's key and Bob's, without limits."""
    return Keys(tmp_path / "keys.toml")


@asynccontextmanager
async def serving(folder: Path, keys: Keys) -> AsyncIterator[tuple[World, str]]:
    """A service that asks for keys, and its address."""
    async with world(folder, authentication=keys.authentication) as made:
        yield made, f"unix:{folder}/door"


async def test_every_method_but_health_needs_a_key(tmp_path: Path, keys: Keys) -> None:
    """Also those that do not exist, and reflection; a probe needs none."""
    async with serving(tmp_path, keys) as (_, target), grpc.aio.insecure_channel(target) as channel:
        for name in [method.name for method in pb.DESCRIPTOR.services_by_name["TokenizerService"].methods] + ["Other"]:
            call: grpc.aio.UnaryStreamMultiCallable[bytes, bytes]
            call = channel.unary_stream(f"/clforge.v1.TokenizerService/{name}")
            error = await rpc_failure(call(b"").read())
            assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "NO_API_KEY"), name
        reflection = reflection_pb2_grpc.ServerReflectionStub(channel).ServerReflectionInfo()
        await reflection.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        assert (await rpc_failure(reflection.read())).code == Code.UNAUTHENTICATED
        health = health_pb2_grpc.HealthStub(channel)
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == health_pb2.HealthCheckResponse.SERVING


async def test_a_key_lets_in_and_names_the_owner(tmp_path: Path, keys: Keys) -> None:
    """The engine is told the key's name and never the key."""
    async with serving(tmp_path, keys) as (served, target), Client(target, api_key=ALICE) as client:
        assert (await client.complete("hello")).text
        assert [submit.owner for submit in served.engine.submits] == ["alice"]
        assert ALICE not in str(served.engine.submits)


@pytest.mark.parametrize(
    ("key", "reason"), [(None, "NO_API_KEY"), ("wrong", "UNKNOWN_API_KEY"), (ALICE[:-1], "UNKNOWN_API_KEY")]
)
async def test_without_a_good_key_there_is_one_clear_error(
    tmp_path: Path, keys: Keys, key: str | None, reason: str
) -> None:
    """Unary calls, streams and sessions end with it alike."""
    async with serving(tmp_path, keys) as (_, target), Client(target, api_key=key) as client:
        with pytest.raises(AuthenticationError) as caught:
            await client.complete("hello")
        assert (caught.value.code, caught.value.reason) == ("UNAUTHENTICATED", reason)
        with pytest.raises(AuthenticationError):
            await anext(client.generate("hello"))
        async with client.session() as session:
            with pytest.raises(AuthenticationError):
                await anext(session.generate("hello"))


async def test_an_expired_key_is_no_key(tmp_path: Path, keys: Keys) -> None:
    """Neither for new calls nor for those that run when its time ends."""
    ago = (datetime.now(UTC) - timedelta(seconds=1)).isoformat()
    keys.change(alice=(ALICE, f"expires = {ago}"), bob=(BOB, ""))
    async with serving(tmp_path, keys) as (_, target), Client(target, api_key=ALICE) as client:
        with pytest.raises(AuthenticationError, match="'alice' expired at"):
            await client.model_info()


async def test_a_revoked_key_ends_what_runs(tmp_path: Path, keys: Keys) -> None:
    """Its streams end with UNAUTHENTICATED and free everything, other keys' go on, and new calls are refused."""
    async with (
        serving(tmp_path, keys) as (served, target),
        Client(target, api_key=ALICE) as alice,
        Client(target, api_key=BOB) as bob,
        alice.session(window=1) as session,
        bob.session() as others,
    ):
        served.engine.gate.clear()
        mine, kept = await session.submit("hello"), await others.submit("hello")
        events = mine.events()
        await anext(events)
        await served.until(lambda: len(served.engine.submits) == 2)
        with capture_logs() as logs:
            keys.change(bob=(BOB, ""))
        assert [(entry["event"], entry.get("key"), entry.get("num_calls")) for entry in logs] == [
            ("API keys read", None, None),
            ("API key revoked or expired", "alice", 1),
        ]
        served.engine.gate.set()
        with pytest.raises(AuthenticationError, match="was revoked"):
            async for _ in events:
                pass
        assert [event async for event in kept.events()]
        with pytest.raises(AuthenticationError, match="not known here, or was revoked"):
            await alice.model_info()
        assert await bob.model_info()


async def test_a_revoked_reader_that_does_not_read_is_told_too(keys: Keys) -> None:
    """A handler whose writing waits for its client is ended at once, and the client hears why when it reads on."""
    ended = asyncio.Event()

    async def flood(_request: bytes, _context: object) -> AsyncIterator[bytes]:
        try:
            while True:
                yield bytes(1 << 20)
        finally:
            ended.set()

    server = make_server(keys.authentication)
    methods: dict[str, grpc.RpcMethodHandler[bytes, bytes]] = {"Flood": grpc.unary_stream_rpc_method_handler(flood)}
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("test.Test", methods),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel, asyncio.timeout(20):
        method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/test.Test/Flood")
        call = method(b"", metadata=(("authorization", f"Bearer {ALICE}"),))
        assert await call.read()
        await asyncio.sleep(0.3)  # far more than it takes to fill what may be in flight
        keys.change(bob=(BOB, ""))
        await ended.wait()

        async def read_on() -> None:
            while await call.read() is not grpc.aio.EOF:
                pass

        error = await rpc_failure(read_on())
        assert (error.code, error.reason) == (Code.UNAUTHENTICATED, "REVOKED_API_KEY")
    await server.stop(None)


async def test_a_key_revoked_between_headers_and_request_is_refused(tmp_path: Path, keys: Keys) -> None:
    """A call that was let in and says nothing until its key is revoked is served nothing."""
    async with serving(tmp_path, keys) as (_, target), grpc.aio.insecure_channel(target) as channel:
        method: grpc.aio.StreamUnaryMultiCallable[bytes, bytes]
        method = channel.stream_unary("/clforge.v1.TokenizerService/GetModelInfo")
        call = method(metadata=(("authorization", f"Bearer {ALICE}"),))
        await asyncio.sleep(0.2)  # for its headers to arrive
        keys.change(bob=(BOB, ""))
        await call.write(b"")
        await call.done_writing()
        assert (await rpc_failure(call)).code == Code.UNAUTHENTICATED


async def test_a_file_that_cannot_be_read_changes_nothing(tmp_path: Path, keys: Keys) -> None:
    """What is wrong is logged, without a line of the file."""
    async with serving(tmp_path, keys) as (_, target), Client(target, api_key=ALICE) as client:
        with capture_logs() as logs:
            keys.path.write_text("[alice\nsha256 = 'marked'")
            keys.authentication.refresh()
            keys.path.unlink()
            keys.authentication.refresh()
            keys.authentication.refresh()
        assert [entry["event"] for entry in logs] == ["the API keys stay as they were"] * 2
        assert "marked" not in str(logs)
        assert await client.model_info()


async def test_an_empty_file_revokes_all_but_starts_nothing(tmp_path: Path, keys: Keys) -> None:
    """A server that serves nobody is a mistake at its start, and a decision later."""
    async with serving(tmp_path, keys) as (_, target), Client(target, api_key=ALICE) as client:
        keys.change()
        with pytest.raises(AuthenticationError):
            await client.model_info()
    with pytest.raises(ConfigError, match="holds no key; make one with: clforge keys NAME"):
        Authentication(keys.path)


async def test_limits_are_a_keys_own(tmp_path: Path, keys: Keys) -> None:
    """So many requests at once, so many tokens that wait; another key has its own, and what ended counts no more."""
    keys.change(alice=(ALICE, "max_requests = 1\nmax_waiting_tokens = 8"), bob=(BOB, ""))
    async with serving(tmp_path, keys) as (served, target):
        served.engine.gate.clear()
        async with Client(target, api_key=ALICE, retry_seconds=0) as alice, Client(target, api_key=BOB) as bob:
            first = asyncio.ensure_future(alice.complete("a"))
            await served.until(lambda: len(served.engine.submits) == 1)
            with pytest.raises(OverloadedError, match="has 1 requests in flight") as caught:
                await alice.complete("a")
            assert (caught.value.reason, caught.value.retry_after_seconds) == ("KEY_TOO_MANY_REQUESTS", 1.0)
            others = asyncio.ensure_future(bob.complete("a" * 20))
            await served.until(lambda: len(served.engine.submits) == 2)
            served.engine.gate.set()
            assert (await first).text
            assert (await others).text
            with pytest.raises(OverloadedError, match="at most 8 may") as caught:
                await alice.complete("a" * 20)
            assert (caught.value.reason, caught.value.retry_after_seconds) == ("KEY_TOO_MANY_TOKENS", None)
            assert (await alice.complete("a")).text


async def test_priority_is_bounded_by_the_key(tmp_path: Path, keys: Keys) -> None:
    """More than it allows is PERMISSION_DENIED; a request that asks for none has the key's own."""
    keys.change(alice=(ALICE, "max_priority = 5\ndefault_priority = 2"), bob=(BOB, "max_priority = -1"))
    async with (
        serving(tmp_path, keys) as (served, target),
        Client(target, api_key=ALICE) as alice,
        Client(target, api_key=BOB) as bob,
    ):
        await alice.complete("a", priority=5)
        await alice.complete("a")
        await alice.complete("a", priority=-9)
        await bob.complete("a")
        assert [submit.params.priority for submit in served.engine.submits] == [5, 2, -9, -1]
        with pytest.raises(PermissionDeniedError, match=r"params.priority is 6; .* at most 5") as caught:
            await alice.complete("a", priority=6)
        assert (caught.value.code, caught.value.field) == ("PERMISSION_DENIED", "params.priority")
