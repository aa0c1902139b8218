"""The RPCs of the tokenizer service against a fake engine: text, stop strings, choices, log-probabilities, encoding."""

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
    FINISH_REASON_DEADLINE,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    GenerationParams,
    SamplingParams,
    StopParams,
)
from service_common.errors import Code
from tests.tokenizer_service.fake_engine import EOS, byte_tokens
from tests.tokenizer_service.tokenizer_world import (
    MAX_PROMPT_BYTES,
    TEXT,
    Client,
    Heard,
    plain,
    rpc_failure,
    world,
)

NUM_TOKENS = len(TEXT)


async def test_text_arrives_whole_with_usage(tmp_path: Path) -> None:
    """Concatenated deltas are the text; the end-of-generation token is counted and named (CLI-2, CLI-4)."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, "the end")
        heard = await client.until_finished(1)
        assert heard.accepted
        assert heard.texts[0] == TEXT
        assert heard.token_ids[0] == byte_tokens(TEXT)
        end = heard.finished[0]
        assert (end.reason, end.stop_token_id) == (FINISH_REASON_STOP, EOS)
        assert (end.usage.generated_tokens, end.usage.delivered_tokens) == (NUM_TOKENS, NUM_TOKENS + 1)
        assert end.usage.cached_tokens == 1
        assert end.timings.detokenize.ToNanoseconds() > 0
        submit = service.engine.submits[0]
        assert submit.token_ids[0] == 1
        assert end.usage.prompt_tokens == len(submit.token_ids)
        await client.close()


async def test_prompt_and_stop_strings_stay_here(tmp_path: Path) -> None:
    """The engine gets ids and parameters, never text; what the client set otherwise goes through as it is."""
    async with world(tmp_path) as service:
        params = GenerationParams(
            stopping=StopParams(stop=["zebra"], include_stop=True, max_tokens=3),
            sampling=SamplingParams(seed=5),
            priority=-3,
        )
        request = pb.CompleteRequest(prompt=pb.Prompt(text="hello"), params=params)
        answer = await service.stub.Complete(request)
        assert answer.choices[0].text == TEXT[:3]
        assert answer.choices[0].finished.reason == FINISH_REASON_LENGTH
        submit = service.engine.submits[0]
        assert b"zebra" not in submit.SerializeToString()
        assert b"hello" not in submit.SerializeToString()
        params.stopping.ClearField("stop")
        params.stopping.ClearField("include_stop")
        assert submit.params == params


@pytest.mark.parametrize(("include_stop", "text"), [(False, "the rain "), (True, "the rain in sp")])
async def test_stop_string_across_tokens_ends_the_request(tmp_path: Path, include_stop: bool, text: str) -> None:
    """A stop string cut by token bounds ends the choice with STOP; what follows it is dropped."""
    async with world(tmp_path) as service:
        client = Client(service.stub)
        await client.submit(1, stopping=StopParams(stop=["in sp", "never"], include_stop=include_stop))
        heard = await client.until_finished(1)
        assert heard.texts[0] == text
        end = heard.finished[0]
        assert (end.reason, end.stop_string) == (FINISH_REASON_STOP, "in sp")
        assert end.usage.delivered_tokens == heard.num_tokens[0] == len(text)
        assert end.usage.generated_tokens >= len("the rain in sp")
        assert service.engine.stops in ([(0, len(text))], [])
        await client.close()


async def test_stop_is_sent_upstream(tmp_path: Path) -> None:
    """The engine is told to stop as soon as the stop string is found, not when its own end comes."""
    async with world(tmp_path, byte_tokens("ab" * 100_000)) as service:
        answer = await service.stub.Complete(plain(stopping=StopParams(stop=["aba"])))
        assert answer.choices[0].text == ""
        assert service.engine.stops == [(0, 0)]
        assert answer.choices[0].finished.usage.generated_tokens < 10_000


async def test_broken_utf8_becomes_replacement_characters(tmp_path: Path) -> None:
    """Bytes that are no text never break a stream, and what is held at the end is delivered (CLI-5)."""
    async with world(tmp_path, [3 + 0xFF, *byte_tokens("a"), *byte_tokens("€")[:2]]) as service:
        answer = await service.stub.Complete(plain())
        assert answer.choices[0].text == "\ufffda\ufffd"
        assert answer.choices[0].finished.usage.delivered_tokens == 5


async def test_choices_are_independent(tmp_path: Path) -> None:
    """Each choice has its own text, numbering, stop string and end."""
    async with world(tmp_path) as service:
        service.engine.script = lambda submit, choice: byte_tokens(f"{choice}: {TEXT}")
        client = Client(service.stub)
        await client.submit(1, n=3, stopping=StopParams(stop=["1: the"]))
        heard = await client.until_finished(1, 3)
        assert heard.texts.get(1, "") == ""
        assert {choice: heard.texts[choice] for choice in (0, 2)} == {0: f"0: {TEXT}", 2: f"2: {TEXT}"}
        assert heard.finished[1].stop_string == "1: the"
        await client.close()


async def test_logprobs_name_the_bytes_of_their_tokens(tmp_path: Path) -> None:
    """One entry per delivered token, with the bytes of the chosen token and of the most likely ones."""
    async with world(tmp_path, byte_tokens("é")) as service:
        answer = await service.stub.Complete(plain(logprobs=1))
        entries = answer.choices[0].logprobs
        assert [entry.chosen.token for entry in entries] == [b"\xc3", b"\xa9"]
        assert [entry.top[0].token for entry in entries] == [b"\xc3", b"\xa9"]
        assert entries[0].chosen.logprob == -0.5


async def test_prompt_logprobs_come_first_and_say_where_their_tokens_begin(tmp_path: Path) -> None:
    """The prompt's tokens but the first, each with its bytes and its place in the text that echo returns."""
    async with world(tmp_path, byte_tokens("ab")) as service:
        params = GenerationParams(prompt_logprobs=0, echo=True, n=2)
        request = pb.GenerateRequest(prompt=pb.Prompt(text="an é it is"), params=params)
        deltas = [
            update.delta
            async for response in service.stub.Generate(request)
            for update in response.updates
            if update.HasField("delta") and update.choice == 0
        ]
        has_tokens = [bool(delta.token_ids) for delta in deltas if delta.token_ids or delta.prompt_logprobs]
        assert has_tokens == sorted(has_tokens)
        assert has_tokens[0] is False
        entries = [entry for delta in deltas for entry in delta.prompt_logprobs]
        prompt_ids = list(service.engine.submits[0].token_ids)
        assert [entry.chosen.token_id for entry in entries] == prompt_ids[1:]
        text = "an é it is"
        raw = b"".join(entry.chosen.token for entry in entries)
        assert raw.decode().removeprefix(" ") == text
        for entry in entries:
            token = entry.chosen.token
            if token.isascii():
                assert text[entry.text_offset :].startswith(token.decode().removeprefix(" " * (not entry.text_offset)))


async def test_a_whole_answer_has_the_prompts_logprobs(tmp_path: Path) -> None:
    """Complete gathers them beside the choices."""
    async with world(tmp_path) as service:
        answer = await service.stub.Complete(plain(prompt_logprobs=0))
        prompt_ids = list(service.engine.submits[0].token_ids)
        assert [entry.chosen.token_id for entry in answer.prompt_logprobs] == prompt_ids[1:]


async def test_plain_stream_needs_no_credit(tmp_path: Path) -> None:
    """Generate streams one request under id 0 and ends with its last choice."""
    async with world(tmp_path) as service:
        heard = Heard()
        async for response in service.stub.Generate(pb.GenerateRequest(prompt=pb.Prompt(text="a"))):
            for update in response.updates:
                assert update.request_id == 0
                heard.hear(update)
        assert heard.texts[0] == TEXT


async def test_timeout_travels_as_what_is_left(tmp_path: Path) -> None:
    """The engine gets less than the client gave; a timeout that passed before that ends with DEADLINE here."""
    async with world(tmp_path) as service:
        answer = await service.stub.Complete(plain(timeout=Duration(seconds=5)))
        assert answer.choices[0].text == TEXT
        sent = service.engine.submits[0].params.timeout.ToNanoseconds()
        assert 4_000_000_000 < sent < 5_000_000_000
        answer = await service.stub.Complete(plain(timeout=Duration(nanos=1)))
        assert answer.choices[0].finished.reason == FINISH_REASON_DEADLINE
        assert len(service.engine.submits) == 1


async def test_while_the_model_loads_text_can_be_encoded(tmp_path: Path) -> None:
    """The vocabulary comes before the weights; until those are there generation is UNAVAILABLE (CLI-1)."""
    async with world(tmp_path, loading=True) as service:
        await service.until(lambda: service.engine.num_loading_answers > 0)
        await asyncio.sleep(0.01)
        assert (await rpc_failure(service.stub.Complete(plain()))).reason == "LOADING"
        ids = (await service.stub.Encode(pb.EncodeRequest(texts=["the"]))).sequences[0].ids
        assert (await service.stub.Decode(pb.DecodeRequest(sequences=[pb.TokenIds(ids=ids)]))).texts == ["the"]
        error = await rpc_failure(service.stub.GetModelInfo(pb.GetModelInfoRequest()))
        assert (error.code, str(error)) == (Code.UNAVAILABLE, "the model is loading (7 %)")
        assert not service.health.ready
        service.engine.set_loading(False)
        await service.until(lambda: service.health.ready)
        assert (await service.stub.Complete(plain())).choices[0].text == TEXT


async def test_encode_and_decode_follow_their_switches(tmp_path: Path) -> None:
    """Specials are added by default and spelled ones stay text; decode leaves control tokens out by default."""
    async with world(tmp_path) as service:
        encode, decode = service.stub.Encode, service.stub.Decode
        by_default = (await encode(pb.EncodeRequest(texts=["the", "a", ""]))).sequences
        assert [list(sequence.ids[:1]) for sequence in by_default] == [[1], [1], [1]]
        bare = (await encode(pb.EncodeRequest(texts=["</s>"], add_special=False))).sequences[0]
        parsed = (await encode(pb.EncodeRequest(texts=["</s>"], add_special=False, parse_special=True))).sequences[0]
        assert list(parsed.ids) == [EOS]
        assert EOS not in bare.ids
        assert (await decode(pb.DecodeRequest(sequences=by_default))).texts == ["the", "a", ""]
        assert (await decode(pb.DecodeRequest(sequences=[parsed], skip_special=False))).texts == ["</s>"]
        broken = pb.TokenIds(ids=[3 + 0xFF])
        assert (await decode(pb.DecodeRequest(sequences=[broken]))).texts == ["\ufffd"]


async def test_offsets_come_when_asked_for(tmp_path: Path) -> None:
    """One list for each text, of the text as it was given or as it is decoded; the ids and texts are the same."""
    async with world(tmp_path) as service:
        texts = ["the é", "", " the"]
        encoded = await service.stub.Encode(pb.EncodeRequest(texts=texts, with_offsets=True))
        assert encoded.sequences == (await service.stub.Encode(pb.EncodeRequest(texts=texts))).sequences
        assert [_spelled(*pair) for pair in zip(texts, encoded.offsets, strict=True)] == [
            ["", "the", " ", "é", "é"],
            [""],
            ["", "", " the"],
        ]
        decoded = await service.stub.Decode(pb.DecodeRequest(sequences=encoded.sequences, with_offsets=True))
        assert list(decoded.texts) == texts
        assert decoded.offsets == encoded.offsets


async def test_an_answer_too_long_to_be_sent_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a remedy, before gRPC calls the server overloaded."""
    monkeypatch.setattr("tokenizer_service.batches.MAX_MESSAGE_BYTES", 100)
    async with world(tmp_path) as service:
        error = await rpc_failure(service.stub.Encode(pb.EncodeRequest(texts=["x" * 90])))
        assert (error.code, error.field, error.reason) == (Code.OUT_OF_RANGE, "texts", "ANSWER_TOO_LONG")
        error = await rpc_failure(service.stub.Decode(_ids([4] * 90, [4] * 90)))
        assert (error.code, error.field, error.reason) == (Code.OUT_OF_RANGE, "sequences", "ANSWER_TOO_LONG")


def _spelled(text: str, offsets: pb.TokenOffsets) -> list[str]:
    return [text[start:end] for start, end in zip(offsets.starts, offsets.ends, strict=True)]


def _ids(*sequences: list[int]) -> pb.DecodeRequest:
    return pb.DecodeRequest(sequences=[pb.TokenIds(ids=ids) for ids in sequences])


@pytest.mark.parametrize(
    ("rpc", "request_", "code", "field"),
    [
        ("Encode", pb.EncodeRequest(texts=["x"] * 1025), Code.INVALID_ARGUMENT, "texts"),
        ("Encode", pb.EncodeRequest(texts=["x" * (MAX_PROMPT_BYTES // 2 + 1)] * 2), Code.OUT_OF_RANGE, "texts[1]"),
        ("Decode", _ids(*[[]] * 1025), Code.INVALID_ARGUMENT, "sequences"),
        ("Decode", _ids([302]), Code.INVALID_ARGUMENT, "sequences[0].ids[0]"),
        ("Decode", _ids([], [3, 5, 302, 303]), Code.INVALID_ARGUMENT, "sequences[1].ids[2]"),
        ("RenderChat", pb.RenderChatRequest(), Code.INVALID_ARGUMENT, "chat.messages"),
        ("Embed", pb.EmbedRequest(), Code.UNIMPLEMENTED, None),
        ("CancelRequest", pb.CancelRequestRequest(global_id="0"), Code.NOT_FOUND, None),
        ("Complete", plain(initial_credit=1), Code.INVALID_ARGUMENT, "params.initial_credit"),
        ("Complete", pb.CompleteRequest(), Code.INVALID_ARGUMENT, "prompt"),
    ],
)
async def test_unary_rpcs_refuse_with_a_status(
    tmp_path: Path, rpc: str, request_: Any, code: Code, field: str | None
) -> None:
    """A unary call that cannot be answered fails with code and field."""
    async with world(tmp_path) as service:
        error = await rpc_failure(getattr(service.stub, rpc)(request_))
        assert (error.code, error.field) == (code, field)


async def test_engine_rpcs_pass_through(tmp_path: Path) -> None:
    """GetModelInfo, ListRequests, CancelRequest and WatchLoad are the engine's answers."""
    async with world(tmp_path) as service:
        assert (await service.stub.GetModelInfo(pb.GetModelInfoRequest())).model_info.name == "fake"
        service.engine.gate.clear()
        call = service.stub.Generate(pb.GenerateRequest(prompt=pb.Prompt(text="a")))
        first = await call.read()
        assert isinstance(first, pb.GenerateResponse)
        global_id = first.updates[0].accepted.global_id
        listed = (await service.stub.ListRequests(pb.ListRequestsRequest())).requests
        assert [request.global_id for request in listed] == [global_id]
        load = await service.stub.WatchLoad(pb.WatchLoadRequest()).read()
        assert isinstance(load, pb.WatchLoadResponse)
        assert load.load.num_requests_running == 1
        await service.stub.CancelRequest(pb.CancelRequestRequest(global_id=global_id))
        last = await call.read()
        assert isinstance(last, pb.GenerateResponse)
        assert last.updates[-1].finished.reason == FINISH_REASON_CANCELLED
        assert await call.code() is grpc.StatusCode.OK
