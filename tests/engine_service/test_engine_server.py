"""EngineService over real gRPC: streams, credits, cancellation, every failure in-band."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from clforge.v1 import engine_pb2 as pb
from clforge.v1 import generation_pb2
from clforge.v1.generation_pb2 import Update
from service_common.errors import Code, DeviceError
from service_common.status import from_status
from tests.engine_service.engine_server import (
    CONTEXT_LENGTH,
    SHA256,
    VOCAB_SIZE,
    RunningEngine,
    cancel,
    credit,
    engine_server,
    stop,
    submit,
    updates_of,
)


@pytest.fixture
async def running() -> AsyncIterator[RunningEngine]:
    async with engine_server() as engine:
        yield engine


async def finished(call: Any, count: int = 1) -> list[Update]:
    """All updates up to the count-th Finished."""
    updates = []
    async for update in updates_of(call):
        updates.append(update)
        count -= update.HasField("finished")
        if count == 0:
            break
    return updates


async def error_of(running: RunningEngine, *messages: pb.GenerateTokensRequest) -> tuple[str, Any]:
    """Code name and status of the terminal error of the last message's request."""
    call = running.stub.GenerateTokens()
    for message in messages:
        await call.write(message)
    update = (await finished(call))[-1]
    call.cancel()
    assert update.finished.reason == generation_pb2.FINISH_REASON_ERROR
    code = next(code for code in grpc.StatusCode if code.value[0] == update.finished.error.code)
    return code.name, update.finished.error


async def test_a_request_is_accepted_streamed_and_finished(running: RunningEngine) -> None:
    """Accepted, deltas, one Finished; sequence numbers without gaps; usage counts what was delivered (CLI-2)."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, prompt_length=20, max_tokens=10))
    updates = await finished(call)
    assert [update.sequence for update in updates] == list(range(len(updates)))
    assert updates[0].accepted.num_prompt_tokens == 20
    assert len(updates[0].accepted.global_id) == 32
    assert [token for update in updates for token in update.delta.token_ids] == list(range(10, 20))
    end = updates[-1].finished
    assert end.reason == generation_pb2.FINISH_REASON_LENGTH
    assert (end.usage.prompt_tokens, end.usage.generated_tokens, end.usage.delivered_tokens) == (20, 10, 10)
    await running.until_empty()


async def test_half_closing_lets_requests_run_to_their_end(running: RunningEngine) -> None:
    """A client that only stops sending gets everything, and then the stream's end."""
    call = running.stub.GenerateTokens()
    for request_id in (1, 2, 3):
        await call.write(submit(request_id))
    await call.done_writing()
    updates = [update async for update in updates_of(call)]
    assert sum(update.HasField("finished") for update in updates) == 3
    assert (await call.code()) == grpc.StatusCode.OK
    await running.until_empty()


@pytest.mark.parametrize("state", ["queued", "prefill", "decode", "paused"])
async def test_a_client_that_goes_away_frees_everything(state: str) -> None:
    """Killed in any state: its blocks return, no table keeps an entry, others go on."""
    async with engine_server(max_num_seqs=2, max_num_batched_tokens=8, max_prefill_chunk=8) as running:
        other = running.stub.GenerateTokens()
        call = running.stub.GenerateTokens()
        if state == "queued":
            for request_id in (1, 2):
                await other.write(submit(request_id, max_tokens=200))
            await _until(running, lambda load: load.num_requests_running == 2)
            await call.write(submit(1))
            await _until(running, lambda load: load.num_requests_waiting == 1)
        else:
            await other.write(submit(1, max_tokens=200))
            if state == "prefill":
                running.runner.delay_seconds = 0.02
                await call.write(submit(1, prompt_length=200))
                await _until(running, lambda load: load.num_requests_running == 2)
            else:
                options = {"initial_credit": 3} if state == "paused" else {}
                await call.write(submit(1, max_tokens=200, **options))
                await anext(aiter(updates_of(call)))
                if state == "paused":
                    await _until(running, lambda load: load.num_requests_paused == 1)
        call.cancel()
        expected = 2 if state == "queued" else 1
        await _until(running, lambda load: load.num_requests_waiting + load.num_requests_paused == 0)
        await _until(running, lambda load: load.num_requests_running == expected)
        await _until_live(running, expected)
        running.runner.delay_seconds = 0.0
        ends = [update.finished.reason for update in await finished(other, expected) if update.HasField("finished")]
        assert ends == [generation_pb2.FINISH_REASON_LENGTH] * expected
        await running.until_empty()


async def test_many_streams_cut_at_random_leave_nothing() -> None:
    """Forty streams, each cut at another moment of its life: the engine is empty afterwards (KV-2)."""
    async with engine_server(max_num_seqs=4) as running:

        async def one(number: int) -> None:
            call = running.stub.GenerateTokens()
            await call.write(submit(1, prompt_length=1 + number * 5 % 200, max_tokens=50, initial_credit=number % 7))
            await asyncio.sleep(number * 0.003)
            call.cancel()

        await asyncio.gather(*(one(number) for number in range(40)))
        await running.until_empty()


async def test_a_request_without_credit_pauses_and_goes_on(running: RunningEngine) -> None:
    """Never more tokens than granted; a grant continues where it stopped (D3)."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, max_tokens=10, initial_credit=4))
    updates, tokens = aiter(updates_of(call)), list[int]()
    for granted in (4, 6):
        while len(tokens) < granted:
            tokens += (await anext(updates)).delta.token_ids
        await _until(running, lambda load: load.num_requests_paused == 1)
        assert len(tokens) == granted
        await call.write(credit(1, 2 if granted == 4 else 100))
    async for update in updates:
        tokens += update.delta.token_ids
        if update.HasField("finished"):
            break
    assert tokens == list(range(10, 20))
    call.cancel()


async def test_a_request_that_stays_without_credit_is_ended() -> None:
    """After the idle limit it ends with RESOURCE_EXHAUSTED and frees its blocks."""
    async with engine_server(pause_timeout_seconds=0.05) as running:
        code, _ = await error_of(running, submit(1, initial_credit=1))
        assert code == "RESOURCE_EXHAUSTED"
        await running.until_empty()


async def test_cancel_ends_with_cancelled_and_may_cross_the_end(running: RunningEngine) -> None:
    """Cancel gives CANCELLED; Cancel or Credit for a request that has ended is ignored."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, max_tokens=200))
    await call.write(cancel(1))
    assert (await finished(call))[-1].finished.reason == generation_pb2.FINISH_REASON_CANCELLED
    await call.write(cancel(1))
    await call.write(credit(1, 5))
    await call.write(submit(2))
    updates = await finished(call)
    assert {update.request_id for update in updates} == {2}
    call.cancel()


async def test_stop_ends_a_choice_at_the_given_length(running: RunningEngine) -> None:
    """Stop from upstream gives STOP, and usage counts the delivered tokens."""
    call = running.stub.GenerateTokens()
    running.runner.delay_seconds = 0.01
    await call.write(submit(1, max_tokens=200))
    updates = aiter(updates_of(call))
    while not (await anext(updates)).HasField("delta"):
        pass
    message = pb.GenerateTokensRequest()
    message.stop.request_id, message.stop.num_delivered_tokens = 1, 1
    await call.write(message)
    async for update in updates:
        if update.HasField("finished"):
            assert update.finished.reason == generation_pb2.FINISH_REASON_STOP
            assert update.finished.usage.delivered_tokens == 1
            break
    call.cancel()


async def test_timeout_ends_with_deadline_also_in_the_queue() -> None:
    """A request whose timeout passes ends with DEADLINE, wherever it is."""
    async with engine_server(max_num_seqs=1) as running:
        running.runner.delay_seconds = 0.01
        call = running.stub.GenerateTokens()
        await call.write(submit(1, max_tokens=200))
        queued = submit(2)
        queued.submit.params.timeout.FromMilliseconds(50)
        await call.write(queued)
        ends = [update for update in await finished(call) if update.HasField("finished")]
        assert [(end.request_id, end.finished.reason) for end in ends] == [(2, generation_pb2.FINISH_REASON_DEADLINE)]
        call.cancel()
        await running.until_empty()


def _broken(field: str, value: object) -> pb.GenerateTokensRequest:
    message = submit(1)
    target = message.submit
    *path, name = field.split(".")
    for part in path:
        target = getattr(target, part)
    if isinstance(value, list):
        del getattr(target, name)[:]
        getattr(target, name).extend(value)
    else:
        setattr(target, name, value)
    return message


@pytest.mark.parametrize(
    ("field", "value", "code"),
    [
        ("token_ids", [], "INVALID_ARGUMENT"),
        ("token_ids", [5, VOCAB_SIZE], "INVALID_ARGUMENT"),
        ("token_ids", [5] * CONTEXT_LENGTH, "OUT_OF_RANGE"),
        ("vocab_sha256", "00" * 32, "FAILED_PRECONDITION"),
        ("params.sampling.temperature", float("nan"), "INVALID_ARGUMENT"),
        ("params.sampling.temperature", -1.0, "INVALID_ARGUMENT"),
        ("params.sampling.top_p", 0.0, "INVALID_ARGUMENT"),
        ("params.sampling.top_p", float("inf"), "INVALID_ARGUMENT"),
        ("params.sampling.min_p", 1.5, "INVALID_ARGUMENT"),
        ("params.sampling.top_k", 1 << 31, "INVALID_ARGUMENT"),
        ("params.stopping.max_tokens", 0, "INVALID_ARGUMENT"),
        ("params.stopping.min_tokens", 11, "INVALID_ARGUMENT"),
        ("params.stopping.stop_token_ids", [VOCAB_SIZE], "INVALID_ARGUMENT"),
        ("params.stopping.stop_token_ids", list(range(17)), "INVALID_ARGUMENT"),
        ("params.stopping.stop", ["x"], "INVALID_ARGUMENT"),
        ("params.n", 0, "INVALID_ARGUMENT"),
        ("params.n", 17, "INVALID_ARGUMENT"),
        ("params.priority", 101, "INVALID_ARGUMENT"),
        ("params.logprobs", 21, "INVALID_ARGUMENT"),
        ("params.timeout.seconds", -1, "INVALID_ARGUMENT"),
        ("params.timeout.seconds", 1 << 62, "INVALID_ARGUMENT"),
        ("params.prompt_logprobs", 21, "INVALID_ARGUMENT"),
        ("params.speculation.max_draft_tokens", 17, "INVALID_ARGUMENT"),
        ("params.speculation.ngram_size", 0, "INVALID_ARGUMENT"),
        ("params.speculation.ngram_size", 9, "INVALID_ARGUMENT"),
        ("params.constraint.regex", "(", "INVALID_ARGUMENT"),
        ("params.constraint.regex", "", "INVALID_ARGUMENT"),
        ("params.constraint.json_schema", "x" * 65537, "INVALID_ARGUMENT"),
        ("params.constraint.choices.texts", ["x"] * 1025, "INVALID_ARGUMENT"),
    ],
)
async def test_a_bad_request_is_refused_in_band(running: RunningEngine, field: str, value: object, code: str) -> None:
    """The status names the field, neighbours go on, nothing is left behind (ISSUE-2, MODEL-13)."""
    got, status = await error_of(running, _broken(field, value))
    assert got == code
    details = [error_details_pb2.BadRequest(), error_details_pb2.ErrorInfo()]
    unpacked = [detail for detail in details for packed in status.details if packed.Unpack(detail)]
    assert any(isinstance(detail, error_details_pb2.ErrorInfo) and detail.reason for detail in unpacked)
    fields = [violation.field for detail in unpacked[:1] for violation in getattr(detail, "field_violations", [])]
    named = [name.removeprefix("submit.").partition("[")[0] for name in fields]
    assert any(field.startswith(name) for name in named), f"{fields} do not name {field}"
    await running.until_empty()


async def test_mistakes_about_a_request_are_told_in_band(running: RunningEngine) -> None:
    """An id never seen is NOT_FOUND, a used one ALREADY_EXISTS, no credit at all INVALID_ARGUMENT."""
    assert (await error_of(running, cancel(7)))[0] == "NOT_FOUND"
    assert (await error_of(running, submit(5, max_tokens=100), submit(3)))[0] == "ALREADY_EXISTS"
    assert (await error_of(running, submit(5, initial_credit=0), credit(5, 0)))[0] == "INVALID_ARGUMENT"
    await running.until_empty()


@pytest.mark.parametrize("mistake", [credit(5, 0), credit(5, 1 << 31), stop(5, 2, 0), stop(5, 0, 1 << 31)])
async def test_a_mistake_about_a_live_request_ends_it(
    running: RunningEngine, mistake: pb.GenerateTokensRequest
) -> None:
    """A bad Credit or Stop is the end of its request: one terminal update, right usage, and nothing after it."""
    call = running.stub.GenerateTokens()
    await call.write(submit(5, initial_credit=2))
    updates: list[Update] = []
    async for update in updates_of(call):
        updates.append(update)
        if len(updates) == 3:
            for message in (mistake, credit(5, 5)):
                await call.write(message)
            await call.done_writing()
    assert [update.WhichOneof("event") for update in updates] == ["accepted", "delta", "delta", "finished"]
    assert [update.sequence for update in updates] == [0, 1, 2, 3]
    assert updates[-1].finished.error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
    assert updates[-1].finished.usage.delivered_tokens == 2
    await running.until_empty()


@pytest.mark.parametrize(
    ("messages", "code"),
    [
        ([pb.GenerateTokensRequest()], grpc.StatusCode.INVALID_ARGUMENT),
        ([submit(5, initial_credit=0), submit(5)], grpc.StatusCode.ALREADY_EXISTS),
    ],
)
async def test_violations_of_the_protocol_end_the_stream(
    running: RunningEngine, messages: list[pb.GenerateTokensRequest], code: grpc.StatusCode
) -> None:
    """An empty message, and a second submit of a live id, end the RPC with a status; nothing is left behind."""
    call = running.stub.GenerateTokens()
    for message in messages:
        await call.write(message)
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await finished(call)
    assert failure.value.code() == code
    await running.until_empty()


async def test_a_full_queue_refuses_at_once_and_says_when_to_come_back() -> None:
    """The admission cap gives RESOURCE_EXHAUSTED with RetryInfo; those admitted finish."""
    async with engine_server(max_num_seqs=1, max_queued_requests=2) as running:
        running.runner.gate.clear()
        call = running.stub.GenerateTokens()
        for request_id in range(1, 8):
            await call.write(submit(request_id))
        await asyncio.sleep(0.1)
        running.runner.gate.set()
        ends = [update for update in await finished(call, 7) if update.HasField("finished")]
        refused = [end for end in ends if end.finished.HasField("error")]
        assert refused
        for end in refused:
            retry = error_details_pb2.RetryInfo()
            assert any(detail.Unpack(retry) for detail in end.finished.error.details)
        assert len(ends) - len(refused) >= 2
        call.cancel()


async def test_a_failed_step_ends_its_requests_only(running: RunningEngine) -> None:
    """A device error is INTERNAL for the requests in the step; later ones are served."""
    running.runner.failures.append(DeviceError("launch kernel", "OUT_OF_RESOURCES"))
    assert (await error_of(running, submit(1)))[0] == "INTERNAL"
    call = running.stub.GenerateTokens()
    await call.write(submit(1))
    assert (await finished(call))[-1].finished.reason == generation_pb2.FINISH_REASON_LENGTH
    call.cancel()
    await running.until_empty()


async def test_several_choices_have_an_end_each(running: RunningEngine) -> None:
    """n choices: one Accepted, n Finished, each with gapless numbers of its own."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, n=3))
    updates = await finished(call, 3)
    for choice in range(3):
        numbers = [update.sequence for update in updates if update.choice == choice]
        assert numbers == list(range(len(numbers)))
    assert sum(update.HasField("accepted") for update in updates) == 1
    call.cancel()


async def test_figures_lists_and_cancel_by_global_id(running: RunningEngine) -> None:
    """GetLoad, WatchLoad, ListRequests and CancelRequest tell of a live request and end it."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, max_tokens=200, initial_credit=3))
    global_id = (await anext(aiter(updates_of(call)))).accepted.global_id
    await _until(running, lambda load: load.num_requests_paused == 1)
    listed = await running.stub.ListRequests(pb.EngineServiceListRequestsRequest())
    assert [info.global_id for info in listed.requests] == [global_id]
    assert listed.requests[0].state == generation_pb2.REQUEST_STATE_PAUSED
    watch = running.stub.WatchLoad(pb.EngineServiceWatchLoadRequest())
    assert (await anext(aiter(watch))).load.num_requests_paused == 1
    watch.cancel()
    await running.stub.CancelRequest(pb.EngineServiceCancelRequestRequest(global_id=global_id))
    assert (await finished(call))[-1].finished.reason == generation_pb2.FINISH_REASON_CANCELLED
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running.stub.CancelRequest(pb.EngineServiceCancelRequestRequest(global_id=global_id))
    assert failure.value.code() == grpc.StatusCode.NOT_FOUND
    call.cancel()
    await running.until_empty()


async def test_an_owner_sees_and_ends_its_own_requests_alone(running: RunningEngine) -> None:
    """Another's are in no list, and to cancel one is NOT_FOUND; the name has at most 64 bytes."""
    call = running.stub.GenerateTokens()
    message = submit(1, max_tokens=200, initial_credit=3)
    message.submit.owner = "alice"
    await call.write(message)
    global_id = (await anext(aiter(updates_of(call)))).accepted.global_id
    for stranger in ("bob", ""):
        listed = await running.stub.ListRequests(pb.EngineServiceListRequestsRequest(owner=stranger))
        assert not listed.requests
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await running.stub.CancelRequest(pb.EngineServiceCancelRequestRequest(global_id=global_id, owner=stranger))
        assert failure.value.code() == grpc.StatusCode.NOT_FOUND
    listed = await running.stub.ListRequests(pb.EngineServiceListRequestsRequest(owner="alice"))
    assert [info.global_id for info in listed.requests] == [global_id]
    await running.stub.CancelRequest(pb.EngineServiceCancelRequestRequest(global_id=global_id, owner="alice"))
    assert (await finished(call))[-1].finished.reason == generation_pb2.FINISH_REASON_CANCELLED
    too_long = submit(2)
    too_long.submit.owner = "é" * 33
    await call.write(too_long)
    error = from_status((await finished(call))[-1].finished.error)
    assert (error.code, str(error)) == (Code.INVALID_ARGUMENT, "submit.owner is 66 bytes long; must have at most 64")
    call.cancel()
    await running.until_empty()


async def test_a_cached_prompt_is_its_owners_own(running: RunningEngine) -> None:
    """The same prompt is found again for its owner, under the same salt, and for nobody else."""

    async def cached_tokens(number: int, owner: str, salt: str = "") -> int:
        call = running.stub.GenerateTokens()
        message = submit(number, prompt_length=40, max_tokens=1, cache_salt=salt)
        message.submit.owner = owner
        await call.write(message)
        end = (await finished(call))[-1].finished
        call.cancel()
        return end.usage.cached_tokens

    assert await cached_tokens(1, "alice") == 0
    assert await cached_tokens(2, "alice") > 0
    assert await cached_tokens(3, "bob") == 0
    assert await cached_tokens(4, "alice", "bob") == 0
    assert await cached_tokens(5, "alice") > 0


async def test_while_loading_the_vocabulary_is_there_and_the_rest_says_when(running: RunningEngine) -> None:
    """GetTokenizer answers before the weights are loaded; other calls are UNAVAILABLE with RetryInfo (CLI-1)."""
    running.server.serving = None
    chunks = [chunk async for chunk in running.stub.GetTokenizer(pb.GetTokenizerRequest())]
    assert b"".join(chunk.data for chunk in chunks) == running.server.tokenizer_file.data
    assert {chunk.vocab_sha256 for chunk in chunks} == {SHA256}
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running.stub.GetModelInfo(pb.EngineServiceGetModelInfoRequest())
    assert failure.value.code() == grpc.StatusCode.UNAVAILABLE
    assert any(key == "grpc-status-details-bin" for key, _ in failure.value.trailing_metadata() or ())


async def test_draining_refuses_new_requests_and_ends_streams(running: RunningEngine) -> None:
    """Requests in flight finish, new ones are UNAVAILABLE in-band, then idle streams are closed (CLI-3)."""
    call = running.stub.GenerateTokens()
    await call.write(submit(1, max_tokens=30))
    await anext(aiter(updates_of(call)))
    running.server.refuse_new()
    await call.write(submit(2))
    await asyncio.wait_for(running.server.wait_idle(), 5)
    ends = [update async for update in updates_of(call) if update.HasField("finished")]
    assert {(end.request_id, end.finished.reason) for end in ends} == {
        (1, generation_pb2.FINISH_REASON_LENGTH),
        (2, generation_pb2.FINISH_REASON_ERROR),
    }


async def test_embed_says_that_it_is_not_served(running: RunningEngine) -> None:
    """UNIMPLEMENTED, not silence."""
    with pytest.raises(grpc.aio.AioRpcError) as failure:
        await running.stub.Embed(pb.EngineServiceEmbedRequest())
    assert failure.value.code() == grpc.StatusCode.UNIMPLEMENTED


async def _until(running: RunningEngine, holds: Any) -> None:
    async with asyncio.timeout(5):
        while not holds(await asyncio.wrap_future(running.loop.query(lambda engine: engine.scheduler.stats()))):
            await asyncio.sleep(0.002)


async def _until_live(running: RunningEngine, count: int) -> None:
    async with asyncio.timeout(5):
        while len(running.registry) != count:
            await asyncio.sleep(0.002)
