"""How a GGUF vocabulary spells its tokens, and the bytes that a spelling stands for.

Source: llama.cpp, src/llama-vocab.cpp (as of llama-cpp-python 0.3.36), `llama_vocab::impl::token_to_piece`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from service_common.gguf_reader import GGUFReader
from service_common.special_tokens import MODEL_KEY, PRE_KEY
from service_common.token_table import TokenKind, TokenTable

SPACE = "\u2581"  # which SentencePiece writes for a space
SPECIAL_KINDS = frozenset((TokenKind.CONTROL, TokenKind.UNKNOWN))
# Spelled in the file as in text, and looked for in text before anything else.
VERBATIM_KINDS = SPECIAL_KINDS | {TokenKind.USER_DEFINED}

_ESCAPE = re.compile(rb"\\(?:x([0-9A-Fa-f]{2})|(.))", re.DOTALL)
_NAMED = {b"n": b"\n", b"t": b"\t", b"r": b"\r"}
# Rules of `tokenizer.ggml.pre` whose letters are characters instead of bytes.
_CHARACTER_RULES = frozenset(("gemma4", "granite-embed-multi-311m", "sarvam-moe"))


def _byte_letters() -> dict[str, int]:
    """The letter of every byte: itself where that is printable Latin-1, else the next from U+0100.

    Source: openai/gpt-2, src/encoder.py, bytes_to_unicode.
    """
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = (byte for byte in range(256) if byte not in printable)
    return {chr(byte): byte for byte in printable} | {chr(256 + n): byte for n, byte in enumerate(others)}


BYTE_OF_LETTER: Mapping[str, int] = _byte_letters()


def bytes_of_letters(text: str) -> bytes:
    """Of a byte-level vocabulary. A spelling that is not in letters of bytes, as those of tokens added after training
    are, stands for itself."""
    try:
        return bytes([BYTE_OF_LETTER[letter] for letter in text])
    except KeyError:
        return text.encode("utf-8")


def bytes_of_pieces(text: str) -> bytes:
    """Of a vocabulary spelled as SentencePiece does, with U+2581 for a space."""
    return text.replace(SPACE, " ").encode("utf-8")


def bytes_of_escapes(text: str) -> bytes:
    r"""Of RWKV's vocabulary, spelled as Python does: \n, \t, \r, \xff, and \ before ' and \."""
    return _ESCAPE.sub(_meaning, text.encode("utf-8"))


def token_bytes(table: TokenTable, token_id: int, text_bytes: Callable[[str], bytes]) -> bytes:
    """The bytes that a token stands for; a special one's are its spelling, an unused one's none.

    `text_bytes` gives those of a normal token's spelling.
    """
    kind, text = table.kinds[token_id], table.texts[token_id]
    if kind in VERBATIM_KINDS:
        return text.encode("utf-8")
    if kind is TokenKind.BYTE:
        return bytes([table.byte_value(token_id)])
    return b"" if kind is TokenKind.UNUSED else text_bytes(text)


def spelling_of(reader: GGUFReader) -> Callable[[str], bytes]:
    """What gives the bytes of a normal token's spelling in the file's vocabulary, by its kind and rule."""
    model = reader.get_str(MODEL_KEY)
    rule = reader.get_str(PRE_KEY, "") if model == "gpt2" else model
    if rule == "whitespace":
        return str.encode
    if model == "rwkv":
        return bytes_of_escapes
    return bytes_of_letters if model == "gpt2" and rule not in _CHARACTER_RULES else bytes_of_pieces


def _meaning(escape: re.Match[bytes]) -> bytes:
    code, character = escape.groups()
    return bytes([int(code, 16)]) if code else _NAMED.get(character, character)
