"""Reasoning told apart from the answer: against a definition by brute force, in every way that a text can come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import pytest
from gguf import TokenType
from hypothesis import example, given, settings
from hypothesis import strategies as st

from clforge.v1.generation_pb2 import SECTION_ANSWER, SECTION_MARK, SECTION_REASONING, Section
from tests.tokenizer_service.test_stop_strings import first_stop
from tests.tokenizer_service.vocabulary_builder import bpe_keys, spm_keys, vocabulary, with_tokens
from tokenizer_service.chat_template import ChatTemplate
from tokenizer_service.sections import END_MARK, START_MARK, ReasoningMarks, Run, Sections, ends_within_reasoning
from tokenizer_service.text_stream import TextStream

A, R, M = SECTION_ANSWER, SECTION_REASONING, SECTION_MARK
NO_TOKENS = ReasoningMarks()
_LETTERS = ["<think>", "</think>", "<", "th", "</", "ink>", ">", " ", "\n", "a", "é"]
_texts = st.lists(st.sampled_from(_LETTERS), max_size=12).map("".join)


class _Mark(NamedTuple):
    start: int
    end: int
    begins: Section.ValueType


def _labels(text: str, token_marks: Sequence[_Mark] = (), *, within: bool = False) -> list[int]:
    """The section of each character of a whole text, by definition."""
    labels: list[int] = []
    section, answered, follows_mark = (R if within else A), False, within
    while len(labels) <= len(text):
        at = len(labels)
        token = next((mark for mark in token_marks if mark.start == at), None)
        spelled = {A: START_MARK, R: END_MARK}[section]
        is_spelled = text.startswith(spelled, at) and not any(
            at < mark.start < at + len(spelled) for mark in token_marks
        )
        if token is not None:
            token_marks = [mark for mark in token_marks if mark is not token]
            labels += [M] * (token.end - token.start)
            section, follows_mark = token.begins, True
        elif at == len(text):
            break
        elif is_spelled and (section == R or not answered) and not (section == A and answered):
            labels += [M] * len(spelled)
            section, follows_mark = (R if section == A else A), True
        elif text[at].isspace() and follows_mark:
            labels.append(M)
        else:
            labels.append(section)
            follows_mark = False
            answered |= section == A and not text[at].isspace()
    return labels


def _labels_of(runs: Sequence[Run]) -> list[int]:
    return [run.section for run in runs for _ in run.text]


def _longest_beginning(text: str, mark: str) -> int:
    return max(n for n in range(len(mark)) if n <= len(text) and text.endswith(mark[:n]))


@settings(max_examples=500, deadline=None)
@given(text=_texts, cuts=st.lists(st.integers(0, 60), max_size=6), within=st.booleans())
def test_spelled_marks_count_as_defined_however_the_text_is_cut(text: str, cuts: list[int], within: bool) -> None:
    """Runs are those of the definition, concatenated the text; only what may become a mark is ever held back."""
    sections, runs, seen = Sections(NO_TOKENS, within_reasoning=within), list[Run](), 0
    for end in [*sorted(min(cut, len(text)) for cut in cuts), len(text)]:
        runs += sections.push(text[seen:end])
        seen = end
        held = seen - sum(len(run.text) for run in runs)
        most = max(_longest_beginning(text[:seen], mark) for mark in (START_MARK, END_MARK))
        assert held <= most
    runs += sections.flush()
    assert "".join(run.text for run in runs) == text
    assert _labels_of(runs) == _labels(text, within=within)


# Tokens by id: 1 and 2 are the marks as user-defined tokens, 3 and 4 as control tokens, which give no text.
_TOKENS = {1: START_MARK, 2: END_MARK, 3: "", 4: "", **dict(enumerate(_LETTERS[2:], 5))}
_BEGINS = {1: R, 2: A, 3: R, 4: A}


@settings(max_examples=500, deadline=None)
@given(ids=st.lists(st.sampled_from(sorted(_TOKENS)), max_size=12), within=st.booleans(), late=st.integers(0, 12))
@example(ids=[1, 7, 6, 8, 1], within=False, late=8)  # a spelled mark of which the last character is late
def test_token_marks_count_wherever_they_come(ids: list[int], within: bool, late: int) -> None:
    """A mark that is a token begins its section in the middle of an answer too, with text or without; text that comes
    late, because a stop string was possible, changes nothing."""
    sections, runs, marks = Sections(ReasoningMarks(_BEGINS), within_reasoning=within), list[Run](), list[_Mark]()
    text = waiting = ""
    for token_id in ids:
        sections.decoded(token_id, len(_TOKENS[token_id]))
        if token_id in _BEGINS:
            marks.append(_Mark(len(text), len(text) + len(_TOKENS[token_id]), _BEGINS[token_id]))
        text, waiting = text + _TOKENS[token_id], waiting + _TOKENS[token_id]
        come, waiting = waiting[: max(0, len(waiting) - late)], waiting[max(0, len(waiting) - late) :]
        runs += sections.push(come)
    runs += sections.push(waiting) + sections.flush()
    assert "".join(run.text for run in runs) == text
    assert _labels_of(runs) == _labels(text, marks, within=within)


@settings(max_examples=300, deadline=None)
@given(text=_texts, stops=st.lists(_texts.filter(bool), max_size=3), include_stop=st.booleans(), within=st.booleans())
def test_stop_strings_end_a_text_in_any_section(text: str, stops: list[str], include_stop: bool, within: bool) -> None:
    """They are looked for in the whole text, marks included; what is delivered of it is cut into the same sections,
    and every delivered token is accounted for once."""
    tokens = vocabulary(spm_keys())
    ids = [3 + byte for byte in text.encode()]
    stream = TextStream[int](
        tokens, stops, include_stop=include_stop, sections=Sections(NO_TOKENS, within_reasoning=within)
    )
    pieces = []
    for index, token_id in enumerate(ids):
        pieces += stream.push(token_id, index)
        if pieces and pieces[-1].stop is not None:
            break
    else:
        pieces += stream.finish()
    found = first_stop(text, stops)
    delivered = text if found is None else text[: found.end if include_stop else found.start]
    assert "".join(piece.text for piece in pieces) == delivered
    assert [piece.section for piece in pieces for _ in piece.text] == _labels(delivered, within=within)
    assert [payload for piece in pieces for payload in piece.payloads] == [*range(len(delivered.encode()))]


def test_tokens_are_held_with_the_text_that_may_be_a_mark() -> None:
    """So credit is owed for them, and a mark that does not come releases them together."""
    tokens = vocabulary(spm_keys())
    stream = TextStream[str](tokens, sections=Sections(NO_TOKENS, within_reasoning=True))
    steps = [(stream.push(3 + ord(letter), letter), stream.held_tokens) for letter in "</x"]
    assert [num_held for _, num_held in steps] == [1, 2, 0]
    assert [(piece.text, piece.payloads) for piece in steps[2][0]] == [("</x", ["<", "/", "x"])]


def test_a_control_token_is_accounted_for_in_its_mark() -> None:
    """It has no text, and its delta says that a section has changed."""
    tokens = vocabulary(with_tokens(bpe_keys(), {START_MARK: TokenType.CONTROL, END_MARK: TokenType.CONTROL}))
    marks = ReasoningMarks.of(tokens, ChatTemplate("{{ messages }}"))
    stream = TextStream[str](tokens, sections=Sections(marks, within_reasoning=False))
    spelled = [START_MARK, "h", END_MARK, "a"]
    pieces = [piece for text in spelled for piece in stream.push(tokens.token_id(text) or 0, text)]
    assert [(piece.text, piece.payloads, piece.section) for piece in pieces] == [
        ("", [START_MARK], M),
        ("h", ["h"], R),
        ("", [END_MARK], M),
        ("a", ["a"], A),
    ]


@pytest.mark.parametrize(
    ("added", "template", "known"),
    [
        ({START_MARK: TokenType.USER_DEFINED, END_MARK: TokenType.CONTROL}, "plain", True),
        ({START_MARK: TokenType.NORMAL}, "plain", False),
        ({}, "{% set c = c.split('</think>')[-1] %}", True),
        ({}, "plain", False),
    ],
)
def test_a_model_knows_marks_by_vocabulary_or_template(added: dict[str, TokenType], template: str, known: bool) -> None:
    """Both as tokens of any kind, or a template that speaks of them."""
    marks = ReasoningMarks.of(vocabulary(with_tokens(bpe_keys(), added)), ChatTemplate(template))
    assert marks.known == known
    assert len(marks.tokens) == len(added)


@pytest.mark.parametrize("added", [{}, {START_MARK: TokenType.CONTROL, END_MARK: TokenType.USER_DEFINED}])
@pytest.mark.parametrize(
    ("prompt", "within"),
    [
        ("<think>", True),
        ("hello <think>\n \n", True),
        ("<think>\n\n</think>\n\n", False),
        ("<think> hello", False),
        ("<think", False),
    ],
)
def test_a_prompt_may_end_within_reasoning(added: dict[str, TokenType], prompt: str, within: bool) -> None:
    """Where its last text is the mark that begins it, be the mark one token or many."""
    tokens = vocabulary(with_tokens(bpe_keys(), added))
    ids = tokens.encode("hello " * 50 + prompt, add_special=False, parse_special=True)
    assert ends_within_reasoning(ids, tokens) == within
