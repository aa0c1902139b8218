"""The wire's messages as the engine's own types, and back."""

from __future__ import annotations

from typing import Any

import pytest

from clforge.v1.engine_pb2 import TokenSubmit
from clforge.v1.generation_pb2 import GenerationParams
from engine_service.conversion import to_load, to_request
from engine_service.scheduling.sequence import Request
from service_common.errors import InvalidArgumentError
from tests.engine_service.scheduler_world import make_request, make_world


def converted(**params: Any) -> Request:
    """A request of one token with these parameters."""
    submit = TokenSubmit(request_id=1, token_ids=[3], params=GenerationParams(**params), client_stream_id=2)
    return to_request(submit, engine_id=7, stream_id=5, now=100.0, vocab_size=10, context_length=32)


def test_a_request_knows_its_stream_and_its_salt() -> None:
    """The stream is the server's word, and within it the client's; the salt is the client's, empty if it has none."""
    assert (converted().id, converted().stream_id, converted().cache_salt) == (7, (5, 2), ("", ""))
    assert converted(cache_salt="tenant").cache_salt == ("", "tenant")


def test_opting_out_of_the_cache_leaves_no_salt() -> None:
    """no_cache goes before any salt; false is the default."""
    assert converted(no_cache=True, cache_salt="tenant").cache_salt is None
    assert converted(no_cache=False).cache_salt == ("", "")


def test_a_salt_that_is_too_long_is_refused() -> None:
    """The limit is in bytes, and the error names it."""
    assert converted(cache_salt="é" * 128).cache_salt == ("", "é" * 128)
    with pytest.raises(InvalidArgumentError, match=r"params\.cache_salt is 257 bytes long; must have at most 256"):
        converted(cache_salt="é" * 128 + "x")


@pytest.mark.parametrize("priority", [-101, 101])
def test_a_priority_out_of_range_is_refused(priority: int) -> None:
    """The error names field, value and limit (MODEL-13)."""
    with pytest.raises(InvalidArgumentError, match=rf"params\.priority is {priority}; must be between -100 and 100"):
        converted(priority=priority)


def test_the_load_tells_every_figure() -> None:
    """Each field of Load comes from the scheduler's figures; cached blocks are told apart from used ones."""
    world = make_world()
    world.add(make_request(1, prompt_len=9))
    world.run_until_idle()
    world.add(make_request(2, prompt_len=5))
    world.add(make_request(3, credit=0))
    world.step()
    load = to_load(world.scheduler.stats())
    blocks = world.scheduler.stats().blocks
    assert (load.num_requests_running, load.num_requests_waiting, load.num_waiting_prompt_tokens) == (1, 1, 4)
    assert (load.num_blocks, load.num_used_blocks, load.num_cached_blocks, load.block_size) == (32, 2, 4, 4)
    assert (load.prompt_tokens, load.generation_tokens, load.num_steps) == (14, 9, world.scheduler.stats().num_steps)
    assert load.num_used_blocks + load.num_cached_blocks + blocks.num_free_blocks == load.num_blocks
