"""The wire's messages as the engine's own types, and back."""

from __future__ import annotations

import math
from typing import Any

import pytest

from clforge.v1 import generation_pb2 as pb
from clforge.v1.engine_pb2 import TokenSubmit
from clforge.v1.generation_pb2 import GenerationParams
from engine_service.conversion import to_load, to_request
from engine_service.scheduling.sampling_methods import Xtc
from engine_service.scheduling.sampling_params import SamplingParams
from engine_service.scheduling.sampling_stages import Stage
from engine_service.scheduling.sequence import Request
from engine_service.token_search import TokenSearch
from service_common.errors import InvalidArgumentError
from tests.engine_service.scheduler_world import make_request, make_world

SEARCH = TokenSearch([b"a", b"b\n", b":", b"c*d", b'"', b"e", b" f", b"", b"g", b"ab"])


def converted(**params: Any) -> Request:
    """A request of one token with these parameters."""
    submit = TokenSubmit(request_id=1, token_ids=[3], params=GenerationParams(**params), client_stream_id=2)
    return to_request(
        submit,
        engine_id=7,
        stream_id=5,
        now=100.0,
        vocab_size=10,
        context_length=32,
        ids_containing=SEARCH.ids_containing,
    )


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


def sampling(**fields: Any) -> SamplingParams:
    """The sampling parameters of a request."""
    return converted(sampling=pb.SamplingParams(**fields)).sampling


def test_sampling_parameters_arrive_under_their_own_names() -> None:
    """Every method's; an order by its stages' names; breakers as the tokens that hold them."""
    params = sampling(
        seed=3,
        typical_p=0.5,
        top_n_sigma=2,
        repetition_penalty=2,
        frequency_penalty=-1,
        presence_penalty=0.5,
        penalty_window=7,
        xtc=pb.Xtc(probability=0.5),
        logit_bias={4: -2.0},
        allowed_token_ids=[1, 9],
        bad_token_sequences=[pb.TokenSequence(ids=[1, 2])],
        order=[pb.SAMPLING_STAGE_XTC, *(s for s in range(1, 9))],
    )
    assert (params.typical_p, params.top_n_sigma, params.penalty_window) == (0.5, 2, 7)
    assert (params.repetition_penalty, params.frequency_penalty, params.presence_penalty) == (2, -1, 0.5)
    assert (params.xtc, params.logit_bias) == (Xtc(probability=0.5), ((4, -2.0),))
    assert params.bad_token_sequences == ((1, 2),)
    assert params.allowed is not None
    assert params.allowed.mask.tolist() == [1 << 1 | 1 << 9]
    assert params.order[:2] == (Stage.XTC, Stage.PENALTIES)


def test_dry_breakers_are_the_tokens_that_hold_them() -> None:
    """The default four, one's own, or none at all."""
    assert sampling(dry=pb.Dry(multiplier=1)).dry.breaker_ids == {1, 2, 3, 4}
    assert sampling(dry=pb.Dry(sequence_breakers=["b", "cd"])).dry.breaker_ids == {1, 9}
    assert sampling(dry=pb.Dry(sequence_breakers=[""])).dry.breaker_ids == frozenset()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"typical_p": 0.0}, r"typical_p is 0\.0; must be above 0 and at most 1"),
        ({"typical_p": math.nan}, r"typical_p is nan"),
        ({"top_n_sigma": -1.0}, r"top_n_sigma is -1\.0; must be between 0 and 100"),
        ({"repetition_penalty": 0.0}, r"repetition_penalty is 0\.0; must be above 0 and at most 10"),
        ({"frequency_penalty": 11.0}, r"frequency_penalty is 11\.0; must be between -10 and 10"),
        ({"presence_penalty": math.inf}, r"presence_penalty is inf"),
        ({"penalty_window": 1 << 31}, r"penalty_window is 2147483648; must be between 0 and 2147483647"),
        ({"dry": pb.Dry(base=0.5)}, r"dry\.base is 0\.5; must be between 1 and 16"),
        ({"dry": pb.Dry(allowed_length=0)}, r"dry\.allowed_length is 0; must be between 1 and 1024"),
        ({"dry": pb.Dry(sequence_breakers=["", "a"])}, r"dry\.sequence_breakers\[0\] is a string of 0 bytes"),
        ({"dry": pb.Dry(sequence_breakers=["x" * 65])}, r"dry\.sequence_breakers\[0\] is a string of 65 bytes"),
        ({"dry": pb.Dry(sequence_breakers=["x"] * 17)}, r"a list of 17 strings; must hold at most 16"),
        ({"xtc": pb.Xtc(threshold=0)}, r"xtc\.threshold is 0\.0; must be above 0 and at most 1"),
        ({"mirostat": pb.Mirostat()}, r"mirostat\.target is not set; must be above 0"),
        ({"mirostat": pb.Mirostat(target=3), "top_k": 5}, r"top_k is set; must not be set beside mirostat"),
        ({"logit_bias": {10: 1.0}}, r"logit_bias is 10; must be below the vocabulary's 10 tokens"),
        ({"logit_bias": {1: 101.0}}, r"logit_bias\[1\] is 101\.0; must be between -100 and 100"),
        ({"allowed_token_ids": [1, 10]}, r"allowed_token_ids\[1\] is 10; must be below"),
        ({"bad_token_sequences": [pb.TokenSequence()]}, r"\[0\]\.ids is a list of 0 ids; must hold between 1 and 64"),
        ({"bad_token_sequences": [pb.TokenSequence(ids=[11])]}, r"bad_token_sequences\[0\]\.ids\[0\] is 11"),
        (
            {"bad_token_sequences": [pb.TokenSequence(ids=[3])], "allowed_token_ids": [3]},
            r"must leave an allowed token",
        ),
        ({"bad_words": ["x"]}, r"words belong to the tokenizer service"),
        ({"order": [1, 1]}, r"order\[1\] is PENALTIES; is there already"),
        ({"order": [0]}, r"order\[0\] is 0; must be a stage"),
        ({"order": [1], "top_p": 0.5}, r"must hold TOP_P, since top_p is set"),
    ],
)
def test_bad_sampling_parameters_are_named(fields: dict[str, Any], message: str) -> None:
    """Field, value and range, whatever is wrong (MODEL-13)."""
    with pytest.raises(InvalidArgumentError, match=message):
        sampling(**fields)
