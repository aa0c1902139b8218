"""`clforge generate`: one generation; its text to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.text import Text

from clforge.cli import exit_codes
from clforge.cli.server import Use
from clforge.client import Client
from clforge.events import Delta, Event, Finished, FinishReason, Section
from clforge.params import Params, Prompt


@dataclass(frozen=True)
class Generation:
    """What to generate and how to show it. `as_json` prints one event a line; `summary` tells of speed and end."""

    prompt: Prompt
    params: Params
    as_json: bool
    summary: bool


def generating(wanted: Generation) -> Use:
    """What generates on a server and shows it; its result is the exit code."""

    async def generate(client: Client) -> int:
        async with aclosing(client.generate(wanted.prompt, **wanted.params)) as events:
            end = await show(events, as_json=wanted.as_json)
        if wanted.summary:
            sys.stderr.write(summary(end) + "\n")
        return exit_code(end)

    return generate


def exit_code(end: Finished) -> int:
    """What the end of a choice means; says so where it came early."""
    if end.reason in (FinishReason.STOP, FinishReason.LENGTH):
        return exit_codes.OK
    sys.stderr.write(f"clforge: the request ended early: {end.reason}\n")
    return exit_codes.FAILED


async def show(events: AsyncIterator[Event], *, as_json: bool) -> Finished:
    """Prints the events of one choice as they come; returns its end."""
    end: Finished | None = None
    try:
        async for event in events:
            if as_json:
                write(json.dumps({"event": type(event).__name__.lower(), **asdict(event)}, ensure_ascii=False) + "\n")
            elif isinstance(event, Delta):
                _print_delta(event)
            if isinstance(event, Finished):
                end = event
    finally:
        if sys.stdout.isatty() and not as_json:
            write("\n")
    assert end is not None  # the client raises when a stream ends without it
    return end


def summary(end: Finished) -> str:
    """One line on how much was generated, how fast, and why it ended."""
    usage, timings = end.usage, end.timings
    parts = [f"{usage.generated_tokens} tokens"]
    if usage.generated_tokens > 1 and timings.decode_seconds > 0:
        parts.append(f"{(usage.generated_tokens - 1) / timings.decode_seconds:.1f} tokens/s")
    computed = usage.prompt_tokens - usage.cached_tokens
    parts.append(f"prompt {usage.prompt_tokens} tokens ({computed} computed) in {timings.prefill_seconds:.2f} s")
    matched = "" if end.matched_stop is None else f" ({end.matched_stop!r})"
    return "; ".join([*parts, f"ended by {end.reason}{matched}"])


def _print_delta(delta: Delta) -> None:
    """Reasoning and its marks go to standard error, dim on a terminal, all else to standard output."""
    if delta.section in (Section.REASONING, Section.MARK):
        Console(stderr=True, soft_wrap=True).print(Text(delta.text, "dim"), end="")
    else:
        write(delta.text)


def write(text: str) -> None:
    """Writes to standard output as UTF-8, whatever the locale says, and at once: tokens are to be seen as they come."""
    sys.stdout.buffer.write(text.encode())
    sys.stdout.buffer.flush()
