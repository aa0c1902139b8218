"""The link to the engine under faults: clients that go away, an engine that goes away, changes, or talks nonsense."""

from __future__ import annotations

import asyncio
from importlib.metadata import version
from pathlib import Path

import pytest

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import (
    Credit,
)
from service_common.errors import Code, FailedPreconditionError, ResourceExhaustedError
from tests.tokenizer_service.fake_engine import byte_tokens, tokenizer_gguf
from tests.tokenizer_service.tokenizer_world import (
    LARGE,
    TEXT,
    Client,
    World,
    failure,
    plain,
    rpc_failure,
    world,
)
from tokenizer_service.engine_version import check_version

NUM_TOKENS = len(TEXT)


@pytest.mark.parametrize("state", ["queued", "decode", "paused"])
async def test_killed_client_frees_everything_and_others_go_on(tmp_path: Path, state: str) -> None:
    """A client that goes away in any state leaves no entry in any table, here or upstream (MODEL-2)."""
    async with world(tmp_path) as service:
        other = Client(service.stub)
        if state == "queued":
            service.engine.gate.clear()
        victim = Client(service.stub)
        await victim.submit(1, initial_credit=2 if state == "paused" else 1000)
        if state == "queued":
            await victim.listen()
        else:
            await victim.until_text(1, 2)
        if state == "decode":
            service.engine.gate.clear()
        await other.submit(1, initial_credit=1)
        await service.until(lambda: len(service.engine.submits) == 2)
        victim.call.cancel()
        await service.until(lambda: len(service.engine.live) == 1 and service.link.num_live_requests == 1)
        service.engine.gate.set()
        await other.send(credit=Credit(request_id=1, tokens=NUM_TOKENS))
        assert (await other.until_finished(1)).texts[0] == TEXT
        await other.close()


async def test_client_killed_while_its_prompt_is_encoded(tmp_path: Path) -> None:
    """Nothing of it reaches the engine, and nothing stays here."""
    async with world(tmp_path) as service:
        async with service.busy_encoder():
            client = Client(service.stub)
            await client.submit(1, "x" * LARGE)
            await service.until(lambda: service.sessions.num_live_requests == 1)
            client.call.cancel()
            await service.until(service.is_clean)
        assert service.engine.submits == []


async def test_client_that_never_reads_frees_everything_when_it_goes(tmp_path: Path) -> None:
    """Its request keeps its place after the engine's end, since its updates are held here; a kill frees both."""
    async with world(tmp_path, byte_tokens("x" * 1000)) as service:
        service.engine.num_top_logprobs = 100
        client = Client(service.stub)
        await client.submit(1, logprobs=1)
        await service.until(lambda: len(service.engine.submits) == 1)
        await service.until(lambda: not service.engine.live and service.link.num_live_requests == 0, seconds=5)
        assert service.sessions.num_live_requests == 1
        client.call.cancel()
        await service.until(service.is_clean)


async def test_many_cancels_leave_nothing(tmp_path: Path) -> None:
    """Hundreds of streams cancelled at any moment leave all tables empty."""
    async with world(tmp_path) as service:
        for round_ in range(100):
            client = Client(service.stub)
            await client.submit(1)
            await asyncio.sleep(0.0002 * (round_ % 10))
            client.call.cancel()
        await service.until(service.is_clean)


async def test_lost_engine_ends_requests_and_comes_back(tmp_path: Path) -> None:
    """Requests in flight end with UNAVAILABLE and RetryInfo; health follows; a new engine serves again."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=3)
        await client.until_text(1, 3)
        await service.engine.stop()
        heard = await client.until_finished(1)
        error = failure(heard)
        assert (error.code, error.retry_after_seconds) == (Code.UNAVAILABLE, 1.0)
        assert heard.finished[0].usage.delivered_tokens == 3
        assert not service.health.ready
        await client.submit(2)
        assert failure(await client.until_finished(2)).code is Code.UNAVAILABLE
        refused = await rpc_failure(service.stub.Complete(plain()))
        assert (refused.code, refused.retry_after_seconds) == (Code.UNAVAILABLE, 1.0)
        assert service.engine_address in str(refused)
        service.engine.serve_vocabulary(tokenizer_gguf(reverse_pieces=True))
        await service.engine.start(service.engine_address)
        await service.until(lambda: service.health.ready)
        await client.submit(3, "the")
        assert (await client.until_finished(3)).texts[0] == TEXT
        assert service.engine.submits[-1].vocab_sha256 == service.engine.sha256
        assert list(service.engine.submits[-1].token_ids) != list(service.engine.submits[0].token_ids)
        await client.close()


async def test_changed_vocabulary_is_fetched_and_the_submit_repeated(tmp_path: Path) -> None:
    """FAILED_PRECONDITION for a text prompt is not the client's business; ids of the client's own it must make anew."""
    async with world(tmp_path) as service:
        old = service.engine.sha256
        service.engine.serve_vocabulary(tokenizer_gguf(reverse_pieces=True))
        client = Client(service.stub)
        ids = pb.Prompt(token_ids=pb.TokenIds(ids=[5]))
        await client.send(submit=pb.TextSubmit(request_id=1, prompt=ids))
        assert failure(await client.until_finished(1)).code is Code.FAILED_PRECONDITION
        for request_id in (2, 3):
            await client.submit(request_id, "the")
        for request_id in (2, 3):
            assert (await client.until_finished(request_id)).texts[0] == TEXT
        hashes = [submit.vocab_sha256 for submit in service.engine.submits]
        assert hashes[0] == hashes[1] == old
        assert hashes[-1] == service.engine.sha256
        await client.close()


async def test_refused_vocabulary_is_tried_again_only_once(tmp_path: Path) -> None:
    """An engine that always refuses is not asked for ever."""
    async with world(tmp_path) as service:
        service.engine.refusal = FailedPreconditionError("never good enough", reason="VOCABULARY_CHANGED")
        error = await rpc_failure(service.stub.Complete(plain()))
        assert error.code is Code.FAILED_PRECONDITION
        assert len(service.engine.submits) == 2


async def test_damaged_vocabulary_is_unavailable(tmp_path: Path) -> None:
    """A vocabulary that is not what its sha256 says is not used."""
    async with world(tmp_path) as service:
        service.engine.sha256 = "0" * 64
        error = await rpc_failure(service.stub.Complete(plain()))
        assert error.code is Code.UNAVAILABLE
        assert "damaged" in str(error)


async def test_an_engine_too_far_apart_is_refused_until_it_is_updated(tmp_path: Path) -> None:
    """Requests are told both versions, at once; health says NOT_SERVING; the right one is taken as it comes."""

    async def replace_engine(service: World, number: str) -> None:
        await service.engine.stop()
        service.engine.version = number
        await service.engine.start(service.engine_address)

    async with world(tmp_path) as service:
        await replace_engine(service, "99.7.1")
        async with asyncio.timeout(10):
            while (error := await rpc_failure(service.stub.Complete(plain()))).reason != "VERSION_SKEW":
                await asyncio.sleep(0.01)
        assert error.code == Code.FAILED_PRECONDITION
        assert "is of version 99.7.1, this tokenizer of " in str(error)
        assert not service.health.ready
        await replace_engine(service, version("clforge"))
        await service.until(lambda: service.health.ready, 10)


@pytest.mark.parametrize(
    ("engine", "own", "works"),
    [
        ("0.1.0", "0.1.9", True),
        ("0.2.0", "0.1.9", True),
        ("1.4.0.dev3", "1.5", True),
        ("0.3.0", "0.1.9", False),
        ("1.0.0", "0.9.0", False),
        ("1.1.0", "2.1.0", False),
        ("", "0.1.0", False),
        ("new", "0.1.0", False),
    ],
)
def test_versions_work_together_within_one_minor(engine: str, own: str, works: bool) -> None:
    """Of one major version, and at most one minor version apart; an engine that names none is refused."""
    if works:
        check_version(engine, own, "here")
    else:
        with pytest.raises(
            FailedPreconditionError, match=rf"version ({engine}|\(none given\)), this tokenizer of {own}"
        ):
            check_version(engine, own, "here")


async def test_engine_refusal_passes_through(tmp_path: Path) -> None:
    """What only the engine can refuse keeps its code, reason and delay."""
    async with world(tmp_path) as service:
        service.engine.refusal = ResourceExhaustedError("full", reason="QUEUE_FULL", retry_after_seconds=2.0)
        error = await rpc_failure(service.stub.Complete(plain()))
        assert (error.code, error.reason, error.retry_after_seconds) == (Code.RESOURCE_EXHAUSTED, "QUEUE_FULL", 2.0)


async def test_engine_is_told_whose_requests_come_by_one_stream(tmp_path: Path) -> None:
    """Requests of one client stream have its number at the engine, which lets streams take turns; no other has it."""
    async with world(tmp_path) as service:
        clients = [Client(service.stub), Client(service.stub)]
        for request_id in (1, 2):
            for client in clients:
                await client.submit(request_id)
                await client.until_finished(request_id)
        await service.stub.Complete(plain())
        first, second, first_again, second_again, alone = (s.client_stream_id for s in service.engine.submits)
        assert (first, second) == (first_again, second_again)
        assert len({first, second, alone}) == 3
        for client in clients:
            await client.close()


async def test_nonsense_from_the_engine_costs_one_request(tmp_path: Path) -> None:
    """An update that cannot be right ends its request with INTERNAL; the link and the others stay."""
    async with world(tmp_path) as service:
        service.engine.num_unexplained_tokens = 1
        client = Client(service.stub)
        await client.submit(1, initial_credit=1)
        await client.until_text(1, 1)
        await client.submit(2, logprobs=1)
        assert failure(await client.until_finished(2)).code is Code.INTERNAL
        await client.send(credit=Credit(request_id=1, tokens=NUM_TOKENS))
        assert (await client.until_finished(1)).texts[0] == TEXT
        await client.close()
