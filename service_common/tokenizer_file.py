"""A model's tokenizer as a file of its own: the GGUF that the engine sends and the tokenizer service reads."""

from __future__ import annotations

import hashlib
import struct

from service_common.gguf_format import MAGIC
from service_common.gguf_reader import GGUFReader

_VERSION = 3
_PREFIXES = ("general.", "tokenizer.")


def tokenizer_file(reader: GGUFReader) -> bytes:
    """A GGUF file (version 3) without tensors, of the `general.*` and `tokenizer.*` keys that `reader` has.

    The key-values are the file's own bytes in the file's own order, so the same file always gives the same result,
    and every value is read from it as it is read from the file. Raises ModelFileError if the file shrank.
    """
    keys = [key for key in reader.key_values if key.startswith(_PREFIXES)]
    header = struct.pack("<4sIQQ", MAGIC, _VERSION, 0, len(keys))
    return b"".join([header, *map(reader.key_value_bytes, keys)])


def vocab_sha256(data: bytes) -> str:
    """The name under which both services know a tokenizer file: SHA-256 of its bytes, in lower-case hexadecimal."""
    return hashlib.sha256(data).hexdigest()
