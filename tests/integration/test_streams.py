"""What every stream keeps to, over real connections to both processes, whatever clients do and whatever runs beside."""

from __future__ import annotations

import asyncio
import os
import random
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from clforge.v1 import generation_pb2 as pb
from clforge.v1.engine_pb2 import GenerateTokensRequest, TokenSubmit
from clforge.v1.generation_pb2 import (
    Cancel,
    Credit,
    Finished,
    GenerationParams,
    SamplingParams,
    Stop,
    StopParams,
    Update,
)
from clforge.v1.tokenizer_pb2 import (
    CancelRequestRequest,
    DecodeRequest,
    GenerateTextRequest,
    Prompt,
    TextSubmit,
    TokenIds,
)
from service_common.rpc import MAX_MESSAGE_BYTES
from tests.gguf_builder import tiny_llama
from tests.integration.processes import Processes, Stubs, two_processes

VOCAB_SIZE = 302
NUM_MIXED = 16
BLOCK_BYTES = 2 * 2 * 2 * 16 * 32 * 2  # layers, K and V, KV heads, head_dim, block_size, f16
MAX_CREDIT = (1 << 31) - 1
SMALL_CACHE = ("--kv-cache-bytes", str(12 * BLOCK_BYTES), "--context-length", "256", "--max-num-seqs", "12")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model whose output is a long mix of letters and byte tokens."""
    path = tmp_path_factory.mktemp("streams") / "tiny.gguf"
    tiny_llama(path, seed=13, context_length=1024)
    return path


@pytest.fixture(scope="module")
def processes(model: Path) -> Iterator[Processes]:
    """Both services as they come."""
    with two_processes(model) as both:
        yield both


class Record:
    """One choice's updates, each held against the contract as it comes."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.text = ""
        self.ids: list[int] = []
        self.logprobs: list[tuple[Any, ...]] = []
        self.finished: Finished | None = None

    def add(self, update: Update) -> None:
        """Gapless numbers, nothing after the end, as many ids and log-probabilities as tokens."""
        assert self.finished is None, f"after the end: {update}"
        assert update.sequence == len(self.events)
        kind = update.WhichOneof("event")
        assert kind is not None
        assert (kind == "accepted") <= (not self.events)
        self.events.append(kind)
        if kind == "finished":
            self.finished = update.finished
            has_stop_id = update.finished.HasField("stop_token_id")
            if update.finished.reason != pb.FINISH_REASON_ERROR:
                assert update.finished.usage.delivered_tokens == len(self.ids) + has_stop_id
                assert update.finished.usage.generated_tokens >= update.finished.usage.delivered_tokens
        elif kind == "delta":
            delta = update.delta
            assert delta.num_tokens == len(delta.token_ids)
            assert len(delta.logprobs) in {0, delta.num_tokens}
            assert [entry.chosen.token_id for entry in delta.logprobs] in ([], list(delta.token_ids))
            self.text += delta.text
            self.ids += delta.token_ids
            self.logprobs += [
                (entry.chosen.logprob, *((top.token_id, top.logprob) for top in entry.top)) for entry in delta.logprobs
            ]

    def result(self) -> tuple[Any, ...]:
        """All of it that must not depend on what else runs."""
        assert self.finished is not None
        matched = self.finished.WhichOneof("matched_stop")
        stop = getattr(self.finished, matched) if matched else None
        return self.text, self.ids, self.logprobs, self.finished.reason, stop


Records = dict[tuple[int, int], Record]


async def records_of(call: Any) -> Records:
    """Every choice's record, when the stream has ended."""
    records: Records = defaultdict(Record)
    async for response in call:
        for update in response.updates:
            records[update.request_id, update.choice].add(update)
    return dict(records)


async def converse(call: Any, messages: Iterable[Any]) -> Records:
    """Says all of it, then stops sending and listens to the end."""
    reader = asyncio.create_task(records_of(call))
    for message in messages:
        await call.write(message)
    await call.done_writing()
    async with asyncio.timeout(30):
        return await reader


def text_submit(request_id: int, params: GenerationParams, prompt: Prompt | None = None) -> GenerateTextRequest:
    """A submit for the tokenizer; of a short text where no prompt is given."""
    submit = TextSubmit(request_id=request_id, prompt=prompt or Prompt(text="the rain"), params=params)
    return GenerateTextRequest(submit=submit)


def params_of(max_tokens: int, **fields: Any) -> GenerationParams:
    """Greedy parameters that only max_tokens ends; `fields` are further ones."""
    stopping = StopParams(max_tokens=max_tokens, ignore_eos=True)
    return GenerationParams(sampling=SamplingParams(temperature=0), stopping=stopping, **fields)


def mixed_requests() -> list[GenerateTextRequest]:
    """Requests of mixed prompts, lengths, samplers, choices and stop strings."""
    rng = random.Random(17)
    requests = []
    for request_id in range(NUM_MIXED):
        ids = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((1, 3, 31, 32, 33, 90)))]
        sampling = SamplingParams(
            temperature=rng.choice((0.0, 0.7, 1.5)),
            top_k=rng.choice((0, 1, 40)),
            top_p=rng.choice((0.5, 0.9, 1.0)),
            min_p=rng.choice((0.0, 0.1)),
            seed=rng.getrandbits(64),
        )
        stopping = StopParams(max_tokens=rng.randrange(4, 100), stop=rng.choice(([], ["e"], ["th", "zq"])))
        params = GenerationParams(sampling=sampling, stopping=stopping, n=rng.choice((1, 1, 3)))
        if request_id % 3:
            params.logprobs = request_id
        requests.append(text_submit(request_id, params, Prompt(token_ids=TokenIds(ids=ids))))
    return requests


async def alone_of(stubs: Stubs, requests: Iterable[GenerateTextRequest]) -> dict[tuple[int, int], tuple[Any, ...]]:
    """Each request's result, one after the other."""
    results: dict[tuple[int, int], tuple[Any, ...]] = {}
    for request in requests:
        records = await converse(stubs.tokenizer.GenerateText(), [request])
        results |= {key: record.result() for key, record in records.items()}
    return results


@pytest.fixture(scope="module")
def alone(processes: Processes) -> dict[tuple[int, int], tuple[Any, ...]]:
    """What each of the mixed requests gives when nothing else runs."""

    async def run() -> dict[tuple[int, int], tuple[Any, ...]]:
        async with processes.stubs() as stubs:
            return await alone_of(stubs, mixed_requests())

    return asyncio.run(run())


@pytest.mark.parametrize(
    ("options", "preempts"),
    [
        (("--max-prefill-chunk", "1", "--threads", "1"), False),
        (("--max-prefill-chunk", "7", "--threads", "2"), False),
        (("--max-prefill-chunk", "512", "--portable-kernels"), False),
        (SMALL_CACHE, True),
    ],
)
def test_concurrent_requests_give_the_bits_they_give_alone(
    model: Path, alone: dict[tuple[int, int], tuple[Any, ...]], options: tuple[str, ...], preempts: bool
) -> None:
    """Sixteen at once through both processes, chunked, preempted, with other kernels and threads (MODEL-3, CLI-2)."""

    async def run(both: Processes) -> dict[tuple[int, int], tuple[Any, ...]]:
        async with both.stubs() as stubs:
            records = await converse(stubs.tokenizer.GenerateText(), mixed_requests())
            assert ((await stubs.load()).num_preemptions > 0) == preempts
            return {key: record.result() for key, record in records.items()}

    with two_processes(model, *options) as both:
        assert asyncio.run(run(both)) == alone


async def test_text_is_the_decoded_ids_and_stop_strings_end_it(processes: Processes) -> None:
    """Deltas add up to the text; a stop string across tokens ends it where it begins, or where it ends (CLI-5)."""
    async with processes.stubs() as stubs:
        whole = (await converse(stubs.tokenizer.GenerateText(), [text_submit(1, params_of(60))]))[1, 0]
        start = next(index for index in range(10, 40) if whole.text[index : index + 3].isprintable())
        stop = whole.text[start : start + 3]
        begin = whole.text.index(stop)
        for include_stop in (False, True):
            params = params_of(60, initial_credit=1)
            params.stopping.stop.append(stop)
            params.stopping.include_stop = include_stop
            messages = [text_submit(1, params), *(_credit(1, 1) for _ in range(60))]
            record = (await converse(stubs.tokenizer.GenerateText(), messages))[1, 0]
            assert record.text == whole.text[: begin + 3 * include_stop]
            assert record.finished is not None
            assert record.finished.stop_string == stop
        decoded = await stubs.tokenizer.Decode(DecodeRequest(sequences=[TokenIds(ids=whole.ids)]))
        assert whole.text.strip() == decoded.texts[0].strip()
        await stubs.until_live()


async def test_a_stop_id_is_reported_and_min_tokens_puts_it_off(processes: Processes) -> None:
    """The id is matched_stop, counted, not in the text; below min_tokens it is not sampled."""
    async with processes.stubs() as stubs:
        whole = (await converse(stubs.tokenizer.GenerateText(), [text_submit(1, params_of(40))]))[1, 0]
        stop_id = whole.ids[5]
        first = whole.ids.index(stop_id)
        for min_tokens in (0, 12):
            params = params_of(40)
            params.stopping.stop_token_ids.append(stop_id)
            params.stopping.min_tokens = min_tokens
            record = (await converse(stubs.tokenizer.GenerateText(), [text_submit(1, params)]))[1, 0]
            assert record.finished is not None
            assert stop_id not in record.ids[: max(first, min_tokens)]
            if min_tokens == 0:
                assert record.ids == whole.ids[:first]
                assert record.finished.stop_token_id == stop_id
            else:
                assert len(record.ids) >= min_tokens


async def test_many_requests_on_one_stream_each_end_once(processes: Processes) -> None:
    """Two thousand on one stream: those beyond the admission cap are refused in-band, every one has its end (BUG-6)."""
    async with processes.stubs() as stubs:
        messages = (text_submit(request_id, params_of(2)) for request_id in range(1, 2001))
        records = await converse(stubs.tokenizer.GenerateText(), messages)
        assert len(records) == 2000
        codes = [record.finished.error.code for record in records.values() if record.finished is not None]
        assert len(codes) == 2000
        assert set(codes) <= {0, grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]}
        await stubs.until_live()


def _credit(request_id: int, tokens: int) -> GenerateTextRequest:
    return GenerateTextRequest(credit=Credit(request_id=request_id, tokens=tokens))


def _stop(choice: int, num_tokens: int) -> Stop:
    return Stop(request_id=1, choice=choice, num_delivered_tokens=num_tokens)


_MISTAKES = [
    {"credit": Credit(request_id=1, tokens=0)},
    {"credit": Credit(request_id=1, tokens=MAX_CREDIT + 1)},
    {"stop": _stop(choice=3, num_tokens=0)},
    {"stop": _stop(choice=0, num_tokens=2**32 - 1)},
]


@pytest.mark.parametrize("mistake", _MISTAKES, ids=["no credit", "too much credit", "no such choice", "not generated"])
@pytest.mark.parametrize("door", ["engine", "tokenizer"])
async def test_a_mistake_about_a_live_request_is_its_one_end(
    processes: Processes, door: str, mistake: dict[str, Any]
) -> None:
    """INVALID_ARGUMENT in-band, once and for all; a neighbour on the same stream goes on (CLI-2, ISSUE-2)."""
    async with processes.stubs() as stubs:
        params, neighbour = params_of(30, initial_credit=2), params_of(50)
        call: Any
        if door == "engine":
            sha256 = await stubs.vocab_sha256()
            call = stubs.engine.GenerateTokens()
            messages: list[Any] = [
                GenerateTokensRequest(
                    submit=TokenSubmit(request_id=number, token_ids=[5, 6], params=each, vocab_sha256=sha256)
                )
                for number, each in ((1, params), (2, neighbour))
            ]
            credit = GenerateTokensRequest(credit=Credit(request_id=1, tokens=9))
            follow_up: list[Any] = [GenerateTokensRequest(**mistake), credit]
        else:
            call = stubs.tokenizer.GenerateText()
            messages = [text_submit(1, params), text_submit(2, neighbour)]
            follow_up = [GenerateTextRequest(**mistake), _credit(1, 9)]
        records = await converse(call, [*messages, *follow_up])
        ends = {key: record.finished for key, record in records.items() if record.finished is not None}
        assert set(ends) == {(1, 0), (2, 0)}
        assert ends[1, 0].error.code == grpc.StatusCode.INVALID_ARGUMENT.value[0]
        assert ends[2, 0].reason == pb.FINISH_REASON_LENGTH
        await stubs.until_live()


async def test_credit_without_end_changes_nothing(processes: Processes) -> None:
    """The largest grant a thousand times is no overflow: max_tokens still ends it."""
    async with processes.stubs() as stubs:
        messages = [text_submit(1, params_of(40, initial_credit=1)), *(_credit(1, MAX_CREDIT) for _ in range(1000))]
        record = (await converse(stubs.tokenizer.GenerateText(), messages))[1, 0]
        assert record.finished is not None
        assert (record.finished.reason, len(record.ids)) == (pb.FINISH_REASON_LENGTH, 40)


async def test_any_connection_cancels_by_global_id(processes: Processes) -> None:
    """A paused request that half-closed its stream ends with CANCELLED, asked for from another connection."""
    async with processes.stubs() as stubs, processes.stubs() as others:
        call: Any = stubs.tokenizer.GenerateText()
        await call.write(text_submit(1, params_of(40, initial_credit=1, n=2)))
        await call.done_writing()
        global_id = (await call.read()).updates[0].accepted.global_id
        await others.tokenizer.CancelRequest(CancelRequestRequest(global_id=global_id))
        updates: list[Update] = []
        while (response := await call.read()) is not grpc.aio.EOF:
            updates += response.updates
        ends = [update.finished.reason for update in updates if update.HasField("finished")]
        assert ends == [pb.FINISH_REASON_CANCELLED] * 2
        with pytest.raises(grpc.aio.AioRpcError) as failure:
            await others.tokenizer.CancelRequest(CancelRequestRequest(global_id=global_id))
        assert failure.value.code() == grpc.StatusCode.NOT_FOUND
        await stubs.until_live()


def _resources(processes: Processes) -> list[tuple[int, int]]:
    """Resident MiB and open files of both processes."""
    figures = []
    for each in (processes.engine, processes.tokenizer):
        pages = int(Path(f"/proc/{each.pid}/statm").read_text(encoding="ascii").split()[1])
        figures.append((pages * os.sysconf("SC_PAGESIZE") >> 20, len(list(Path(f"/proc/{each.pid}/fd").iterdir()))))
    return figures


async def _reset_streams(stubs: Stubs, count: int) -> None:
    for number in range(count):
        call = stubs.tokenizer.GenerateText()
        if number % 3:
            await call.write(text_submit(1, params_of(50, initial_credit=number % 5)))
        if number % 4 == 0:
            await call.write(GenerateTextRequest(cancel=Cancel(request_id=1)))
        if number % 7 == 0:
            await call.done_writing()
        if number % 5 == 0:
            await asyncio.sleep(0.002)
        call.cancel()


async def test_resetting_streams_as_fast_as_possible_leaves_nothing(processes: Processes) -> None:
    """Two thousand streams, cut at every moment: memory and open files stay flat, all requests gone (KV-2)."""
    async with processes.stubs() as stubs:
        await _reset_streams(stubs, 500)
        await stubs.until_live()
        before = _resources(processes)
        await _reset_streams(stubs, 2000)
        await stubs.until_live()
        for (old_mib, old_files), (new_mib, new_files) in zip(before, _resources(processes), strict=True):
            assert new_mib <= old_mib + 8
            assert new_files <= old_files + 2


async def _submit_for_ever(call: Any, door: str) -> None:
    """Returns when a message has not been taken for a second; fails if that never happens."""
    ballast = "x" * 4000  # so that the connection's own buffers are soon full
    for number in range(1, 30_000):
        message = (
            GenerateTokensRequest(submit=TokenSubmit(request_id=number, token_ids=[5], vocab_sha256=ballast))
            if door == "engine"
            else GenerateTextRequest(submit=TextSubmit(request_id=number, model=ballast))
        )
        try:
            async with asyncio.timeout(1):
                await call.write(message)
        except TimeoutError:
            return
    pytest.fail("all was taken in")


@pytest.mark.parametrize("door", ["engine", "tokenizer"])
async def test_who_never_reads_is_not_listened_to(processes: Processes, door: str) -> None:
    """Whoever submits for ever and reads no answer has to stop, so that what is unsent stays bounded (ISSUE-4)."""
    async with processes.stubs() as stubs:
        call: Any = stubs.engine.GenerateTokens() if door == "engine" else stubs.tokenizer.GenerateText()
        await _submit_for_ever(call, door)
        call.cancel()
        await stubs.until_live()


async def test_a_late_reader_gets_all_in_messages_of_common_size(processes: Processes) -> None:
    """Megabytes that waited for their reader come in messages that a client of gRPC's defaults takes (CLI-2)."""
    params = params_of(1000, logprobs=20)
    async with processes.stubs() as stubs:
        sha256 = await stubs.vocab_sha256()
        call: Any = stubs.engine.GenerateTokens()
        for number in range(48):
            submit = TokenSubmit(request_id=number, token_ids=[5], params=params, vocab_sha256=sha256)
            await call.write(GenerateTokensRequest(submit=submit))
        await call.done_writing()
        await stubs.until_live(seconds=30)
        records = await records_of(call)
        assert [len(record.ids) for record in records.values()] == [1000] * 48


@pytest.mark.parametrize("kind", ["prompt", "stop ids"])
async def test_a_message_too_large_to_pass_on_costs_only_its_sender(processes: Processes, kind: str) -> None:
    """What fits the front door but not the engine's is OUT_OF_RANGE in-band; others keep their stream (ISSUE-2)."""
    many = [5] * (MAX_MESSAGE_BYTES - 60)
    params = params_of(5)
    if kind == "stop ids":
        params.stopping.stop_token_ids.extend(many)
    prompt = Prompt(token_ids=TokenIds(ids=many if kind == "prompt" else [5]))
    async with processes.stubs() as stubs:
        neighbour = asyncio.create_task(
            converse(
                stubs.tokenizer.GenerateText(), [text_submit(1, params_of(900, initial_credit=1)), _credit(1, 899)]
            )
        )
        record = (await converse(stubs.tokenizer.GenerateText(), [text_submit(1, params, prompt)]))[1, 0]
        assert record.finished is not None
        assert record.finished.error.code == grpc.StatusCode.OUT_OF_RANGE.value[0]
        assert len((await neighbour)[1, 0].ids) == 900
