"""Hostile chat templates, end to end: a model file whose template escapes or explodes costs only who asks for it."""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

import pytest

from clforge.v1 import tokenizer_pb2 as pb
from service_common.errors import Code
from tests.tokenizer_service.chat_builder import chat
from tests.tokenizer_service.fake_engine import tokenizer_gguf
from tests.tokenizer_service.tokenizer_world import TEXT, World, plain, rpc_failure, world

ESCAPES = [
    "{{ ''.__class__.__mro__[1].__subclasses__() | length }}",
    "{% for c in [].__class__.__base__.__subclasses__() %}{{ c.__name__ }}{% endfor %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__['os'].system('id') }}",
    "{{ raise_exception.__globals__['sys'].modules }}",
    "{{ '{0.__class__.__init__.__globals__}'.format(messages[0].items) }}",
    "{% set x = messages.append({'role': 'system', 'content': 'evil'}) %}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}{{ os.environ }}",
    "{{ (messages[0].content | attr('format')) | attr('__self__') | attr('__class__') }}",
]
BOMBS = {
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}": "processor time",
    "{{ 9 ** (9 ** 9) }}": "processor time",  # while it is compiled
    "{{ 'a' * 10 ** 10 }}": "MiB of memory",
    "{% set n = namespace(x='grows') %}{% for i in range(99) %}{% set n.x = n.x ~ n.x %}{% endfor %}": "MiB of memory",
    "{{ '%999999999d' % 1 }}": "MiB of memory",
    "{% for i in range(99999) %}{{ 'a' * 1000 }}{% endfor %}": "characters of text",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}": "RecursionError",
    "{{ " + "[" * 30_000 + "]" * 30_000 + " }}": "RecursionError",
    "{{ range(10 ** 9) | list }}": "Range too big",
}


async def load_template(service: World, template: str) -> None:
    """Has the service meet an engine whose model has this template."""
    service.engine.serve_vocabulary(tokenizer_gguf(chat_template=template))
    assert (await service.stub.Complete(plain())).choices[0].text == TEXT


@pytest.mark.parametrize("template", ESCAPES)
async def test_escapes_reach_nothing(tmp_path: Path, template: str) -> None:
    """Refused, or rendered without a trace of the interpreter; the conversation after it is rendered as ever."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template=template + "{{ messages[0].content }}")) as service:
        call = service.stub.RenderChat(pb.RenderChatRequest(chat=chat("hello")))
        try:
            text = (await call).text
        except Exception:
            error = await rpc_failure(service.stub.RenderChat(pb.RenderChatRequest(chat=chat("hello"))))
            assert (error.code, error.reason, error.field) == (Code.INVALID_ARGUMENT, "CHAT_TEMPLATE", "chat")
        else:
            assert text == "hello"
        await load_template(service, "{{ messages[0].content }}")
        assert (await service.stub.RenderChat(pb.RenderChatRequest(chat=chat("hello")))).text == "hello"


async def test_bombs_cost_only_who_lights_them(tmp_path: Path) -> None:
    """Each is refused with the limit that it broke, in bounded time; text is served meanwhile, and the service's own
    memory does not grow."""
    async with world(tmp_path, data=tokenizer_gguf(chat_template="{{ messages[0].content }}")) as service:
        before = _resident_bytes()
        for template, limit in BOMBS.items():
            await load_template(service, template)
            started = time.monotonic()
            bomb = asyncio.create_task(rpc_failure(service.stub.RenderChat(pb.RenderChatRequest(chat=chat("hello")))))
            served = await asyncio.wait_for(service.stub.Complete(plain()), 5)
            assert served.choices[0].text == TEXT
            error = await bomb
            assert error.code is Code.INVALID_ARGUMENT
            assert limit in str(error), template[:50]
            assert time.monotonic() - started < 15
        assert _resident_bytes() - before < 64 << 20
        await load_template(service, "{{ messages[0].content }}")
        assert (await service.stub.RenderChat(pb.RenderChatRequest(chat=chat("hello")))).text == "hello"


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
