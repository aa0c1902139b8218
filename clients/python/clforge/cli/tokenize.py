"""`clforge encode` and `clforge decode`: standard input to token ids and back, by a file's vocabulary or a server's.

Text is taken and given exactly: nothing is stripped from it and nothing added, not even a final newline.
"""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any, Protocol

from clforge.cli import exit_codes
from clforge.cli.connection import Connection
from clforge.errors import ClforgeError
from clforge.tokens import Decoding, Encoding, Offsets
from service_common.errors import ConfigError, InvalidArgumentError, RequestError
from service_common.gguf_reader import GGUFReader
from tokenizer_service.vocabulary import Vocabulary

MAX_TOKEN_ID = (1 << 32) - 1  # what the wire carries; a vocabulary's own limit is far lower

_SHOWN_CHARACTERS = 40
_EXAMPLE = 'write [1, 2] or {"ids": [1, 2]}'
_SEPARATORS = re.compile(r"[\s,]+")


class _Tokenizer(Protocol):
    """What a file's vocabulary and a server have in common; see Client."""

    async def encode_batch(
        self, texts: Sequence[str], *, add_special: bool, parse_special: bool, with_offsets: bool
    ) -> Sequence[Encoding]: ...

    async def decode_batch(
        self, sequences: Sequence[Sequence[int]], *, skip_special: bool, with_offsets: bool
    ) -> Sequence[Decoding]: ...


Answer = Callable[[_Tokenizer], Coroutine[Any, Any, str]]


def encode(*, add_special: bool, parse_special: bool, as_json: bool, with_offsets: bool) -> Answer:
    """Reads a text; the answer is its ids, as they are to be printed. ConfigError for input that is not UTF-8, and for
    offsets without JSON."""
    _check_offsets(with_offsets, as_json)
    text = _read_input()

    async def answer(tokenizer: _Tokenizer) -> str:
        (encoding,) = await tokenizer.encode_batch(
            [text], add_special=add_special, parse_special=parse_special, with_offsets=with_offsets
        )
        ids = encoding.token_ids
        return (_json("ids", ids, encoding.offsets) if as_json else " ".join(map(str, ids))) + "\n"

    return answer


def decode(*, skip_special: bool, as_json: bool, with_offsets: bool) -> Answer:
    """Reads ids; the answer is their text, as it is to be printed. ConfigError for input that is no list of ids, and
    for offsets without JSON."""
    _check_offsets(with_offsets, as_json)
    token_ids = parse_ids(_read_input())

    async def answer(tokenizer: _Tokenizer) -> str:
        (decoding,) = await tokenizer.decode_batch([token_ids], skip_special=skip_special, with_offsets=with_offsets)
        return _json("text", decoding.text, decoding.offsets) + "\n" if as_json else decoding.text

    return answer


def printer(vocab: Path | None, connection: Connection, pre_tokenizer: str | None = None) -> Callable[[Answer], int]:
    """What prints an answer of the GGUF file `vocab`, or of the server of `connection`, and returns the exit code.

    ConfigError unless exactly one has been named, and for a rule `pre_tokenizer` that cannot be used; ModelFileError
    for a file that cannot be.
    """
    if vocab is not None and not connection.options:
        with GGUFReader(vocab) as reader:
            tokenizer = _FileTokenizer(Vocabulary.from_gguf(reader, pre_tokenizer=pre_tokenizer))
        return lambda answer: _print(answer(tokenizer))
    if connection.target is None or vocab is not None:
        raise ConfigError("give either --vocab FILE, the vocabulary of a GGUF file, or --target ADDRESS, a server's")
    if pre_tokenizer is not None:
        raise ConfigError("--pre-tokenizer needs --vocab: a server is told by its own --pre-tokenizer")
    return lambda answer: _print(_ask(connection, answer))


def parse_ids(text: str) -> list[int]:
    """The ids of `1 2 3`, of `1, 2, 3`, of a JSON list, or of what `encode --json` prints. ConfigError for others."""
    if not text.lstrip().startswith(("[", "{")):
        return [_id(word) for word in _SEPARATORS.split(text) if word]
    try:
        parsed = json.loads(text)
        ids = parsed["ids"] if isinstance(parsed, dict) else parsed
    except (ValueError, KeyError, RecursionError) as error:
        raise ConfigError(f"standard input is no JSON of token ids ({error}); {_EXAMPLE}") from None
    if not isinstance(ids, list):
        raise ConfigError(f"standard input holds no list of token ids; {_EXAMPLE}")
    return [_id(json.dumps(element)) for element in ids]


class _FileTokenizer:
    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary

    async def encode_batch(
        self, texts: Sequence[str], *, add_special: bool, parse_special: bool, with_offsets: bool
    ) -> Sequence[Encoding]:
        def encoding(text: str) -> Encoding:
            if not with_offsets:
                ids = self._vocabulary.encode(text, add_special=add_special, parse_special=parse_special)
                return Encoding(tuple(ids))
            found = self._vocabulary.encode_with_offsets(text, add_special=add_special, parse_special=parse_special)
            return Encoding(tuple(found.ids), tuple(found.ranges))

        return list(map(encoding, texts))

    async def decode_batch(
        self, sequences: Sequence[Sequence[int]], *, skip_special: bool, with_offsets: bool
    ) -> Sequence[Decoding]:
        def decoding(ids: Sequence[int]) -> Decoding:
            if not with_offsets:
                return Decoding(self._vocabulary.decode(ids, skip_special=skip_special))
            found = self._vocabulary.decode_with_offsets(ids, skip_special=skip_special)
            return Decoding(found.text, tuple(found.ranges))

        return list(map(decoding, sequences))


async def _ask(connection: Connection, answer: Answer) -> str:
    async with connection.client() as client:
        return await answer(client)


def _check_offsets(wanted: bool, as_json: bool) -> None:
    if wanted and not as_json:
        raise ConfigError("--offsets needs --json, which has a place for them")


def _json(name: str, value: Any, offsets: Offsets | None) -> str:
    shown = {name: value} if offsets is None else {name: value, "offsets": offsets}
    return json.dumps(shown, ensure_ascii=False)


def _id(word: str) -> int:
    if word.isascii() and word.isdecimal() and len(word) <= len(str(MAX_TOKEN_ID)) and int(word) <= MAX_TOKEN_ID:
        return int(word)
    shown = word if len(word) <= _SHOWN_CHARACTERS else f"{word[:_SHOWN_CHARACTERS]}…"
    raise ConfigError(f"standard input: {shown!r} is no token id; ids are numbers from 0 to {MAX_TOKEN_ID}")


def _read_input() -> str:
    try:
        return sys.stdin.buffer.read().decode()
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ConfigError(
            f"standard input is not UTF-8: byte {byte:#04x} at {error.start}; iconv converts it"
        ) from None


def _print(answer: Coroutine[Any, Any, str]) -> int:
    try:
        text = asyncio.run(answer)
    except (ClforgeError, RequestError) as error:
        code = exit_codes.report(error)
        is_input = isinstance(error, InvalidArgumentError) or getattr(error, "code", None) == "INVALID_ARGUMENT"
        return exit_codes.USAGE if is_input else code
    # sys.stdout may be unbuffered (PYTHONUNBUFFERED): it then writes what the pipe takes, and leaves the rest unsaid.
    with open(sys.stdout.fileno(), "wb", closefd=False) as output:
        output.write(text.encode())
    return exit_codes.OK
