"""What the user of `clforge chat` says, turn by turn: typed on a terminal, or a line each from a pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import threading
from collections.abc import AsyncGenerator, Iterable

from prompt_toolkit import PromptSession
from prompt_toolkit.completion import WordCompleter
from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent
from prompt_toolkit.shortcuts import CompleteStyle

from service_common.errors import ConfigError

_MAX_LINE_BYTES = 16 << 20  # no longer one could be sent
_CHUNK_BYTES = 1 << 16


def terminal() -> bool:
    """Whether a person sits at both ends."""
    return sys.stdin.isatty() and sys.stdout.isatty()


async def typed_turns(commands: Iterable[str]) -> AsyncGenerator[str, None]:
    """What is typed, until Ctrl-D. Ctrl-C empties the line; `commands` are completed."""
    session: PromptSession[str] = PromptSession(
        "> ",
        completer=WordCompleter(list(commands), sentence=True),
        complete_style=CompleteStyle.READLINE_LIKE,  # any other keeps lines free for a menu
        complete_while_typing=False,
        key_bindings=_keys(),
        multiline=True,
        prompt_continuation="  ",
    )
    while True:
        try:
            yield await session.prompt_async()
        except KeyboardInterrupt:
            continue
        except EOFError:
            return


def _keys() -> KeyBindings:
    """Enter sends, though a turn may have many lines; Alt-Enter begins another one."""
    keys = KeyBindings()

    @keys.add("enter")
    def _send(event: KeyPressEvent) -> None:
        event.current_buffer.validate_and_handle()

    @keys.add("escape", "enter")
    def _begin_line(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return keys


async def piped_turns() -> AsyncGenerator[str, None]:
    """The lines of standard input. ConfigError for one that is no UTF-8, or too long to be sent."""
    lines, event_loop = asyncio.StreamReader(_MAX_LINE_BYTES), asyncio.get_running_loop()

    def read() -> None:
        # Not by sys.stdin, whose lock this thread would hold when the process ends.
        with contextlib.suppress(RuntimeError):  # the event loop has ended
            while chunk := os.read(sys.stdin.fileno(), _CHUNK_BYTES):
                event_loop.call_soon_threadsafe(lines.feed_data, chunk)
            event_loop.call_soon_threadsafe(lines.feed_eof)

    threading.Thread(target=read, daemon=True).start()
    try:
        async for line in lines:
            yield line.decode().removesuffix("\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"standard input is not UTF-8 at byte {error.start} of a line") from error
    except ValueError as error:
        raise ConfigError(f"standard input has a line of more than {_MAX_LINE_BYTES} bytes") from error
