"""Drafts: tokens that are guessed, to be verified in one step. Wrong ones cost time and never change the output.

A draft token is accepted where it is the one that is sampled at its position, with the counter of that position and
after the same tokens: so the output is that of plain decoding, bit for bit, whatever the guesses are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from engine_service.scheduling.draft_length import DraftLength
from engine_service.scheduling.ngram_index import NgramIndex
from engine_service.scheduling.sequence import Sequence

_MAX_INDEXED_TOKENS = 4096  # a step: about a millisecond. Longer prompts are drafted from a few steps later


class DraftSource(Protocol):
    """Guesses for one sequence."""

    def draft(self, sequence: Sequence, max_tokens: int) -> tuple[int, ...]:
        """At most `max_tokens` ids, at least 1, that may follow the sequence's known tokens."""


class PromptLookup:
    """Guesses that what followed the last tokens before, in prompt or output, follows them again.

    Source: A. Saxena, "Prompt Lookup Decoding" (2023).
    """

    def __init__(self, sequence: Sequence) -> None:
        self._index = NgramIndex(sequence.request.speculation.ngram_size)

    def draft(self, sequence: Sequence, max_tokens: int) -> tuple[int, ...]:
        """As DraftSource has it; always of the same sequence, whose known tokens only grow."""
        index, num_tokens = self._index, sequence.num_tokens
        stop = min(num_tokens, len(index) + _MAX_INDEXED_TOKENS)
        index.extend(sequence.token_ids(len(index), stop))
        return index.continuation(max_tokens) if stop == num_tokens else ()


class _Drafting(NamedTuple):
    source: DraftSource
    length: DraftLength


class Drafter:
    """Owns what is known for the drafts of each sequence, from its first draft to its end."""

    def __init__(self, make_source: Callable[[Sequence], DraftSource] = PromptLookup) -> None:
        self._drafting: dict[Sequence, _Drafting] = {}
        self._make_source = make_source

    def __len__(self) -> int:
        return len(self._drafting)

    def draft(self, sequence: Sequence, max_tokens: int, num_decodes: int) -> tuple[int, ...]:
        """At most `max_tokens` guesses for a step in which `num_decodes` sequences decode."""
        drafting = self._drafting.get(sequence)
        if drafting is None:
            drafting = _Drafting(self._make_source(sequence), DraftLength(sequence.max_draft_tokens))
            self._drafting[sequence] = drafting
        num_tokens = min(max_tokens, drafting.length.limit(num_decodes))
        return drafting.source.draft(sequence, num_tokens) if num_tokens > 0 else ()

    def observe(self, sequence: Sequence, num_drafted: int, num_accepted: int) -> None:
        """A draft has been verified."""
        if drafting := self._drafting.get(sequence):
            drafting.length.observe(num_drafted, num_accepted)

    def forget(self, sequence: Sequence) -> None:
        """The sequence has ended."""
        self._drafting.pop(sequence, None)
