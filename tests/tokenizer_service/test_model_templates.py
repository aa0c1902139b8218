"""The chat templates of well-known models: rendered as transformers renders them, and as their makers document."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any, Never

import pytest
from jinja2.exceptions import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from clforge.v1.generation_pb2 import Chat, ChatMessage
from service_common.errors import ChatTemplateError
from tests.tokenizer_service.chat_builder import ChatTester, chat_tester, struct
from tokenizer_service.conversation import said

FOLDER = Path(__file__).parent / "chat_templates"
NAMES = sorted(path.stem for path in FOLDER.glob("*.jinja"))
BOS = EOS = "<|endoftext|>"  # of the vocabulary that the tester has
PARAMETERS = {
    "type": "object",
    "properties": {"city": {"type": "string", "description": 'Where, e.g. "Köln" & <Rom>\'s'}},
    "required": ["city"],
}
WEATHER = {
    "type": "function",
    "function": {"name": "weather", "description": "The weather", "parameters": PARAMETERS},
}
CALL = {"id": "abcdef123", "type": "function", "function": {"name": "weather", "arguments": {"city": "Köln"}}}


def turn(role: str, content: str, **fields: Any) -> ChatMessage:
    return ChatMessage(role=role, content=content, **fields)


TURNS = [turn("user", " Why? "), turn("assistant", "<think>\nhm\n</think>\n\nSo."), turn("user", "Oh.")]
SYSTEM = turn("system", "Be brief.")
TOOL_TURNS = [
    turn("user", "Weather in Köln?"),
    turn("assistant", "", tool_calls=[struct(**CALL)]),
    turn("tool", '{"celsius": 20}', tool_call_id="abcdef123"),
]

CONVERSATIONS = {
    "turns": Chat(messages=TURNS),
    "system": Chat(messages=[SYSTEM, *TURNS]),
    "no generation prompt": Chat(messages=TURNS, template_kwargs=struct(add_generation_prompt=False)),
    "two of the user's": Chat(messages=[TURNS[0], TURNS[0]]),
    "tools": Chat(messages=TOOL_TURNS[:1], tools=[struct(**WEATHER)]),
    "tool calls": Chat(messages=TOOL_TURNS, tools=[struct(**WEATHER)]),
    "no thinking": Chat(messages=TURNS[:1], template_kwargs=struct(enable_thinking=False, tools_in_user_message=False)),
}


@pytest.fixture
async def tester() -> AsyncIterator[ChatTester]:
    """A tester with the limits of the service."""
    async with chat_tester() as made:
        yield made


def source(name: str) -> str:
    return (FOLDER / f"{name}.jinja").read_text(encoding="utf-8")


def as_transformers(template: str, conversation: Chat) -> str | Exception:
    """What transformers makes of it, or why it refuses: src/transformers/utils/chat_template_utils.py,
    render_jinja_template."""

    def tojson(value: Any, ensure_ascii: bool = False, indent: Any = None, separators: Any = None) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators)

    def raise_exception(message: str) -> Never:
        raise TemplateError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = lambda format: datetime.now().strftime(format)
    variables = {**said(conversation), "bos_token": BOS, "eos_token": EOS}
    try:
        return environment.from_string(template).render(variables)
    except Exception as refusal:
        return refusal


@pytest.mark.parametrize("name", NAMES)
async def test_every_conversation_renders_as_in_transformers(tester: ChatTester, name: str) -> None:
    """Text for text, and refusal for refusal, over all conversations."""
    num_rendered = 0
    for conversation in CONVERSATIONS.values():
        expected = as_transformers(source(name), conversation)
        if isinstance(expected, Exception):
            with pytest.raises(ChatTemplateError, match=re.escape(str(expected))):
                await tester.render(source(name), conversation)
        else:
            num_rendered += 1
            assert await tester.render(source(name), conversation) == expected
    assert num_rendered >= 2


TURNS_RENDERED = {
    "chatml": (
        "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\n<think>\nhm\n</think>\n\nSo.<|im_end|>\n"
        "<|im_start|>user\nOh.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "llama-3": (
        f"{BOS}<|start_header_id|>user<|end_header_id|>\n\nWhy?<|eot_id|><|start_header_id|>assistant<|end_header_id|>"
        "\n\n<think>\nhm\n</think>\n\nSo.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nOh.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "qwen3": (
        "<|im_start|>user\n Why? <|im_end|>\n<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nOh.<|im_end|>\n"
        "<|im_start|>assistant\n"
    ),
    "mistral": f"{BOS}[INST]  Why? [/INST] <think>\nhm\n</think>\n\nSo.{EOS}[INST] Oh.[/INST]",
    "gemma": (
        f"{BOS}<start_of_turn>user\nWhy?<end_of_turn>\n<start_of_turn>model\n<think>\nhm\n</think>\n\nSo.<end_of_turn>\n"
        "<start_of_turn>user\nOh.<end_of_turn>\n<start_of_turn>model\n"
    ),
    "phi-3": (
        "<|user|>\n Why? <|end|>\n<|assistant|>\n<think>\nhm\n</think>\n\nSo.<|end|>\n<|user|>\nOh.<|end|>\n"
        "<|assistant|>\n"
    ),
    "deepseek-r1": (
        f"{BOS}<｜User｜> Why? <｜Assistant｜>\n\nSo.<｜end▁of▁sentence｜><｜User｜>Oh.<｜Assistant｜><think>\n"
    ),
}


@pytest.mark.parametrize("name", TURNS_RENDERED)
async def test_turns_look_as_models_were_trained_on_them(tester: ChatTester, name: str) -> None:
    """Line breaks, trimming, begin- and end-of-text; reasoning of earlier turns is left out where the template does."""
    assert await tester.render(source(name), CONVERSATIONS["turns"]) == TURNS_RENDERED[name]


JSON_OF_TOOL = (
    '{"type": "function", "function": {"name": "weather", "description": "The weather", "parameters": {"type": '
    '"object", "properties": {"city": {"type": "string", "description": "Where, e.g. \\"Köln\\" & <Rom>\'s"}}, '
    '"required": ["city"]}}}'
)
RESPONSE = '<|im_start|>user\n<tool_response>\n{"celsius": 20}\n</tool_response><|im_end|>\n<|im_start|>assistant\n'
TOOLS_RENDERED = {
    "qwen2.5": [f"<tools>\n{JSON_OF_TOOL}\n</tools>", '{"name": "weather", "arguments": {"city": "Köln"}}', RESPONSE],
    "qwen3": [f"<tools>\n{JSON_OF_TOOL}\n</tools>", '{"name": "weather", "arguments": {"city": "Köln"}}', RESPONSE],
    "mistral": [
        f"[AVAILABLE_TOOLS] [{JSON_OF_TOOL}][/AVAILABLE_TOOLS][INST] Weather in Köln?[/INST]",
        '[TOOL_CALLS] [{"name": "weather", "arguments": {"city": "Köln"}, "id": "abcdef123"}]',
        '[TOOL_RESULTS] {"content": {"celsius": 20}, "call_id": "abcdef123"}[/TOOL_RESULTS]',
    ],
    "hermes-tool-use": [
        '"description": "weather(city: str) - The weather\n\n    Args:\n        city(str): Where, e.g. "Köln"',
        '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call><|im_end|>\n',
        '<|im_start|>tool\n<tool_response>\n{"celsius": 20}\n</tool_response><|im_end|><|im_start|>assistant\n',
    ],
    "llama-3.2": [
        "Today Date: ",
        '\n    "function": {\n        "name": "weather",\n',
        '{"name": "weather", "parameters": {"city": "Köln"}}<|eot_id|>',
        '<|start_header_id|>ipython<|end_header_id|>\n\n"{\\"celsius\\": 20}"<|eot_id|>',
    ],
}


@pytest.mark.parametrize("name", TOOLS_RENDERED)
async def test_tools_are_json_as_models_were_trained_on_it(tester: ChatTester, name: str) -> None:
    """Descriptions, calls and results, with neither HTML escapes nor \\u escapes, and keys in the usual order."""
    rendered = await tester.render(source(name), CONVERSATIONS["tool calls"])
    at = 0
    for part in TOOLS_RENDERED[name]:
        assert part in rendered[at:], part
        at = rendered.index(part, at)


@pytest.mark.parametrize(
    ("name", "conversation", "words"),
    [
        ("gemma", "system", "System role not supported"),
        ("gemma", "two of the user's", "must alternate user/assistant"),
        ("mistral", "two of the user's", "must alternate user/assistant"),
    ],
)
async def test_templates_refuse_in_their_own_words(
    tester: ChatTester, name: str, conversation: str, words: str
) -> None:
    """raise_exception reaches the caller."""
    with pytest.raises(ChatTemplateError, match=words):
        await tester.render(source(name), CONVERSATIONS[conversation])


async def test_earlier_reasoning_can_be_told_apart(tester: ChatTester) -> None:
    """A template that takes the assistant's reasoning beside its content gets it."""
    steps = [turn("user", "2 + 2?"), turn("assistant", "4", reasoning_content="two twos")]
    rendered = await tester.render(
        source("qwen3"), Chat(messages=steps, template_kwargs=struct(add_generation_prompt=False))
    )
    assert rendered.endswith("<|im_start|>assistant\n<think>\ntwo twos\n</think>\n\n4<|im_end|>\n")


async def test_thinking_can_be_turned_off(tester: ChatTester) -> None:
    """Where the template has a variable for it."""
    rendered = await tester.render(source("qwen3"), CONVERSATIONS["no thinking"])
    assert rendered.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
