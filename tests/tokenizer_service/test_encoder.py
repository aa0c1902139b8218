"""Large texts are encoded in turn: what waits, for whom, how much of it, and who has given up."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import FINISH_REASON_DEADLINE
from service_common.errors import Code, ResourceExhaustedError
from tests.prometheus import read
from tests.tokenizer_service.tokenizer_world import LARGE, Client, rpc_failure, world
from tokenizer_service.encoder import HUGE_CHARACTERS, INLINE_CHARACTERS, Encoder

HUGE = HUGE_CHARACTERS + 1


@contextlib.asynccontextmanager
async def made(**limits: int) -> AsyncIterator[Encoder]:
    """An encoder, closed at the end."""
    encoder = Encoder(**limits)
    yield encoder
    encoder.close()


@contextlib.asynccontextmanager
async def busy(encoder: Encoder, num_characters: int) -> AsyncIterator[asyncio.Task[bool]]:
    """Keeps the thread for texts of this size at work; gives the task that waits for it."""
    done, begun = threading.Event(), threading.Event()

    def work() -> bool:
        begun.set()
        return done.wait()

    task = asyncio.create_task(encoder.run(work, num_characters))
    await asyncio.to_thread(begun.wait)
    try:
        yield task
    finally:
        done.set()
        await asyncio.wait([task])


async def test_small_text_waits_for_nobody() -> None:
    """It is done at once, on the event loop, whatever the threads do."""
    async with made() as encoder, busy(encoder, LARGE), busy(encoder, HUGE):
        assert await encoder.run(threading.current_thread, INLINE_CHARACTERS) is threading.current_thread()


async def test_huge_text_does_not_keep_a_large_one_waiting() -> None:
    """Each kind has a thread of its own."""
    async with made() as encoder, busy(encoder, HUGE):
        async with asyncio.timeout(5):
            assert await encoder.run(lambda: "done", LARGE) == "done"


async def test_texts_of_one_kind_take_turns() -> None:
    """One at a time, in order of arrival."""
    order: list[int] = []
    async with made() as encoder:
        async with busy(encoder, LARGE):
            waiting = [asyncio.create_task(encoder.run(partial(order.append, i), LARGE)) for i in range(5)]
            await asyncio.sleep(0)
            assert encoder.num_waiting_characters == 5 * LARGE
        await asyncio.gather(*waiting)
        assert encoder.num_waiting_characters == 0
    assert order == [0, 1, 2, 3, 4]


async def test_work_that_nobody_waits_for_is_never_done() -> None:
    """A caller that gives up in the queue takes its text along, and those behind it move up."""
    async with made() as encoder:
        done: list[str] = []
        async with busy(encoder, LARGE):
            given_up = asyncio.create_task(encoder.run(lambda: done.append("given up"), LARGE))
            patient = asyncio.create_task(encoder.run(lambda: done.append("patient"), LARGE))
            await asyncio.sleep(0)
            given_up.cancel()
            await asyncio.wait([given_up])
            assert encoder.num_waiting_characters == LARGE
        await patient
    assert done == ["patient"]


async def test_caller_that_gives_up_during_its_turn_does_not_let_the_next_one_pile_up() -> None:
    """The thread is busy until it has done the work: the next caller waits where it can still give up."""
    async with made() as encoder:
        async with busy(encoder, LARGE) as running:
            running.cancel()
            await asyncio.wait([running])
            waiting = asyncio.create_task(encoder.run(lambda: "done", LARGE))
            await asyncio.sleep(0.02)
            assert encoder.num_waiting_characters == LARGE
        assert await waiting == "done"


async def test_queue_is_bounded_by_the_text_that_waits() -> None:
    """What would be beyond it is refused with the time to come back; a text that need not wait is always taken."""
    async with made(max_waiting_characters=2 * LARGE) as encoder:
        async with busy(encoder, 3 * LARGE):
            waiting = [asyncio.create_task(encoder.run(lambda: None, LARGE)) for _ in range(2)]
            await asyncio.sleep(0)
            with pytest.raises(ResourceExhaustedError, match=rf"{2 * LARGE} characters .* {LARGE} more") as caught:
                await encoder.run(lambda: None, LARGE)
            assert (caught.value.reason, caught.value.retry_after_seconds) == ("TOO_MUCH_TEXT", 1.0)
            assert await encoder.run(lambda: "huge", HUGE) == "huge"
        await asyncio.gather(*waiting)
        assert await encoder.run(lambda: "again", LARGE) == "again"


async def test_failure_of_the_work_is_its_callers() -> None:
    """The exception comes out of `run`, and the next one has its turn."""
    async with made() as encoder:
        with pytest.raises(ZeroDivisionError):
            await encoder.run(lambda: 1 // 0, LARGE)
        assert await encoder.run(lambda: "next", LARGE) == "next"


async def test_rpc_whose_deadline_passes_in_the_queue_is_not_encoded(tmp_path: Path) -> None:
    """The caller is told at its deadline, and the text is dropped unread."""
    async with world(tmp_path) as service:
        async with service.busy_encoder():
            request = pb.EncodeRequest(texts=["x" * LARGE])
            assert (await rpc_failure(service.stub.Encode(request, timeout=0.1))).code is Code.DEADLINE_EXCEEDED
            await service.until(lambda: service.encoder.num_waiting_characters == 0)
        assert read(service.metrics.registry)["clforge_tokenizer_encode_cache_queries_total"] == 0
        assert (await service.stub.Encode(request)).sequences[0].ids


async def test_full_queue_is_told_to_callers(tmp_path: Path) -> None:
    """RESOURCE_EXHAUSTED, with RetryInfo, for an RPC; small texts go through."""
    async with world(tmp_path, encoder=Encoder(max_waiting_characters=LARGE)) as service:
        async with service.busy_encoder():
            waiting = service.stub.Encode(pb.EncodeRequest(texts=["x" * LARGE]))
            await service.until(lambda: service.encoder.num_waiting_characters == LARGE)
            error = await rpc_failure(service.stub.Encode(pb.EncodeRequest(texts=["y" * LARGE])))
            assert (error.code, error.retry_after_seconds) == (Code.RESOURCE_EXHAUSTED, 1.0)
            assert (await service.stub.Encode(pb.EncodeRequest(texts=["small"]))).sequences
        await waiting
        assert await waiting.code() is grpc.StatusCode.OK


async def test_request_whose_time_is_up_in_the_queue_is_not_encoded(tmp_path: Path) -> None:
    """It ends with DEADLINE at once, not when its turn comes, and its text is dropped unread."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        async with service.busy_encoder():
            await client.submit(1, "x" * LARGE, timeout=Duration(nanos=50_000_000))
            assert (await client.until_finished(1)).finished[0].reason == FINISH_REASON_DEADLINE
            assert service.encoder.num_waiting_characters == 0
        assert read(service.metrics.registry)["clforge_tokenizer_encode_cache_queries_total"] == 0
        assert service.engine.submits == []
        await client.close()
