"""Matchers and their masks, and what keeps compiled grammars."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.bundled import BUNDLED_MODEL
from engine_service.constraints.compiler import GrammarCompiler
from engine_service.constraints.mask_threads import MaskRequest, MaskThreads
from engine_service.constraints.spec import ConstraintSpec, Kind
from engine_service.constraints.token_bytes import TokenBytes
from service_common.errors import InvalidArgumentError, UnimplementedError
from tests.engine_service.constraint_world import compiler_of

_SIZE = 37  # not a multiple of 32
_LETTERS = [b"", *(bytes([ord("a") + n]) for n in range(26)), b"ab", b"abc"]
_TOKENS = TokenBytes(_LETTERS + [b""] * (_SIZE - len(_LETTERS)), [0], [0])
_A, _B, _C, _Z, _AB = 1, 2, 3, 26, 27


@pytest.fixture(scope="module")
def compiler() -> Iterator[GrammarCompiler]:
    """For a vocabulary of letters, `ab` and `abc`; token 0 ends a generation."""
    made = GrammarCompiler(lambda: _TOKENS)
    yield made
    made.close()


def _regex(text: str) -> ConstraintSpec:
    return ConstraintSpec(Kind.REGEX, text)


def _ids(mask: NDArray[np.uint32]) -> list[int]:
    bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
    assert not bits[_SIZE:].any()
    return [int(token_id) for token_id in np.flatnonzero(bits)]


def test_a_mask_holds_the_tokens_that_may_come(compiler: GrammarCompiler) -> None:
    """Tokens of several letters where all of them fit, and the end where the output may end."""
    matcher = compiler.compile_now(_regex("abz?")).start()
    assert _ids(matcher.masks(())[0]) == [_A, _AB]
    assert matcher.accept(_A)
    assert _ids(matcher.masks(())[0]) == [_B]
    assert matcher.accept(_B)
    assert _ids(matcher.masks(())[0]) == [0, _Z]
    assert not matcher.accept(_Z)
    assert matcher.error is None


def test_masks_behind_a_draft_are_those_of_accepting_it(compiler: GrammarCompiler) -> None:
    """One row for each prefix of the draft; afterwards the matcher is where it was."""
    grammar = compiler.compile_now(_regex("a(b|c)*z"))
    drafting, plain = grammar.start(), grammar.start()
    masks = drafting.masks((_A, _B, _C))
    for mask, token_id in zip(masks, (_A, _B, _C, None), strict=True):
        assert _ids(mask) == _ids(plain.masks(())[0])
        if token_id is not None:
            plain.accept(token_id)
    assert _ids(drafting.masks(())[0]) == [_A, _AB, _AB + 1]


def test_rows_behind_a_draft_token_that_may_not_come_allow_all(compiler: GrammarCompiler) -> None:
    """They are not used, and they do the matcher no harm."""
    matcher = compiler.compile_now(_regex("a{3}")).start()
    masks = matcher.masks((_A, _Z, _A))
    assert [_ids(mask) for mask in masks] == [[_A], [_A], [*range(_SIZE)], [*range(_SIZE)]]
    assert matcher.error is None
    assert matcher.accept(_A)


def test_a_draft_may_hold_the_end(compiler: GrammarCompiler) -> None:
    """Behind it nothing is an error."""
    matcher = compiler.compile_now(_regex("a?")).start()
    assert _ids(matcher.masks((_A, 0))[1]) == [0]
    assert matcher.error is None


def test_choices_do_not_know_of_each_other(compiler: GrammarCompiler) -> None:
    """What one accepts leaves another, and those that start later, where they are."""
    grammar = compiler.compile_now(_regex("ab"))
    first, second = grammar.start(), grammar.start()
    first.accept(_A)
    assert [_ids(each.masks(())[0]) for each in (first, second, grammar.start())] == [[_B], [_A, _AB], [_A, _AB]]


def test_a_token_that_may_not_come_is_an_error(compiler: GrammarCompiler) -> None:
    """It names the constraint, and all tokens are allowed from then on, since none is used."""
    matcher = compiler.compile_now(_regex("ab")).start()
    assert not matcher.accept(_Z)
    assert matcher.error is not None
    assert matcher.error.field == "params.constraint.regex"
    assert _ids(matcher.masks((_A,))[1]) == [*range(_SIZE)]


@pytest.mark.parametrize("num_threads", [1, 3])
def test_threads_give_masks_in_the_order_of_requests(compiler: GrammarCompiler, num_threads: int) -> None:
    """Whichever thread computes them; none asked for are none."""
    threads = MaskThreads(num_threads)
    matchers = [compiler.compile_now(_regex(letter)).start() for letter in "abcdz"]
    masks = threads.start([MaskRequest(matcher) for matcher in matchers]).wait()
    assert [_ids(mask[0]) for mask in masks] == [[1], [2], [3], [4], [26]]
    assert threads.start([]).wait() == []
    threads.close()


async def test_grammars_are_kept_by_their_text(compiler: GrammarCompiler) -> None:
    """The same object comes back, to those who ask at once as well, and a refusal is kept too."""
    first, second = await asyncio.gather(compiler.compile(_regex("kept")), compiler.compile(_regex("kept")))
    assert first is second
    failures = [await asyncio.gather(compiler.compile(_regex("(")), return_exceptions=True) for _ in range(2)]
    assert failures[0][0] is failures[1][0]
    assert isinstance(failures[0][0], InvalidArgumentError)


async def test_only_the_latest_grammars_are_kept(compiler: GrammarCompiler) -> None:
    """The memory that they take is bounded."""
    first = await compiler.compile(_regex("first"))
    for number in range(64):
        await compiler.compile(_regex("x" * (number + 1)))
    assert await compiler.compile(_regex("first")) is not first


def test_the_process_that_tries_grammars_is_replaced(compiler: GrammarCompiler) -> None:
    """Whoever kills it costs nobody a request."""
    compiler.compile_now(_regex("before"))
    process = compiler._trials._process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert compiler.compile_now(_regex("after")).start().accept(_A)


def test_a_model_without_an_end_token_cannot_be_constrained() -> None:
    """UNIMPLEMENTED, since no constrained output could end."""
    compiler = GrammarCompiler(lambda: _TOKENS._replace(eog_ids=[]))
    with pytest.raises(UnimplementedError, match="end-of-generation"):
        compiler.compile_now(_regex("a"))
    compiler.close()


def test_a_real_vocabulary_gives_the_bytes_of_its_tokens() -> None:
    """A mask at the bundled model's vocabulary holds every token that begins the text, and no other."""
    with compiler_of(BUNDLED_MODEL) as compiler:
        mask = compiler.compile_now(ConstraintSpec(Kind.CHOICES, '[" hedgehog"]')).start().masks(())[0]
        texts = compiler._tokens.texts
        bits = np.unpackbits(mask.view(np.uint8), bitorder="little")
        found = {texts[token_id] for token_id in np.flatnonzero(bits)}
        assert found == {text for text in texts if text and b" hedgehog".startswith(text)}
