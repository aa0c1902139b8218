"""Renders chat templates in a process of its own: a template is a program of whoever made the model file.

`python -P -m tokenizer_service.template_process LIMITS` says `ready`, then answers each line of standard input with one
of standard output until there are no more; all are JSON. LIMITS is a RenderLimits, a request {"template", "variables",
"now"} with `now` in ISO 8601, an answer {"text"}, {"error"} or {"too_long": true}.

Jinja's sandbox keeps a template to the values that it is given, the kernel keeps it to the limits: SIGPROF ends the
process when its time is up, and where memory ends it exits with OUT_OF_MEMORY.

Templates see what they see in transformers: src/transformers/utils/chat_template_utils.py, _compile_jinja_template.
"""

from __future__ import annotations

import functools
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, BinaryIO, Never

from jinja2 import Template, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

from tokenizer_service.render_limits import OUT_OF_MEMORY, RenderLimits

_MAX_ERROR_CHARACTERS = 500
_MAX_OPEN_FILES = 16
_KEPT_TEMPLATES = 4


class _GenerationTag(Extension):
    """`{% generation %}…{% endgeneration %}` marks what the assistant said, for training; here it only passes on."""

    tags = {"generation"}  # noqa: RUF012  # as Extension declares it

    def parse(self, parser: Parser) -> nodes.Node:
        lineno = next(parser.stream).lineno
        return nodes.Scope(parser.parse_statements(("name:endgeneration",), drop_needle=True), lineno=lineno)


class _TooLongError(Exception):
    """The template has written more than it may."""


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without the HTML escapes of Jinja's own filter."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: str) -> Never:
    raise TemplateError(message)


def _make_environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, "jinja2.ext.loopcontrols"]
    )
    environment.filters["tojson"] = _tojson
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _render(template: Template, variables: dict[str, Any], now: datetime, max_characters: int) -> str:
    """What the template writes. UnicodeEncodeError for what is no text."""
    pieces, length = [], 0
    for piece in template.generate(variables, strftime_now=lambda format: now.strftime(format)):
        length += len(piece)
        if length > max_characters:
            raise _TooLongError
        piece.encode()
        pieces.append(piece)
    return "".join(pieces)


def _answer(line: bytes, compiled: Callable[[str], Template], limits: RenderLimits) -> dict[str, Any]:
    request = json.loads(line)
    try:
        template = compiled(request["template"])
        now = datetime.fromisoformat(request["now"])
        return {"text": _render(template, request["variables"], now, limits.output_characters)}
    except _TooLongError:
        return {"too_long": True}
    except MemoryError:
        raise
    except Exception as error:  # a template can raise whatever Python can
        return {"error": _described(error)}


def _described(error: Exception) -> str:
    message = " ".join(str(error)[: 4 * _MAX_ERROR_CHARACTERS].split())[:_MAX_ERROR_CHARACTERS]
    return message if isinstance(error, TemplateError) else f"{type(error).__name__}: {message}"


def _limit_resources(memory_bytes: int) -> None:
    """No more memory than asked for, no new processes, no writing to files, and no core dump of what users say."""
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_NOFILE, _MAX_OPEN_FILES),
    ):
        resource.setrlimit(kind, (limit, limit))
    if sys.platform == "linux":
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        address_space = pages * resource.getpagesize() + memory_bytes
        resource.setrlimit(resource.RLIMIT_AS, (address_space, address_space))


def main(limits: RenderLimits, requests: BinaryIO, answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    compiled = functools.lru_cache(_KEPT_TEMPLATES)(_make_environment().from_string)
    compiled("{{ '' }}").render()  # so that all code is loaded before memory is measured
    _limit_resources(limits.memory_bytes)
    _write(answers, b"ready")
    for line in requests:
        signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
        answer = _answer(line, compiled, limits)
        signal.setitimer(signal.ITIMER_PROF, 0)
        _write(answers, json.dumps(answer, ensure_ascii=False).encode())


def _write(answers: BinaryIO, line: bytes) -> None:
    answers.write(line + b"\n")
    answers.flush()


if __name__ == "__main__":
    try:
        main(RenderLimits(**json.loads(sys.argv[1])), sys.stdin.buffer, sys.stdout.buffer)
    except MemoryError:
        os._exit(OUT_OF_MEMORY)
    except BrokenPipeError:  # the service has ended, and nobody waits for the answer
        os._exit(0)
