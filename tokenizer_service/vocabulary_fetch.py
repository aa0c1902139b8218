"""The model's vocabulary and chat template, fetched from the engine that serves it."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING

from clforge.v1.engine_pb2 import GetTokenizerRequest
from service_common.errors import UnavailableError
from service_common.gguf_reader import GGUFReader
from service_common.tokenizer_file import vocab_sha256
from tokenizer_service.chat_template import ChatTemplate
from tokenizer_service.encode_cache import EncodeCache
from tokenizer_service.sections import ReasoningMarks
from tokenizer_service.special_guard import SpecialGuard
from tokenizer_service.vocabulary import Vocabulary

if TYPE_CHECKING:
    from clforge.v1.engine_pb2_grpc import EngineServiceAsyncStub

MAX_TOKENIZER_BYTES = 256 << 20
FETCH_SECONDS = 60.0


@dataclass(frozen=True)
class EncodingVocabulary:
    """A vocabulary, what makes prompts of conversations for it, and the name under which submits carry it."""

    vocabulary: Vocabulary
    guard: SpecialGuard
    chat_template: ChatTemplate
    sha256: str

    @functools.cached_property
    def marks(self) -> ReasoningMarks:
        """What the model knows of marks around reasoning."""
        return ReasoningMarks.of(self.vocabulary, self.chat_template)


@dataclass(frozen=True)
class FetchOptions:
    """How vocabularies are read: `pre_tokenizer` overrides the rule that the file names, `cache` keeps encodings."""

    pre_tokenizer: str | None = None
    cache: EncodeCache | None = None


async def fetch_vocabulary(
    stub: EngineServiceAsyncStub, options: FetchOptions, known: EncodingVocabulary | None = None
) -> EncodingVocabulary:
    """The vocabulary that the engine has now, by GetTokenizer; `known`, as it is, where that is the one.

    UnavailableError when what arrives is not what was announced; ModelFileError when the vocabulary cannot be used.
    """
    data, announced = bytearray(), ""
    call = stub.GetTokenizer(GetTokenizerRequest(), timeout=FETCH_SECONDS)
    async for part in call:
        announced = part.vocab_sha256
        if known is not None and announced == known.sha256:
            call.cancel()
            return known
        if part.total_bytes > MAX_TOKENIZER_BYTES or len(data) + len(part.data) > part.total_bytes:
            raise _damaged(f"{part.total_bytes} bytes announced, at most {MAX_TOKENIZER_BYTES} are taken")
        data += part.data
    received = vocab_sha256(bytes(data))
    if received != announced:
        raise _damaged(f"sha256 {received[:12]} instead of {announced[:12] or 'any'}")
    return await asyncio.to_thread(_read_vocabulary, bytes(data), received, options)


def _read_vocabulary(data: bytes, sha256: str, options: FetchOptions) -> EncodingVocabulary:
    reader = GGUFReader.from_bytes(data, "the engine's tokenizer")
    vocabulary = Vocabulary.from_gguf(reader, pre_tokenizer=options.pre_tokenizer, cache=options.cache)
    guard = SpecialGuard(vocabulary.special_spellings(), vocabulary.user_defined_spellings())
    return EncodingVocabulary(vocabulary, guard, ChatTemplate.from_gguf(reader), sha256)


def _damaged(how: str) -> UnavailableError:
    return UnavailableError(
        f"the engine's vocabulary arrived damaged: {how}", reason="VOCABULARY_DAMAGED", retry_after_seconds=1.0
    )
