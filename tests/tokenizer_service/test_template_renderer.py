"""The process that renders: how it is started, replaced, shared and ended."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service_common.errors import ResourceExhaustedError, UnavailableError
from tests.tokenizer_service.chat_builder import CHATML, ChatTester, chat, chat_tester
from tests.tokenizer_service.test_chat_template import LOOP
from tokenizer_service.render_limits import RenderLimits
from tokenizer_service.template_renderer import MAX_WAITING, MAX_WAITING_CHARACTERS, RenderError, TemplateRenderer

REQUEST = TemplateRenderer.request("{{ x }}", {"x": "y"})


@pytest.fixture
async def renderer() -> AsyncIterator[TemplateRenderer]:
    """A renderer with a short time limit, which nobody has used."""
    made = TemplateRenderer(RenderLimits(cpu_seconds=0.3))
    yield made
    await made.close()


@pytest.fixture
async def tester() -> AsyncIterator[ChatTester]:
    """A tester with the limits of the service."""
    async with chat_tester() as made:
        yield made


def _runs(pid: int | None) -> bool:
    return pid is not None and Path(f"/proc/{pid}").exists()


async def test_nothing_is_started_before_it_is_needed(renderer: TemplateRenderer) -> None:
    """One process, from the first conversation on, for all of them."""
    assert renderer.pid is None
    assert renderer.text(await renderer.render(REQUEST)) == "y"
    pid = renderer.pid
    assert _runs(pid)
    await renderer.render(REQUEST)
    assert renderer.pid == pid


async def test_close_leaves_no_process(renderer: TemplateRenderer) -> None:
    """Not even one that is rendering."""
    await renderer.render(REQUEST)
    pid = renderer.pid
    bomb = asyncio.create_task(renderer.render(TemplateRenderer.request(LOOP, {})))
    await asyncio.sleep(0.05)
    await renderer.close()
    assert not _runs(pid)
    bomb.cancel()


async def test_killed_renderer_comes_back_unnoticed(renderer: TemplateRenderer) -> None:
    """Whoever asks next, or is just waiting for an answer, gets one from its successor."""
    await renderer.render(REQUEST)
    first = renderer.pid
    assert first is not None
    os.kill(first, signal.SIGKILL)
    assert renderer.text(await renderer.render(REQUEST)) == "y"
    second = renderer.pid
    assert second is not None
    assert second != first
    os.kill(second, signal.SIGSTOP)
    waiting = asyncio.create_task(renderer.render(REQUEST))
    await asyncio.sleep(0.05)
    os.kill(second, signal.SIGKILL)
    assert renderer.text(await waiting) == "y"
    assert not _runs(first)
    assert not _runs(second)


async def test_template_that_kills_its_renderer_is_refused(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A conversation of which two processes died does not get a third; the error names how they died."""
    program = "import os, signal; print('ready', flush=True); input(); os.kill(os.getpid(), signal.SIGSEGV)"
    (tmp_path / "fragile.py").write_text(program)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr("tokenizer_service.template_renderer._MODULE", "fragile")
    with pytest.raises(RenderError, match="SIGSEGV") as caught:
        await renderer.render(REQUEST)
    assert not caught.value.broke_limit
    assert renderer.pid is None


async def test_renderer_that_hangs_is_given_up(renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that uses no time, since it was stopped, is killed after a while by the clock."""
    await renderer.render(REQUEST)
    pid = renderer.pid
    assert pid is not None
    monkeypatch.setattr("tokenizer_service.template_renderer._STUCK_SECONDS", 0.1)
    os.kill(pid, signal.SIGSTOP)
    with pytest.raises(RenderError, match=r"0\.1 s") as caught:
        await renderer.render(REQUEST)
    assert caught.value.broke_limit
    assert not _runs(pid)
    monkeypatch.undo()
    assert renderer.text(await renderer.render(REQUEST)) == "y"


async def test_renderer_that_cannot_start_is_unavailable(
    renderer: TemplateRenderer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may come back; so may the renderer."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", "/nonexistent/python")
        with pytest.raises(UnavailableError, match="does not start") as caught:
            await renderer.render(REQUEST)
        assert caught.value.retry_after_seconds
        patch.setattr(sys, "executable", "/bin/true")
        with pytest.raises(UnavailableError, match="does not start"):
            await renderer.render(REQUEST)
    assert renderer.text(await renderer.render(REQUEST)) == "y"


async def test_who_leaves_is_not_waited_for(renderer: TemplateRenderer) -> None:
    """A cancelled conversation that waits is never rendered, and one that is being rendered disturbs no other."""
    await renderer.render(REQUEST)
    bombs = [asyncio.create_task(renderer.render(TemplateRenderer.request(LOOP, {}))) for _ in range(20)]
    await asyncio.sleep(0.02)
    for bomb in bombs:
        bomb.cancel()
    started = time.monotonic()
    assert renderer.text(await renderer.render(REQUEST)) == "y"
    assert time.monotonic() - started < 5
    assert all(isinstance(r, asyncio.CancelledError) for r in await asyncio.gather(*bombs, return_exceptions=True))


async def test_too_many_at_once_are_told_to_come_back(renderer: TemplateRenderer) -> None:
    """Beyond MAX_WAITING conversations the next is RESOURCE_EXHAUSTED, with a time to come back at."""
    waiting = [asyncio.create_task(renderer.render(REQUEST)) for _ in range(1 + MAX_WAITING)]
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match=str(MAX_WAITING)) as caught:
        await renderer.render(REQUEST)
    assert caught.value.retry_after_seconds == 1.0
    for task in waiting:
        task.cancel()


async def test_too_much_text_at_once_is_told_to_come_back(renderer: TemplateRenderer) -> None:
    """What waits is bounded in characters, too; who gives up takes the text out of the line."""
    large = REQUEST + b" " * (MAX_WAITING_CHARACTERS // 2)
    first = asyncio.create_task(renderer.render(REQUEST))
    waiting = asyncio.create_task(renderer.render(large))
    await asyncio.sleep(0)
    with pytest.raises(ResourceExhaustedError, match=f"limit, which is {MAX_WAITING_CHARACTERS}") as caught:
        await renderer.render(large)
    assert (caught.value.reason, caught.value.retry_after_seconds) == ("TOO_MUCH_TEXT", 1.0)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    again = asyncio.create_task(renderer.render(large))
    await asyncio.sleep(0)
    assert not again.done()
    again.cancel()
    await first


async def test_fifty_conversations_at_once_keep_their_own(tester: ChatTester) -> None:
    """Each gets its own text, whatever the others' templates do."""

    async def one(index: int) -> str:
        if index % 10 == 9:
            with pytest.raises(Exception, match=f"no {index}"):
                await tester.render("{{ raise_exception('no ' ~ messages[0].content) }}", chat(str(index)))
            return ""
        return await tester.render(CHATML, chat(f"I am {index}"))

    for index, text in enumerate(await asyncio.gather(*map(one, range(50)))):
        assert (f"I am {index}<|im_end|>" in text) == (index % 10 != 9)


async def test_rendering_takes_milliseconds(tester: ChatTester) -> None:
    """A conversation of ten turns costs a few milliseconds once the process is there, encoding included."""
    conversation = chat(*["What is the weather like, and why is it so?"] * 10)
    await tester.encode(conversation)
    started = time.monotonic()
    for _ in range(20):
        await tester.encode(conversation)
    assert (time.monotonic() - started) / 20 < 0.05


async def test_renderer_ends_with_the_end_of_its_input() -> None:
    """When its service is killed, nothing tells it to end but the closed pipe."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "tokenizer_service.template_process", json.dumps({})),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    assert await process.stdout.readline() == b"ready\n"
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), 5) == 0
