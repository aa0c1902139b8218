"""Tries grammars in processes of their own: a grammar is a program of whoever sent it, and its compiler is no sandbox.

`python -P -m engine_service.constraints.trial_process LIMITS` reads a vocabulary from the first line of its standard
input, says `ready`, then answers each further line with one of standard output until there are no more; all are JSON.
LIMITS is a TrialLimits, a request {"kind", "text"}, an answer {"lark"}, {"error"} or {"signal": number}.

Each trial is a fork: SIGPROF ends it when its time is up, its memory and stack are the kernel's to limit, and what ends
it ends nobody else's. What passes compiles in the engine as well, where there is more of each.
"""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, BinaryIO

from llguidance import LLTokenizer

from engine_service.constraints.lark import lark_of
from engine_service.constraints.limits import TrialLimits
from engine_service.constraints.spec import ConstraintSpec, Kind
from engine_service.constraints.token_bytes import TokenBytes
from engine_service.constraints.tokenizer import make_matcher, make_tokenizer

_NUM_FIRST_TOKENS = 8
_STUCK_SECONDS = 20  # of the clock
_MAX_ERROR_CHARACTERS = 500
_CHUNK_BYTES = 1 << 16
_EXCERPT = re.compile(r"\n\s*\d+ \| ")


def encoded(tokens: TokenBytes) -> bytes:
    """A vocabulary as the process reads it."""
    texts = [text.decode("latin-1") for text in tokens.texts]
    return json.dumps([texts, tokens.special_ids, tokens.eog_ids]).encode() + b"\n"


def _decoded(line: bytes) -> TokenBytes:
    texts, special_ids, eog_ids = json.loads(line)
    return TokenBytes([text.encode("latin-1") for text in texts], special_ids, eog_ids)


def _answer(line: bytes, tokenizer: LLTokenizer, limits: TrialLimits) -> dict[str, Any]:
    request = json.loads(line)
    try:
        lark = lark_of(ConstraintSpec(Kind(request["kind"]), request["text"]))
    except RecursionError:
        return {"error": "it is nested too deeply"}
    except Exception as error:  # the converter of GBNF raises bare ones
        return {"error": _shortened(str(error))}
    if len(lark) > limits.lark_characters:
        return {"error": f"it stands for more than {limits.lark_characters} characters of Lark"}
    refusal = _error_of(lark, tokenizer)
    return {"error": _shortened(refusal)} if refusal else {"lark": lark}


def _error_of(lark: str, tokenizer: LLTokenizer) -> str:
    """Why the grammar cannot be used; "" for one that compiles and gives a few tokens, or comes to its end."""
    matcher = make_matcher(tokenizer, lark)
    drawn = random.Random(0)
    for _ in range(_NUM_FIRST_TOKENS):
        if matcher.is_error() or matcher.is_stopped():
            break
        mask = matcher.compute_bitmask()
        words = [index for index, byte in enumerate(mask) if byte]
        if matcher.is_error() or not words:
            break
        index = drawn.choice(words)
        bits = [bit for bit in range(8) if mask[index] >> bit & 1]
        matcher.consume_token(8 * index + drawn.choice(bits))
    return _explained(matcher.get_error()) if matcher.is_error() else ""


def _explained(message: str) -> str:
    """What the library says, without the excerpt from the grammar that it shows, which is not quite the user's."""
    if message.startswith("NoExtension"):
        return "no output matches it"
    said = _EXCERPT.split(message.removesuffix("<non-verbose/>"), maxsplit=1)[0]
    return said.rpartition("\nerror: ")[2]


def _shortened(message: str) -> str:
    return " ".join(message[: 4 * _MAX_ERROR_CHARACTERS].split())[:_MAX_ERROR_CHARACTERS] or "it is malformed"


def _limit_resources(limits: TrialLimits) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0]) if sys.platform == "linux" else 0
    for kind, limit in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_STACK, limits.stack_bytes),
        *([(resource.RLIMIT_AS, pages * resource.getpagesize() + limits.memory_bytes)] if pages else []),
    ):
        resource.setrlimit(kind, (limit, limit))
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, limits.cpu_seconds)
    signal.alarm(_STUCK_SECONDS)


def _tried(line: bytes, tokenizer: LLTokenizer, limits: TrialLimits) -> bytes:
    """The answer to a request, from a fork."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # where the library says that it panics
            _limit_resources(limits)
            _write(writing, json.dumps(_answer(line, tokenizer, limits)).encode())
        finally:
            os._exit(0)
    os.close(writing)
    answer = b"".join(iter(lambda: os.read(reading, _CHUNK_BYTES), b""))
    os.close(reading)
    status = os.waitpid(pid, 0)[1]
    if os.WIFSIGNALED(status) or not answer:
        return json.dumps({"signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else signal.SIGKILL}).encode()
    return answer


def _write(descriptor: int, data: bytes) -> None:
    while data:
        data = data[os.write(descriptor, data) :]


def _say(answers: BinaryIO, line: bytes) -> None:
    answers.write(line + b"\n")
    answers.flush()


def main(limits: TrialLimits, requests: Iterable[bytes], answers: BinaryIO) -> None:
    """Answers requests until there are no more."""
    lines = iter(requests)
    tokenizer = make_tokenizer(_decoded(next(lines)))
    make_matcher(tokenizer, "start: /[a-z]+/").compute_bitmask()  # so that all code is loaded before memory is measured
    _say(answers, b"ready")
    for line in lines:
        _say(answers, _tried(line, tokenizer, limits))


if __name__ == "__main__":
    try:
        main(TrialLimits(**json.loads(sys.argv[1])), sys.stdin.buffer, sys.stdout.buffer)
    except (BrokenPipeError, StopIteration):  # the service has ended, and nobody waits for the answer
        os._exit(0)
