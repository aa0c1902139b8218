"""The bundled model's answers from an engine in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from engine_service.bundled import BUNDLED_MODEL
from models.train.question import Question
from service_common.gguf_reader import GGUFReader
from tests.in_process import engine, request, run_to_end
from tests.tokenizer_service.chat_builder import chat, chat_tester, encoding
from tokenizer_service.chat_encoder import RenderedChat
from tokenizer_service.chat_template import ChatTemplate
from tokenizer_service.vocabulary import Vocabulary

MAX_TOKENS = 128  # of an answer; right ones are shorter


def rendered(questions: Sequence[Question]) -> list[RenderedChat]:
    """Each question as the first turn of a conversation, by the model's own template."""

    async def render() -> list[RenderedChat]:
        with GGUFReader(BUNDLED_MODEL) as reader:
            template = ChatTemplate.from_gguf(reader).source
            async with chat_tester() as tester:
                tester.encoding = encoding(template, reader)
                return [await tester.encode(chat(question.text), template) for question in questions]

    return asyncio.run(render())


def greedy_ids(prompts: Sequence[Sequence[int]]) -> list[list[int]]:
    """What the model says after each prompt, all asked at once; the token that ends an answer is left out."""
    with engine(BUNDLED_MODEL) as running:
        for number, prompt in enumerate(prompts):
            running.add(request(number, list(prompt), MAX_TOKENS))
        tokens = run_to_end(running)
    return [[token.token_id for token in tokens.get(number, [])] for number in range(len(prompts))]


def answers(questions: Sequence[Question]) -> list[str]:
    """The model's greedy answers."""
    with GGUFReader(BUNDLED_MODEL) as reader:
        vocabulary = Vocabulary.from_gguf(reader)
    return [vocabulary.decode_continuation(ids) for ids in greedy_ids([chat.token_ids for chat in rendered(questions)])]


def share_right(questions: Sequence[Question]) -> float:
    """The share of questions, 0 to 1, that the model answers as expected, letter for letter."""
    pairs = zip(questions, answers(questions), strict=True)
    return sum(question.answer == answer for question, answer in pairs) / len(questions)
