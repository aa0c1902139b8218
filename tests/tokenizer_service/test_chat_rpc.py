"""Conversations through the service: RenderChat, prompts of every door, begin-of-text, failures, and what is left."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from clforge.v1 import tokenizer_pb2 as pb
from clforge.v1.generation_pb2 import FINISH_REASON_CANCELLED, Cancel, Chat, ChatMessage
from service_common.errors import Code
from tests.tokenizer_service.chat_builder import chat
from tests.tokenizer_service.fake_engine import EOS, tokenizer_gguf
from tests.tokenizer_service.test_chat_template import LOOP
from tests.tokenizer_service.tokenizer_world import MAX_PROMPT_BYTES, TEXT, Client, Heard, failure, rpc_failure, world

BOS = 1
TURNS = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"


def prompt(conversation: Chat) -> pb.Prompt:
    """A conversation as a prompt."""
    return pb.Prompt(chat=conversation)


async def test_render_chat_is_what_every_door_submits(tmp_path: Path) -> None:
    """Text and ids come back, and GenerateText, Generate and Complete send just these ids to the engine."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template=TURNS)) as service:
        conversation = chat("the rain", "in </s>")
        rendered = await service.stub.RenderChat(pb.RenderChatRequest(chat=conversation))
        assert rendered.text == "user: the rain</s>assistant: in </s></s>"
        assert list(rendered.token_ids.ids).count(EOS) == 2
        client, heard = Client(service.stub), Heard()
        await client.send(submit=pb.TextSubmit(request_id=1, prompt=prompt(conversation)))
        assert (await client.until_finished(1)).texts[0] == TEXT
        await client.close()
        async for response in service.stub.Generate(pb.GenerateRequest(prompt=prompt(conversation))):
            for update in response.updates:
                heard.hear(update)
        answer = await service.stub.Complete(pb.CompleteRequest(prompt=prompt(conversation)))
        assert heard.texts[0] == answer.choices[0].text == TEXT
        assert [submit.token_ids for submit in service.engine.submits] == [rendered.token_ids.ids] * 3
        assert answer.accepted.num_prompt_tokens == len(rendered.token_ids.ids)


@pytest.mark.parametrize("add_bos", [True, False])
@pytest.mark.parametrize("writes_bos", [True, False])
async def test_begin_of_text_is_there_once(tmp_path: Path, add_bos: bool, writes_bos: bool) -> None:
    """The template's own takes the place of the model's; a user who spells it in front adds none."""
    template = ("{{ bos_token }}" if writes_bos else "") + "{{ messages[0].content }}"
    async with world(tmp_path, data=tokenizer_gguf(chat_template=template, add_bos=add_bos)) as service:
        for content in ("the", "<s>the"):
            rendered = await service.stub.RenderChat(pb.RenderChatRequest(chat=chat(content)))
            assert rendered.text == ("<s>" if writes_bos else "") + content
            encode = pb.EncodeRequest(texts=[content], add_special=False)
            plain = (await service.stub.Encode(encode)).sequences[0].ids
            assert list(rendered.token_ids.ids) == [BOS] * (add_bos or writes_bos) + list(plain)


async def test_model_without_a_template_gets_a_plain_dialogue(tmp_path: Path) -> None:
    """The documented fallback, begin-of-text included."""
    async with world(tmp_path) as service:
        conversation = Chat(messages=[ChatMessage(role="system", content="Be."), *chat("the rain").messages])
        rendered = await service.stub.RenderChat(pb.RenderChatRequest(chat=conversation))
        assert rendered.text == "System: Be.\n\nUser: the rain\n\nAssistant:"
        encoded = await service.stub.Encode(pb.EncodeRequest(texts=[rendered.text]))
        assert rendered.token_ids == encoded.sequences[0]


@pytest.mark.parametrize(
    ("template", "words", "reason"),
    [
        ("{{ raise_exception('no ' ~ messages[0].role) }}", "no user", "CHAT_TEMPLATE"),
        (LOOP, "processor time", "CHAT_TEMPLATE_LIMIT"),
    ],
)
async def test_bad_template_fails_in_band_and_alone(tmp_path: Path, template: str, words: str, reason: str) -> None:
    """INVALID_ARGUMENT with the template's words or the limit, for RenderChat too; text is served meanwhile."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template=template)) as service:
        client = Client(service.stub)
        await client.send(submit=pb.TextSubmit(request_id=1, prompt=prompt(chat("x"))))
        await client.submit(2)
        assert (await client.until_finished(2)).texts[0] == TEXT
        error = failure(await client.until_finished(1))
        assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, reason, "prompt.chat")
        assert words in str(error)
        await client.close()
        error = await rpc_failure(service.stub.RenderChat(pb.RenderChatRequest(chat=chat("x"))))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "chat")
        assert words in str(error)


async def test_rendered_text_must_fit_and_not_be_empty(tmp_path: Path) -> None:
    """A short conversation can become too long a prompt, or none."""
    template = "{% if messages[0].content %}{{ 'a' * 30000 }}{% endif %}"
    async with world(tmp_path, data=tokenizer_gguf(chat_template=template, add_bos=False)) as service:
        error = await rpc_failure(service.stub.Complete(pb.CompleteRequest(prompt=prompt(chat("x")))))
        assert (error.code, error.field) == (Code.OUT_OF_RANGE, "prompt.chat")
        assert f"has 30000 bytes; at most {MAX_PROMPT_BYTES}" in str(error)
        error = await rpc_failure(service.stub.Complete(pb.CompleteRequest(prompt=prompt(chat("")))))
        assert (error.code, error.field) == (Code.INVALID_ARGUMENT, "prompt.chat")


async def test_another_vocabulary_brings_another_template(tmp_path: Path) -> None:
    """An engine that refuses the ids has a new vocabulary: the conversation is rendered and encoded anew, once."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template="old {{ messages[0].content }}")) as service:
        service.engine.serve_vocabulary(tokenizer_gguf(chat_template="new", reverse_pieces=True))
        answer = await service.stub.Complete(pb.CompleteRequest(prompt=prompt(chat("x"))))
        assert answer.choices[0].text == TEXT
        encoded = (await service.stub.Encode(pb.EncodeRequest(texts=["new"]))).sequences[0]
        assert [submit.token_ids for submit in service.engine.submits][1:] == [encoded.ids]


async def test_cancel_while_it_is_rendered_ends_a_request_at_once(tmp_path: Path) -> None:
    """Nobody waits for the template, and no table keeps the request."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template=LOOP)) as service:
        client = Client(service.stub)
        await client.send(submit=pb.TextSubmit(request_id=1, prompt=prompt(chat("x"))))
        await service.until(lambda: service.chat_encoder.renderer.pid is not None)
        await client.send(cancel=Cancel(request_id=1))
        heard = await asyncio.wait_for(client.until_finished(1), 5)
        assert heard.finished[0].reason == FINISH_REASON_CANCELLED
        await client.close()
