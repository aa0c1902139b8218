"""A step on the device: blocks are copied before the pass writes, after what earlier steps wrote."""

from __future__ import annotations

from array import array
from collections.abc import Iterator

import pytest

from engine_service.compute.kv_plan import KV_FORMATS
from engine_service.compute.model_runner import ModelRunner
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import Sequence
from tests.gguf_builder import tiny_llama
from tests.in_process import engine, request

PREFIX = [3 + position * 7 % 290 for position in range(20)]
BLOCK_SIZE = 16


@pytest.fixture(scope="module", params=KV_FORMATS)
def runner(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModelRunner]:
    """A runner of a tiny model, one for each type of cache."""
    path = tmp_path_factory.mktemp("runner") / "tiny.gguf"
    tiny_llama(path, seed=3)
    options = {"max_num_seqs": 4, "context_length": 32, "block_size": BLOCK_SIZE, "kv_cache_type": request.param}
    with engine(path, **options) as running:
        assert isinstance(running._runner, ModelRunner)
        yield running._runner


def sequence(token_ids: list[int], blocks: list[int]) -> Sequence:
    """A sequence with `token_ids` for a prompt and `blocks` for a table."""
    asked = request(1, token_ids, 1, logprobs=5)
    made = Sequence(request=asked, choice=0, rank=(0.0, 0, 0), max_tokens=1, end_token_ids=frozenset(), credit=1)
    made.block_table = array("i", blocks)
    return made


def run(runner: ModelRunner, chunks: list[ScheduledChunk], *copies: BlockCopy) -> list[SampledToken]:
    """The step's tokens."""
    num_rows = sum(chunk.num_rows for chunk in chunks)
    num_tokens = sum(chunk.num_tokens for chunk in chunks)
    return runner.run(ScheduledStep(chunks, num_tokens, num_rows, block_copies=copies))


def alone(runner: ModelRunner, token_ids: list[int]) -> SampledToken:
    """The token after `token_ids`, computed in one chunk in blocks of its own."""
    return run(runner, [ScheduledChunk(sequence(token_ids, [6, 7]), 0, len(token_ids), 1)])[0]


def forked(runner: ModelRunner, *copies: BlockCopy) -> list[SampledToken]:
    """The tokens of three continuations of one prefix, whose second block they write at once."""
    count = len(PREFIX)
    parent, *children = (sequence([*PREFIX, last], [0, second]) for last, second in ((5, 1), (6, 2), (7, 3)))
    run(runner, [ScheduledChunk(sequence([9] * 32, [first, first + 1]), 0, 32, 0) for first in (0, 2)])
    run(runner, [ScheduledChunk(parent, 0, count, 0)])
    return run(runner, [ScheduledChunk(each, count, 1, 1) for each in (parent, *children)], *copies)


def test_forks_of_a_partly_filled_block_give_what_they_give_alone(runner: ModelRunner) -> None:
    """Two copies of a block that its own sequence writes in the same step: each continuation has the bits that it has
    when computed from nothing."""
    expected = [alone(runner, [*PREFIX, last]) for last in (5, 6, 7)]
    assert forked(runner, BlockCopy(1, 2), BlockCopy(1, 3)) == expected


def test_a_copy_left_out_shows(runner: ModelRunner) -> None:
    """The comparison can fail: a fork whose block was not copied attends to what was there before."""
    left_out = forked(runner, BlockCopy(1, 2))
    assert left_out[:2] == [alone(runner, [*PREFIX, last]) for last in (5, 6)]
    assert left_out[2] != alone(runner, [*PREFIX, 7])
