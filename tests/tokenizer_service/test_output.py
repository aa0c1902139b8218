"""What clients are told of their output over RPC: sections, echoed prompts, offsets, and the chat template's origin."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import (
    CHAT_TEMPLATE_ORIGIN_FALLBACK,
    CHAT_TEMPLATE_ORIGIN_MODEL,
    FINISH_REASON_LENGTH,
    FINISH_REASON_STOP,
    SECTION_ANSWER,
    SECTION_MARK,
    SECTION_PROMPT,
    SECTION_REASONING,
    SECTION_UNSPECIFIED,
    Chat,
    Credit,
    GenerationParams,
    StopParams,
)
from service_common.errors import Code
from tests.tokenizer_service.chat_builder import chat
from tests.tokenizer_service.fake_engine import byte_tokens, tokenizer_gguf
from tests.tokenizer_service.tokenizer_world import TEXT, Client, World, plain, rpc_failure, world
from tokenizer_service.prompt import MAX_ECHO_BYTES

THINKING = "<think>\nhm, € é\n</think>\n\nIt is 4."
ASKED = "{{ messages[0].content }}\n"
STRIPS = "{% set said = messages[0].content.split('</think>')[-1] %}" + ASKED
OPENS = STRIPS + "{% if add_generation_prompt %}<think>\n{% endif %}"


async def told(service: World, prompt: pb.Prompt | Chat, **params: Any) -> list[tuple[int, str]]:
    """Section and text of each delta, neighbours of one section joined; numbers and order are checked on the way."""
    client = Client(service.stub)
    prompt = pb.Prompt(chat=prompt) if isinstance(prompt, Chat) else prompt
    await client.send(submit=pb.TextSubmit(request_id=1, prompt=prompt, params=GenerationParams(**params)))
    heard = await client.until_finished(1)
    await client.close()
    joined: list[tuple[int, str]] = []
    for delta in heard.deltas[0]:
        if joined and joined[-1][0] == delta.section:
            joined[-1] = delta.section, joined[-1][1] + delta.text
        else:
            joined.append((delta.section, delta.text))
    return joined


async def test_reasoning_is_told_apart_for_chat_prompts(tmp_path: Path) -> None:
    """For a model that knows its marks, byte by byte; the deltas' text is still the whole text, tokens included."""
    async with world(tmp_path, byte_tokens(THINKING), data=tokenizer_gguf(chat_template=STRIPS)) as service:
        sections = await told(service, chat("2 + 2"))
        assert sections == [
            (SECTION_MARK, "<think>\n"),
            (SECTION_REASONING, "hm, € é\n"),
            (SECTION_MARK, "</think>\n\n"),
            (SECTION_ANSWER, "It is 4."),
        ]
        request = pb.CompleteRequest(prompt=pb.Prompt(chat=chat("2 + 2")))
        choice = (await service.stub.Complete(request)).choices[0]
        assert (choice.text, choice.answer, choice.reasoning) == (THINKING, "It is 4.", "hm, € é\n")
        assert list(choice.token_ids) == byte_tokens(THINKING)


async def test_who_asks_decides_what_is_told(tmp_path: Path) -> None:
    """By default neither plain prompts nor chats with models that know no marks; either can be asked for."""
    async with world(tmp_path, byte_tokens(THINKING), data=tokenizer_gguf(chat_template=STRIPS)) as service:
        whole = [(SECTION_UNSPECIFIED, THINKING)]
        assert await told(service, pb.Prompt(text="2 + 2")) == whole
        assert await told(service, chat("2 + 2"), tell_reasoning=False) == whole
        assert len(await told(service, pb.Prompt(text="2 + 2"), tell_reasoning=True)) == 4
        assert not any(submit.params.HasField("tell_reasoning") for submit in service.engine.submits)
    async with world(tmp_path, byte_tokens(THINKING), data=tokenizer_gguf(chat_template=ASKED)) as service:
        assert await told(service, chat("2 + 2")) == whole
        assert len(await told(service, chat("2 + 2"), tell_reasoning=True)) == 4


@pytest.mark.parametrize(("says", "reason"), [("hm</think>4", FINISH_REASON_STOP), ("hm", FINISH_REASON_LENGTH)])
async def test_output_begins_where_the_template_leaves_off(tmp_path: Path, says: str, reason: int) -> None:
    """A prompt that ends with the mark makes the output reasoning, to its end where it is cut off."""
    async with world(tmp_path, byte_tokens(says), data=tokenizer_gguf(chat_template=OPENS)) as service:
        limit = {"stopping": StopParams(max_tokens=2)} if reason == FINISH_REASON_LENGTH else {}
        sections = await told(service, chat("2 + 2"), **limit)
        assert sections[0] == (SECTION_REASONING, "hm")
        assert sections[1:] == ([] if limit else [(SECTION_MARK, "</think>"), (SECTION_ANSWER, "4")])
        closed = chat("2 + 2", add_generation_prompt=False)
        assert (await told(service, closed, **limit))[0][0] == SECTION_ANSWER


async def test_stop_strings_end_reasoning_too(tmp_path: Path) -> None:
    """Wherever they come; what is held back for a mark is delivered before them."""
    async with world(
        tmp_path, byte_tokens("<think>a </thin stop"), data=tokenizer_gguf(chat_template=STRIPS)
    ) as service:
        sections = await told(service, chat("x"), stopping=StopParams(stop=["in sto", "never"]))
        assert sections == [(SECTION_MARK, "<think>"), (SECTION_REASONING, "a </th")]


async def test_a_small_window_never_stalls_at_a_mark(tmp_path: Path) -> None:
    """Tokens held because they may be a mark get credit of their own, as those of a stop string do."""
    async with world(tmp_path, byte_tokens(THINKING), data=tokenizer_gguf(chat_template=STRIPS)) as service:
        client = Client(service.stub)
        submit = pb.TextSubmit(
            request_id=1, prompt=pb.Prompt(chat=chat("x")), params=GenerationParams(initial_credit=1)
        )
        await client.send(submit=submit)
        granted = 1
        while not client.heard.get(1) or not client.heard[1].finished:
            assert await client.listen()
            read = client.heard[1].num_tokens.get(0, 0)
            if read >= granted:
                await client.send(credit=Credit(request_id=1, tokens=read + 1 - granted))
                granted = read + 1
        assert client.heard[1].texts[0] == THINKING
        await client.close()


async def test_echo_returns_the_prompt_before_the_output(tmp_path: Path) -> None:
    """For every kind of prompt and each choice: text as it was given, a chat as it was rendered, ids as decoded; it
    counts as no tokens and stops nothing."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template="<s>{{ messages[0].content }}")) as service:
        ids = (await service.stub.Encode(pb.EncodeRequest(texts=["the rain</s>"]))).sequences[0]
        for prompt, text in (
            (pb.Prompt(text=" the é"), " the é"),
            (pb.Prompt(chat=chat("the")), "<s>the"),
            (pb.Prompt(token_ids=ids), "the rain</s>"),
        ):
            stopping = StopParams(stop=["the rain</s>", "<s>the", "é"])
            sections = await told(service, prompt, echo=True, stopping=stopping)
            assert sections == [(SECTION_PROMPT, text), (SECTION_UNSPECIFIED, TEXT)]
        params = GenerationParams(echo=True, n=2)
        answer = await service.stub.Complete(pb.CompleteRequest(prompt=pb.Prompt(text="so "), params=params))
        assert [choice.text for choice in answer.choices] == ["so " + TEXT] * 2
        assert answer.choices[0].finished.usage.delivered_tokens == len(TEXT) + 1
        assert not any(submit.params.HasField("echo") for submit in service.engine.submits)


async def test_echo_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over all choices, since each gets a copy."""
    assert MAX_ECHO_BYTES == 1 << 20
    monkeypatch.setattr("tokenizer_service.prompt.MAX_ECHO_BYTES", 100)
    async with world(tmp_path) as service:
        error = await rpc_failure(service.stub.Complete(plain("x" * 34, echo=True, n=3)))
        assert (error.code, error.field) == (Code.OUT_OF_RANGE, "params.echo")
        assert "102 bytes" in str(error)
        await service.stub.Complete(plain("x" * 33, echo=True, n=3))


async def test_logprobs_tell_where_their_text_begins(tmp_path: Path) -> None:
    """In characters of the whole text, echo included: a character is of every token that has a byte of it."""
    async with world(tmp_path, byte_tokens("a€b")) as service:
        answer = await service.stub.Complete(plain("né", logprobs=0, echo=True, stopping=StopParams(stop=["b?"])))
        assert answer.choices[0].text == "néa€b"
        assert [entry.text_offset for entry in answer.choices[0].logprobs] == [2, 3, 3, 3, 4]
        assert [entry.chosen.token for entry in answer.choices[0].logprobs][-1] == b"b"


async def test_after_an_incomplete_character_text_begins_after_its_replacement(tmp_path: Path) -> None:
    """The U+FFFD belongs to the tokens whose bytes it replaces, and to no other."""
    broken = [*byte_tokens("€")[:2], *byte_tokens("a"), *byte_tokens("€")[:1], *byte_tokens("é")]
    async with world(tmp_path, broken) as service:
        choice = (await service.stub.Complete(plain(logprobs=0))).choices[0]
        assert choice.text == "\ufffda\ufffdé"
        assert [entry.text_offset for entry in choice.logprobs] == [0, 0, 1, 2, 3, 3]
        request = pb.DecodeRequest(sequences=[pb.TokenIds(ids=choice.token_ids)], with_offsets=True)
        assert list((await service.stub.Decode(request)).offsets[0].starts) == [0, 0, 1, 2, 3, 3]


async def test_model_info_tells_where_the_chat_template_is_from(tmp_path: Path) -> None:
    """The model's own, or the fallback."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template=ASKED)) as service:
        info = (await service.stub.GetModelInfo(pb.GetModelInfoRequest())).model_info
        assert info.chat_template_origin == CHAT_TEMPLATE_ORIGIN_MODEL
    async with world(tmp_path) as service:
        info = (await service.stub.GetModelInfo(pb.GetModelInfoRequest())).model_info
        assert info.chat_template_origin == CHAT_TEMPLATE_ORIGIN_FALLBACK
