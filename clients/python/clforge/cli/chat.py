"""`clforge chat`: a conversation with a model; answers to standard output, everything else to standard error."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine
from contextlib import aclosing
from typing import Any, TypeVar

from clforge.cli import exit_codes
from clforge.cli.conversation import COMMANDS, CommandError, Conversation, Outcome
from clforge.cli.generate import exit_code, show, write
from clforge.cli.turns import piped_turns, terminal, typed_turns
from clforge.client import Client
from clforge.errors import ClforgeError
from clforge.events import ChatTemplateOrigin, Delta, Event, FinishReason, Section
from service_common.terminal import printable

_T = TypeVar("_T")


async def chat(client: Client, conversation: Conversation, *, as_json: bool) -> int:
    """Talks until the user leaves; returns the exit code.

    On a terminal Ctrl-C ends an answer alone, and what fails is told of; on a pipe either ends the chat, and a line
    that is a wrong command is a ConfigError.
    """
    interactive = terminal()
    if interactive:
        _tell(await _greeting(client))
    async with aclosing(typed_turns(COMMANDS) if interactive else piped_turns()) as turns:
        async for turn in turns:
            outcome = _follow(conversation, turn, interactive=interactive)
            if outcome.leave:
                break
            if outcome.ask:
                code = await _answer(client, conversation, as_json=as_json, interactive=interactive)
                if code != exit_codes.OK and not interactive:
                    return code
    return exit_codes.OK


async def _greeting(client: Client) -> str:
    model = await client.model_info()
    fallback = model.chat_template_origin is ChatTemplateOrigin.FALLBACK
    template = "\nIt has no chat template: turns are put to it as plain dialogue." if fallback else ""
    return f"{printable(model.name)} listens. /help lists commands, Ctrl-D leaves.{template}"


def _follow(conversation: Conversation, turn: str, *, interactive: bool) -> Outcome:
    """Takes in what the user says; what it says of itself is told."""
    if not turn.strip():
        return Outcome()
    if not turn.startswith("/"):
        conversation.ask(turn)
        return Outcome(ask=True)
    try:
        outcome = conversation.command(turn)
    except CommandError as error:
        if not interactive:
            raise
        outcome = Outcome(f"clforge: {error}")
    if outcome.tell:
        _tell("\n".join(map(printable, outcome.tell.splitlines())))
    return outcome


async def _answer(client: Client, conversation: Conversation, *, as_json: bool, interactive: bool) -> int:
    """Has the last turn answered, shows and keeps the answer, as far as it came; returns what its end means."""
    sections: dict[Section, str] = {}
    try:
        async with aclosing(client.generate(conversation.prompt(), **conversation.params)) as events:
            showing = show(_kept(events, sections), as_json=as_json)
            end = await (_until_interrupted(showing) if interactive else showing)
    except ClforgeError as error:
        return exit_codes.report(error)
    finally:
        conversation.answer(sections.get(Section.ANSWER, ""), sections.get(Section.REASONING, ""))
    if not interactive and not as_json:
        write("\n")
    if end is None:
        _tell("cancelled; /regenerate asks again")
        return exit_codes.OK
    if interactive and end.reason is FinishReason.LENGTH:
        _tell("the answer was cut off: --max-tokens, or the end of the context; /reset makes room")
    return exit_code(end)


async def _kept(events: AsyncIterator[Event], sections: dict[Section, str]) -> AsyncGenerator[Event, None]:
    """The events, whose text is added to `sections`."""
    async for event in events:
        if isinstance(event, Delta):
            section = event.section or Section.ANSWER
            sections[section] = sections.get(section, "") + event.text
        yield event


async def _until_interrupted(showing: Coroutine[Any, Any, _T]) -> _T | None:
    """The result, or None when Ctrl-C came first; meanwhile that interrupts nothing else."""
    task, event_loop = asyncio.ensure_future(showing), asyncio.get_running_loop()
    handler = signal.getsignal(signal.SIGINT)
    event_loop.add_signal_handler(signal.SIGINT, task.cancel)
    try:
        return await task
    except asyncio.CancelledError:
        this = asyncio.current_task()
        if this is None or this.cancelling():  # more is to end than the answer
            raise
        return None
    finally:
        event_loop.remove_signal_handler(signal.SIGINT)
        signal.signal(signal.SIGINT, handler)


def _tell(text: str) -> None:
    sys.stderr.write(f"{text}\n")
