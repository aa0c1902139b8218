"""Chat templates: what they may use, as in transformers, and what keeps hostile ones from doing harm."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path

import pytest

from clforge.v1.generation_pb2 import Chat, ChatMessage
from service_common.errors import ChatTemplateError, Code, ModelFileError
from service_common.gguf_reader import GGUFReader
from tests.tokenizer_service.chat_builder import CHATML, ChatTester, chat, chat_tester, encoding, struct
from tests.tokenizer_service.vocabulary_builder import bpe_keys, reader
from tokenizer_service.chat_template import (
    MAX_TEMPLATE_BYTES,
    PLAIN_DIALOGUE,
    TEMPLATE_KEY,
    TOOL_USE_KEY,
    ChatTemplate,
)

LOOP = "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}"
SYSTEM = Chat(messages=[ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content="Hi")])


@pytest.fixture
async def tester() -> AsyncIterator[ChatTester]:
    """A tester with the limits of the service."""
    async with chat_tester() as made:
        yield made


REAL = {
    "qwen2": (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n"
        "<|im_start|>assistant\nSo.<|im_end|>\n<|im_start|>user\nOh.<|im_end|>\n<|im_start|>assistant\n"
    ),
    "phi-3": "<s><|user|>\nWhy?<|end|>\n<|assistant|>\nSo.<|end|>\n<|user|>\nOh.<|end|>\n<|assistant|>\n",
}
TOOL = {"type": "function", "function": {"parameters": {"b": 1, "type": "object"}, "name": "f", "description": "é<"}}

FEATURES = {
    "system": (CHATML, SYSTEM, "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>"),
    "blocks take their line": ("{% if true %}\nx\n    {% endif %}\ny\n", None, "x\ny"),
    "break and continue": (
        "{% for i in range(9) %}{% if i == 1 %}{% continue %}{% endif %}{% if i == 3 %}{% break %}{% endif %}{{ i }}"
        "{% endfor %}",
        None,
        "02",
    ),
    "generation": ("{% generation %}a{{ messages[0].role }}{% endgeneration %}b", None, "auserb"),
    "json": (
        "{{ tools[0] | tojson }}",
        chat("x", tools=[TOOL]),
        '{"type": "function", "function": {"name": "f", "description": "é<", '
        '"parameters": {"type": "object", "b": 1}}}',
    ),
    "indented json": ("{{ {'a': [1]} | tojson(indent=1) }}", None, '{\n "a": [\n  1\n ]\n}'),
    "no tools": ("{{ tools is none }} {{ documents is none }}", None, "True True"),
    "tool calls": (
        "{{ messages[0].tool_calls[0].name }} {{ messages[0].tool_call_id }} {{ 'name' in messages[0] }}",
        Chat(messages=[ChatMessage(role="tool", tool_call_id="7", tool_calls=[struct(name="f")])]),
        "f 7 False",
    ),
    "keyword arguments": (
        "{{ enable_thinking }} {{ n + 1 }} {{ nothing is none }} {{ absent is defined }}",
        chat("x", enable_thinking=False, n=2, nothing=None),
        "False 3 True False",
    ),
    "generation prompt": (CHATML, chat("x", add_generation_prompt=False), "<|im_start|>user\nx<|im_end|>\n"),
    "own tokens": ("{{ bos_token }}{{ eos_token }}", None, "<|endoftext|><|endoftext|>"),
    "namespace and macros": (
        "{% macro m(x) %}[{{ x }}]{% endmacro %}{% set ns = namespace(n=0) %}{% for m_ in messages %}"
        "{% set ns.n = ns.n + 1 %}{% endfor %}{{ m(ns.n) }}",
        None,
        "[1]",
    ),
    "think blocks": (
        "{% set c = messages[1].content %}{{ c.split('</think>')[-1].lstrip('\n') if '</think>' in c else '?' }}",
        chat("x", "<think>hm</think>\nyes"),
        "yes",
    ),
    "fallback": (
        PLAIN_DIALOGUE,
        Chat(messages=[*SYSTEM.messages, ChatMessage(role="assistant", content=" Hello "), *chat("More").messages]),
        "System: Be brief.\n\nUser: Hi\n\nAssistant: Hello\n\nUser: More\n\nAssistant:",
    ),
}


async def test_templates_find_what_transformers_gives_them(tester: ChatTester) -> None:
    """White space, loop controls, tojson without HTML escapes and in a fixed order, variables, and the fallback."""
    for name, (template, conversation, expected) in FEATURES.items():
        rendered = await tester.render(template, conversation)
        assert rendered.startswith(expected) if name == "system" else rendered == expected, name


@pytest.mark.parametrize("name", ["qwen2", "phi-3"])
async def test_real_files_render_as_their_template_says(tester: ChatTester, shared_data: Path, name: str) -> None:
    """With the template of the file itself; ids are those of the text with its special tokens taken as such."""
    data = (shared_data / f"vocab/ggml-vocab-{name}.gguf").read_bytes()
    file = GGUFReader.from_bytes(data, name)
    tester.encoding = encoding(file=file)
    rendered = await tester.encode(chat("Why?", "So.", "Oh."), file.get_str(TEMPLATE_KEY))
    assert rendered.text == REAL[name]
    vocabulary = tester.encoding.vocabulary
    assert rendered.token_ids == vocabulary.encode(rendered.text, add_special=False, parse_special=True)


async def test_time_is_the_services_own(tester: ChatTester) -> None:
    """strftime_now formats the local time of the service."""
    before = datetime.now().strftime("%d %b %Y %H:%M")
    assert await tester.render("{{ strftime_now('%d %b %Y %H:%M') }}") in (
        before,
        datetime.now().strftime("%d %b %Y %H:%M"),
    )


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{{ raise_exception('roles must take turns, not ' ~ messages[0].role) }}", "roles must take turns, not user"),
        ("{{ raise_exception('x' * 100000) }}", "xxx"),
        ("{% if %}", "Expected an expression"),
        ("{{ messages[0].content + 1 }}", "TypeError: can only concatenate str"),
        ("{{ none.x.y }}", "has no attribute"),
        ("{% include 'x' %}", "no loader"),
        ("{{ '\\ud800' }}", "surrogates not allowed"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError"),
        ("{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}", "RecursionError"),
        ("x" * (MAX_TEMPLATE_BYTES + 1), f"at most {MAX_TEMPLATE_BYTES}"),
    ],
)
async def test_what_a_template_says_reaches_the_caller(tester: ChatTester, template: str, words: str) -> None:
    """Its own refusals, and its mistakes of any kind, are INVALID_ARGUMENT with a short message."""
    with pytest.raises(ChatTemplateError, match=words) as caught:
        await tester.render(template)
    assert (caught.value.code, caught.value.reason, caught.value.field) == (
        Code.INVALID_ARGUMENT,
        "CHAT_TEMPLATE",
        "chat",
    )
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize(
    "expression",
    [
        "''.__class__.__mro__[1].__subclasses__()",
        "messages.__class__.__base__.__subclasses__()",
        "cycler.__init__.__globals__.os.popen('id').read()",
        "raise_exception.__globals__['json']",
        "strftime_now.__closure__[0].cell_contents",
        "self.__init__.__globals__",
        "self._TemplateReference__context.environment",
        "lipsum.__globals__.os",
        "messages | attr('__class__')",
        "messages | map(attribute='__class__') | list",
        "'{0.__class__.__init__}'.format(messages)",
        "'{0.__class__}'.format_map({'0': messages})",
        "('{0.__class__}' | attr('format'))(messages)",
        "{}['__class__']",
        "(messages | groupby('__class__'))[0].grouper",
        "namespace.__init__.__globals__",
    ],
)
async def test_templates_reach_nothing_but_values(tester: ChatTester, expression: str) -> None:
    """Attributes of the interpreter are refused or undefined, by whatever way they are asked for."""
    rendered = ""
    with contextlib.suppress(ChatTemplateError):
        rendered = await tester.render("{{ " + expression + " }}")
    assert not any(word in rendered for word in ("class", "object at", "uid=", "function", "module", "wrapper"))
    assert await tester.render("{{ messages[0].content }}") == "hello"


async def test_templates_change_none_of_their_values(tester: ChatTester) -> None:
    """The sandbox is immutable, and the next conversation finds everything as it was."""
    for expression in ("messages.append(1)", "messages[0].update({'role': 'x'})", "messages[0].clear()"):
        with pytest.raises(ChatTemplateError, match="unsafe"):
            await tester.render("{{ " + expression + " }}")
    assert await tester.render("{{ messages | length }}{{ messages[0].role }}") == "1user"


TIME_BOMBS = {
    "loop": (LOOP, "processor time"),
    "power": ("{{ 9 ** (9 ** 9) }}", "processor time"),
    "lipsum": ("{{ lipsum(n=1000000, min=100, max=200) }}", "processor time"),
}
SPACE_BOMBS = {
    "repeat": ("{{ 'a' * 10 ** 10 }}", "MiB of memory"),
    "doubling": (
        "{% set ns = namespace(x='ten letters') %}{% for i in range(99) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
        "MiB of memory",
    ),
    "width": ("{{ '%999999999d' % 1 }}", "MiB of memory"),
    "format": ("{{ '{:>999999999}'.format(1) }}", "MiB of memory"),
    "strftime": ("{{ strftime_now('%c' * 20000000) }}", "MiB of memory"),
    "output": ("{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}", "characters of text"),
}


@pytest.mark.parametrize(("bombs", "cpu_seconds"), [(TIME_BOMBS, 0.3), (SPACE_BOMBS, 5.0)])
async def test_bombs_are_refused_in_bounded_time_and_memory(
    bombs: dict[str, tuple[str, str]], cpu_seconds: float
) -> None:
    """Each breaks the limit that its error names, the service's own memory does not grow, and it serves on."""
    async with chat_tester(cpu_seconds=cpu_seconds) as tester:
        before = _resident_bytes()
        for name, (template, limit) in bombs.items():
            started = time.monotonic()
            with pytest.raises(ChatTemplateError, match=limit) as caught:
                await tester.render(template)
            assert (caught.value.code, caught.value.reason) == (Code.INVALID_ARGUMENT, "CHAT_TEMPLATE_LIMIT"), name
            assert time.monotonic() - started < 15, name
            assert await tester.render("{{ messages[0].content }}") == "hello", name
        assert _resident_bytes() - before < 64 << 20


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_event_loop_goes_on_while_a_bomb_burns() -> None:
    """Rendering takes another process's time: this one answers others meanwhile."""
    async with chat_tester(cpu_seconds=1.0) as tester:
        bomb = asyncio.create_task(tester.render(LOOP))
        longest = 0.0
        while not bomb.done():
            before = time.monotonic()
            await asyncio.sleep(0.005)
            longest = max(longest, time.monotonic() - before)
        assert isinstance(bomb.exception(), ChatTemplateError)
        assert longest < 0.5


def test_template_is_read_and_not_compiled_at_load() -> None:
    """A wrong template, of any length, costs nobody anything until it is used; tools may have one of their own."""
    keys = bpe_keys() | {TEMPLATE_KEY: "{% if %}" * 200_000, TOOL_USE_KEY: "tools"}
    template = ChatTemplate.from_gguf(reader(keys))
    assert template.source_for(has_tools=True, field="chat") == "tools"
    with pytest.raises(ChatTemplateError, match="1600000 bytes"):
        template.source_for(has_tools=False, field="chat")
    assert ChatTemplate.from_gguf(reader(bpe_keys())) == ChatTemplate(PLAIN_DIALOGUE, is_fallback=True)
    with pytest.raises(ModelFileError, match="chat_template"):
        ChatTemplate.from_gguf(reader(bpe_keys() | {TEMPLATE_KEY: 5}))
