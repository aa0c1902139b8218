"""One client stream: what may be said in which order, credits, limits, and failures that stay with their request."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.duration_pb2 import Duration

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import (
    FINISH_REASON_CANCELLED,
    FINISH_REASON_STOP,
    Cancel,
    Chat,
    Credit,
    Delta,
    GenerationParams,
    SamplingParams,
    Stop,
    StopParams,
    Update,
)
from service_common.errors import Code
from service_common.outbox import split
from tests.tokenizer_service.fake_engine import byte_tokens
from tests.tokenizer_service.tokenizer_world import (
    LARGE,
    MAX_LIVE_REQUESTS,
    MAX_PROMPT_BYTES,
    TEXT,
    Client,
    Heard,
    failure,
    world,
)
from tokenizer_service.session import MAX_UNTOLD_REFUSALS

NUM_TOKENS = len(TEXT)
FAMILY = "\N{FAMILY}é€"


BAD_REQUESTS: list[tuple[dict[str, Any], Code, str | None]] = [
    ({}, Code.INVALID_ARGUMENT, "prompt"),
    ({"prompt": pb.Prompt(text="x" * (MAX_PROMPT_BYTES + 1))}, Code.OUT_OF_RANGE, "prompt.text"),
    ({"prompt": pb.Prompt(chat=Chat())}, Code.INVALID_ARGUMENT, "prompt.chat.messages"),
    ({"prompt": pb.Prompt(token_ids=pb.TokenIds())}, Code.INVALID_ARGUMENT, "prompt.token_ids"),
    ({"model": "other"}, Code.NOT_FOUND, "model"),
    ({"params": GenerationParams(n=0)}, Code.INVALID_ARGUMENT, "params.n"),
    ({"params": GenerationParams(n=17)}, Code.INVALID_ARGUMENT, "params.n"),
    ({"params": GenerationParams(timeout=Duration(seconds=-1))}, Code.INVALID_ARGUMENT, "params.timeout"),
    ({"params": GenerationParams(timeout=Duration(seconds=86400 * 365 + 1))}, Code.INVALID_ARGUMENT, "params.timeout"),
    (
        {"params": GenerationParams(stopping=StopParams(stop=["a", ""]))},
        Code.INVALID_ARGUMENT,
        "params.stopping.stop[1]",
    ),
    ({"params": GenerationParams(stopping=StopParams(stop=["a"] * 17))}, Code.INVALID_ARGUMENT, "params.stopping.stop"),
    (
        {"params": GenerationParams(stopping=StopParams(stop=["a" * 1025]))},
        Code.INVALID_ARGUMENT,
        "params.stopping.stop[0]",
    ),
    (
        {"params": GenerationParams(sampling=SamplingParams(temperature=float("nan")))},
        Code.INVALID_ARGUMENT,
        "params.sampling.temperature",
    ),
]


async def test_each_bad_request_is_told_in_band_and_alone(tmp_path: Path) -> None:
    """Code, field and reason arrive in the request's one terminal update; neighbours go on (ISSUE-2, MODEL-13)."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        for request_id, (fields, code, field) in enumerate(BAD_REQUESTS):
            fields = {"prompt": pb.Prompt(text="hello")} | fields if fields else {}
            await client.send(submit=pb.TextSubmit(request_id=request_id, **fields))
            heard = await client.until_finished(request_id)
            error = failure(heard)
            assert (error.code, error.field) == (code, field)
            assert error.reason
            assert not heard.accepted
        await client.submit(99)
        assert (await client.until_finished(99)).texts[0] == TEXT
        await client.close()


async def test_ids_are_checked_without_a_table_of_the_dead(tmp_path: Path) -> None:
    """Unknown ids are NOT_FOUND; ended ones are ignored; used ones ALREADY_EXISTS; all in-band (BUG-6)."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.send(credit=Credit(request_id=5, tokens=1))
        assert failure(await client.until_finished(5)).code is Code.NOT_FOUND
        await client.submit(7)
        await client.until_finished(7)
        for message in ({"credit": Credit(request_id=7, tokens=1)}, {"cancel": Cancel(request_id=6)}):
            await client.send(**message)
        await client.submit(6)
        assert failure(await client.until_finished(6)).code is Code.ALREADY_EXISTS
        await client.close()
        assert len(client.heard[7].finished) == 1


async def test_submit_under_a_live_id_breaks_the_protocol(tmp_path: Path) -> None:
    """An in-band answer would look like the live request's end, so the stream ends; as it does on an empty message."""
    async with world(tmp_path) as service:
        service.engine.gate.clear()
        for message in ({"submit": pb.TextSubmit(request_id=1, prompt=pb.Prompt(text="a"))}, {}):
            client = Client(service.stub)
            await client.submit(1)
            await client.send(**message)
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await client.until_finished(99)
            code = grpc.StatusCode.ALREADY_EXISTS if message else grpc.StatusCode.INVALID_ARGUMENT
            assert caught.value.code() is code
        service.engine.gate.set()


async def test_without_credit_nothing_is_generated(tmp_path: Path) -> None:
    """The engine gets the client's credit and no more; Credit lets it go on."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=2)
        await client.until_text(1, 2)
        await asyncio.sleep(0.02)
        await client.send(credit=Credit(request_id=1, tokens=3))
        heard = await client.until_text(1, 5)
        assert heard.texts[0] == TEXT[:5]
        assert service.engine.granted_tokens == 3
        await client.send(cancel=Cancel(request_id=1))
        assert (await client.until_finished(1)).finished[0].reason == FINISH_REASON_CANCELLED
        await client.close()


async def test_credit_of_one_does_not_stall_on_split_characters(tmp_path: Path) -> None:
    """Tokens held back do not use up the client's credit: four-byte characters come through a window of one token."""
    text = FAMILY * 3
    async with world(tmp_path, byte_tokens(text)) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=1)
        granted, seen = 1, 0
        while 0 not in client.heard.get(1, Heard()).finished:
            assert await client.listen()
            delivered = client.heard[1].num_tokens.get(0, 0)
            assert delivered <= granted + 3, "more than the credit and the tokens of one character"
            if delivered > seen:
                await client.send(credit=Credit(request_id=1, tokens=delivered - seen))
                granted, seen = granted + delivered - seen, delivered
        assert client.heard[1].texts[0] == text
        await client.close()


async def test_credit_of_one_does_not_stall_on_a_held_stop_string(tmp_path: Path) -> None:
    """Text that may yet become a stop string is held, and the engine goes on until that is settled."""
    async with world(tmp_path, byte_tokens("aaaab")) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=1, stopping=StopParams(stop=["aaaac"]))
        heard = await client.until_text(1, 5)
        assert heard.texts[0] == "aaaab"
        assert service.engine.granted_tokens == 4
        await client.until_finished(1)
        await client.close()


async def test_bad_credit_ends_its_request(tmp_path: Path) -> None:
    """Credit of no tokens is INVALID_ARGUMENT for the request it names, once."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=1)
        await client.until_text(1, 1)
        await client.send(credit=Credit(request_id=1))
        error = failure(await client.until_finished(1))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "credit.tokens")
        await client.close()


async def test_client_may_stop_a_choice_itself(tmp_path: Path) -> None:
    """Stop ends the choice at the given length; a length beyond what was delivered is refused."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, initial_credit=5)
        await client.until_text(1, 5)
        await client.send(stop=Stop(request_id=1, num_delivered_tokens=4))
        end = (await client.until_finished(1)).finished[0]
        assert (end.reason, end.usage.delivered_tokens) == (FINISH_REASON_STOP, 4)
        assert service.engine.stops == [(0, 4)]
        await client.submit(2, initial_credit=5)
        await client.until_text(2, 5)
        await client.send(stop=Stop(request_id=2, num_delivered_tokens=6))
        assert failure(await client.until_finished(2)).field == "stop.num_delivered_tokens"
        await client.close()


async def test_live_requests_are_limited(tmp_path: Path) -> None:
    """One more than the limit is RESOURCE_EXHAUSTED with RetryInfo; a request told its end frees its place."""
    async with world(tmp_path) as service:
        service.engine.gate.clear()
        client = Client(service.stub)
        for request_id in range(MAX_LIVE_REQUESTS + 1):
            await client.submit(request_id)
        error = failure(await client.until_finished(MAX_LIVE_REQUESTS))
        assert (error.code, error.retry_after_seconds) == (Code.RESOURCE_EXHAUSTED, 1.0)
        service.engine.gate.set()
        await client.until_finished(0)
        await client.submit(100)
        assert (await client.until_finished(100)).texts[0] == TEXT
        await client.close()


async def test_what_is_said_while_the_prompt_is_encoded_counts(tmp_path: Path) -> None:
    """Cancel ends a request that the engine never hears of; Credit and Stop reach the engine after the submit."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        async with service.busy_encoder():
            for request_id in (1, 2, 3):
                await client.submit(request_id, "x" * LARGE, initial_credit=1)
            await client.send(cancel=Cancel(request_id=1))
            await client.send(credit=Credit(request_id=2, tokens=NUM_TOKENS))
            await client.send(stop=Stop(request_id=3))
            await client.submit(4)
            heard = await client.until_finished(1)
            assert (await client.until_finished(4)).texts[0] == TEXT
        assert heard.finished[0].reason == FINISH_REASON_CANCELLED
        assert (await client.until_finished(2)).texts[0] == TEXT
        stopped = await client.until_finished(3)
        assert stopped.finished[0].reason == FINISH_REASON_STOP
        assert stopped.texts == {}
        assert len(service.engine.submits) == 3
        await client.close()


async def test_half_close_lets_requests_finish(tmp_path: Path) -> None:
    """A client that only stops sending gets every update, then an orderly end."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        for request_id in (3, 4):
            await client.submit(request_id)
        await client.close()
        assert [client.heard[request_id].texts[0] for request_id in (3, 4)] == [TEXT, TEXT]


async def test_late_reader_gets_every_refusal(tmp_path: Path) -> None:
    """More refusals than are held at once make the client wait, and none is lost."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        for request_id in range(3 * MAX_UNTOLD_REFUSALS):
            await client.send(cancel=Cancel(request_id=request_id))
        for request_id in range(3 * MAX_UNTOLD_REFUSALS):
            assert failure(await client.until_finished(request_id)).code is Code.NOT_FOUND
        await client.close()


def test_what_waited_long_is_split_into_messages() -> None:
    """No message outgrows what clients accept, and none is empty."""
    updates = [Update(choice=index, delta=Delta(text="x" * size)) for index, size in enumerate((40, 40, 500, 10, 10))]
    parts = [[update.choice for update in part] for part in split(updates, max_bytes=120)]
    assert parts == [[0, 1], [2], [3, 4]]
    assert list(split([])) == []
