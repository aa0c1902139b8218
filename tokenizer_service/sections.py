"""Tells a model's reasoning apart from its answer: both come as one text, with marks around the reasoning."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Self

from clforge.v1.generation_pb2 import SECTION_ANSWER, SECTION_MARK, SECTION_REASONING, Section
from tokenizer_service.chat_template import ChatTemplate
from tokenizer_service.vocabulary import Vocabulary

START_MARK, END_MARK = "<think>", "</think>"

_MARKS = {SECTION_REASONING: START_MARK, SECTION_ANSWER: END_MARK}  # by the section that follows them
_OTHER = {SECTION_REASONING: SECTION_ANSWER, SECTION_ANSWER: SECTION_REASONING}
_PROMPT_END_TOKENS = 32  # what a mark and white space take, be each byte of them a token


class Run(NamedTuple):
    """A part of a text that is all of one section."""

    section: Section.ValueType
    text: str


@dataclass(frozen=True)
class ReasoningMarks:
    """What a model knows of marks around reasoning.

    `tokens` tells for each mark that is a token of the vocabulary which section follows it. `known`: the vocabulary has
    both, or the chat template speaks of them.
    """

    tokens: Mapping[int, Section.ValueType] = field(default_factory=dict)
    known: bool = False

    @classmethod
    def of(cls, vocabulary: Vocabulary, template: ChatTemplate) -> Self:
        """Those of a model with this vocabulary and template."""
        ids = {vocabulary.token_id(mark): section for section, mark in _MARKS.items()}
        tokens = {token_id: section for token_id, section in ids.items() if token_id is not None}
        return cls(tokens, known=len(tokens) == len(_MARKS) or END_MARK in template.source)


def ends_within_reasoning(token_ids: Sequence[int], vocabulary: Vocabulary) -> bool:
    """Whether a prompt ends with the mark that begins reasoning, but for white space: the output goes on there."""
    text = b"".join(vocabulary.token_bytes(token_id) for token_id in token_ids[-_PROMPT_END_TOKENS:])
    return text.decode("utf-8", "replace").rstrip().endswith(START_MARK)


class _TokenMark(NamedTuple):
    """A mark that came as a token: characters `start` to `end` of the text, none for a control token."""

    start: int
    end: int
    begins: Section.ValueType


class Sections:
    """Cuts one choice's text into runs; Section in the protocol tells which marks count.

    Law: the runs' texts, concatenated, are the text that was pushed, and depend on neither how it was cut nor when it
    came. Only the longest end of it that may still become a mark is held back, and nothing after `flush`.
    """

    def __init__(self, marks: ReasoningMarks, *, within_reasoning: bool) -> None:
        """`within_reasoning`: see ends_within_reasoning."""
        self._marks = marks
        self._section = SECTION_REASONING if within_reasoning else SECTION_ANSWER
        self._follows_mark = within_reasoning
        self._answered = False
        self._token_marks = deque[_TokenMark]()
        self._num_decoded = 0
        self._num_settled = 0
        self._unsettled = ""
        self._runs: list[Run] = []

    @property
    def section(self) -> Section.ValueType:
        """What text that is pushed now is part of, unless it is a mark's."""
        return self._section

    def decoded(self, token_id: int, num_characters: int) -> None:
        """A token has given so many characters, which will be pushed."""
        self._num_decoded += num_characters
        begins = self._marks.tokens.get(token_id)
        if begins is not None:
            length = min(num_characters, len(_MARKS[begins]))  # before it may stand what completes no character
            self._token_marks.append(_TokenMark(self._num_decoded - length, self._num_decoded, begins))

    def push(self, text: str) -> list[Run]:
        """Takes the next part of the text; returns what is certain now."""
        self._unsettled += text
        while self._token_marks and self._token_marks[0].end <= self._num_settled + len(self._unsettled):
            mark = self._token_marks.popleft()
            self._read(mark.start, is_whole=True)
            self._take_mark(mark.end - mark.start, mark.begins)
        come = self._num_settled + len(self._unsettled)
        if self._token_marks and self._token_marks[0].start <= come:
            self._read(self._token_marks[0].start, is_whole=True)
        else:
            self._read(come, is_whole=False)
        return self._taken()

    def flush(self) -> list[Run]:
        """End of the text: what was held back."""
        self._read(self._num_settled + len(self._unsettled), is_whole=True)
        return self._taken()

    def _read(self, end: int, *, is_whole: bool) -> None:
        """Settles the text up to `end`, but, unless `is_whole`, for what may become a mark with what follows it."""
        while self._num_settled < end:
            text = self._unsettled[: end - self._num_settled]
            if self._follows_mark:
                num_spaces = len(text) - len(text.lstrip())
                self._follows_mark = num_spaces == len(text)
                self._take(num_spaces, SECTION_MARK)
                text = text[num_spaces:]
            start, matched = self._spelled_mark(text)
            is_mark = matched == len(_MARKS[_OTHER[self._section]])
            num_certain = len(text) if is_whole and not is_mark else start
            self._answered |= self._section == SECTION_ANSWER and bool(text[:num_certain].strip())
            self._take(num_certain, self._section)
            if not is_mark:
                return
            self._take_mark(matched, _OTHER[self._section])

    def _spelled_mark(self, text: str) -> tuple[int, int]:
        """Where the mark that ends this section begins, and how many of its characters are there: all of them, or
        those at the end of `text`."""
        if self._section == SECTION_ANSWER:
            start = len(text) - len(text.lstrip())
            is_first = not self._answered and START_MARK.startswith(text[start : start + len(START_MARK)])
            return (start, min(len(text) - start, len(START_MARK))) if is_first else (len(text), 0)
        start = text.find(END_MARK)
        if start >= 0:
            return start, len(END_MARK)
        longest = min(len(text), len(END_MARK) - 1)
        held = next((n for n in range(longest, 0, -1) if END_MARK.startswith(text[-n:])), 0)
        return len(text) - held, held

    def _take_mark(self, length: int, begins: Section.ValueType) -> None:
        self._runs.append(Run(SECTION_MARK, self._unsettled[:length]))
        self._settle(length)
        self._section, self._follows_mark = begins, True

    def _take(self, length: int, section: Section.ValueType) -> None:
        if length:
            self._runs.append(Run(section, self._unsettled[:length]))
            self._settle(length)

    def _settle(self, length: int) -> None:
        self._unsettled = self._unsettled[length:]
        self._num_settled += length

    def _taken(self) -> list[Run]:
        runs, self._runs = self._runs, []
        return runs
