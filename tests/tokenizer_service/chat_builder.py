"""Conversations, and what encodes them, for tests."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import replace
from typing import Any

from gguf import TokenType
from google.protobuf.struct_pb2 import Struct

from clforge.v1.generation_pb2 import Chat, ChatMessage
from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.vocabulary_builder import bpe_keys, reader, with_tokens
from tokenizer_service.chat_encoder import ChatEncoder, RenderedChat
from tokenizer_service.chat_template import ChatTemplate
from tokenizer_service.encoder import Encoder
from tokenizer_service.render_limits import RenderLimits
from tokenizer_service.special_guard import SpecialGuard
from tokenizer_service.vocabulary import Vocabulary
from tokenizer_service.vocabulary_fetch import EncodingVocabulary

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content | trim }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_TOKENS = {"<|im_start|>": TokenType.CONTROL, "<|im_end|>": TokenType.CONTROL}


def encoding(template: str = CHATML, file: GGUFReader | None = None) -> EncodingVocabulary:
    """The vocabulary of `file`, by default byte-level BPE with ChatML's tokens, and a template."""
    file = file or reader(with_tokens(bpe_keys(), CHATML_TOKENS))
    vocabulary = Vocabulary.from_gguf(file)
    guard = SpecialGuard(vocabulary.special_spellings(), vocabulary.user_defined_spellings())
    return EncodingVocabulary(vocabulary, guard, ChatTemplate(template), "sha")


def struct(**fields: Any) -> Struct:
    """A Struct with these fields."""
    result = Struct()
    result.update(fields)
    return result


def chat(*contents: str, tools: Iterable[Mapping[str, Any]] = (), **template_kwargs: Any) -> Chat:
    """A conversation in which user and assistant take turns."""
    messages = [ChatMessage(role=("user", "assistant")[n % 2], content=text) for n, text in enumerate(contents)]
    tool_structs = [struct(**tool) for tool in tools]
    return Chat(messages=messages, tools=tool_structs, template_kwargs=struct(**template_kwargs))


class ChatTester:
    """A ChatEncoder with one vocabulary for any number of templates."""

    def __init__(self, chat_encoder: ChatEncoder) -> None:
        self.chat_encoder = chat_encoder
        self.encoding = encoding()

    async def render(self, template: str, conversation: Chat | None = None) -> str:
        """What `template` makes of the conversation, by default one `hello` of the user's."""
        return (await self.encode(conversation or chat("hello"), template)).text

    async def encode(self, conversation: Chat, template: str = CHATML) -> RenderedChat:
        """Text and ids."""
        with_template = replace(self.encoding, chat_template=ChatTemplate(template))
        return await self.chat_encoder.encode(conversation, with_template, "chat")

    def spellings(self, token_ids: Iterable[int]) -> list[str]:
        """The tokens as the file spells them."""
        return [self.encoding.vocabulary.token_spelling(token_id) for token_id in token_ids]


@contextlib.asynccontextmanager
async def chat_tester(**limits: Any) -> AsyncIterator[ChatTester]:
    """A tester whose renderer has these limits, fields of RenderLimits."""
    encoder = Encoder()
    chat_encoder = ChatEncoder(encoder, max_prompt_bytes=1 << 20, limits=RenderLimits(**limits))
    try:
        yield ChatTester(chat_encoder)
    finally:
        await chat_encoder.close()
        encoder.close()
