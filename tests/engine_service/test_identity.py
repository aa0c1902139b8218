"""A request's ids and log-probabilities are the same bits whatever runs beside it (D9)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from gguf import GGMLQuantizationType

from engine_service.compute.kv_plan import KV_FORMATS, KVCacheShape
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_methods import Dry, Mirostat, Xtc
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request
from tests.gguf_builder import tiny_llama
from tests.in_process import engine, request, run_to_end

VOCAB_SIZE = 302
NUM_REQUESTS = 16
CHUNKS = (1, 7, 512)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with two quantised layouts, so that both kinds of matmul take part."""
    path = tmp_path_factory.mktemp("identity") / "tiny.gguf"
    tiny_llama(
        path,
        seed=5,
        tensor_type=GGMLQuantizationType.Q4_K,
        hidden=256,
        ffn=512,
        head_dim=64,
        num_heads=4,
        num_kv_heads=2,
    )
    return path


def mixed_requests(seed: int) -> list[Request]:
    """Sixteen requests of mixed prompts, lengths and samplers, all with log-probabilities."""
    rng = random.Random(seed)
    requests = []
    for request_id in range(NUM_REQUESTS):
        prompt = [rng.randrange(3, VOCAB_SIZE) for _ in range(rng.choice((1, 3, 31, 33, 64, 100)))]
        sampling = SamplingParams(
            seed=rng.getrandbits(64),
            temperature=rng.choice((0.0, 0.7, 1.5)),
            top_k=rng.choice((0, 1, 40)),
            top_p=rng.choice((1.0, 0.9)),
            min_p=rng.choice((0.0, 0.05)),
            typical_p=rng.choice((1.0, 0.9)),
            top_n_sigma=rng.choice((0.0, 2.0)),
            repetition_penalty=rng.choice((1.0, 1.3)),
            presence_penalty=rng.choice((0.0, 0.5)),
            penalty_window=rng.choice((0, 8)),
            dry=Dry(multiplier=rng.choice((0.0, 1.0)), allowed_length=1),
            xtc=Xtc(probability=rng.choice((0.0, 0.5)), threshold=0.01),
        )
        if request_id % 8 == 7:
            sampling = SamplingParams(seed=request_id, mirostat=Mirostat(target=3.0), logit_bias=((5, 2.0),))
        limits = GenerationLimits(max_tokens=rng.randrange(5, 30), ignore_eos=True)
        requests.append(request(request_id, prompt, 0, sampling=sampling, limits=limits, logprobs=3))
    return requests


def run(model: Path, requests: Sequence[Request], **options: Any) -> dict[int, list[SampledToken]]:
    with engine(model, **options) as running:
        for each in requests:
            running.add(each)
        return run_to_end(running)


class Alone(NamedTuple):
    """What each request gives in an engine that runs one at a time, with a cache of some type."""

    kv_cache_type: str
    tokens: dict[int, list[SampledToken]]


@pytest.fixture(scope="module", params=KV_FORMATS)
def alone(request: pytest.FixtureRequest, model: Path) -> Alone:
    """One for each type of cache (KV-13)."""
    return Alone(request.param, run(model, mixed_requests(7), kv_cache_type=request.param, max_num_seqs=1))


def test_neighbours_change_no_bit(model: Path, alone: Alone) -> None:
    """Sixteen concurrent requests each give what they give alone."""
    assert run(model, mixed_requests(7), kv_cache_type=alone.kv_cache_type) == alone.tokens
    assert len(alone.tokens) == NUM_REQUESTS


@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill_chunks_change_no_bit(model: Path, alone: Alone, chunk: int) -> None:
    """Prompts prefilled in chunks of 1, 7 or 512 tokens give the same (MODEL-3)."""
    options = {"kv_cache_type": alone.kv_cache_type, "max_prefill_chunk": chunk}
    assert run(model, mixed_requests(7), **options) == alone.tokens


def test_preemption_changes_no_bit(model: Path, alone: Alone) -> None:
    """A cache too small for all of them, so that some are computed again, gives the same."""
    block_bytes = KVCacheShape(2, 2, 64, 32, alone.kv_cache_type).block_bytes
    sizes = {"kv_cache_bytes": str(12 * block_bytes), "context_length": 160, "max_num_seqs": 12}
    with engine(model, kv_cache_type=alone.kv_cache_type, **sizes) as running:
        for each in mixed_requests(7):
            running.add(each)
        assert run_to_end(running) == alone.tokens
        assert running.scheduler.stats().num_preemptions > 0


def test_block_size_and_portable_kernels_change_no_bit(model: Path, alone: Alone) -> None:
    """Neither the size of KV blocks nor the kernel class is part of the arithmetic."""
    options = {"kv_cache_type": alone.kv_cache_type, "block_size": 8, "portable_kernels": True}
    assert run(model, mixed_requests(7), **options) == alone.tokens


def test_other_seeds_give_other_tokens(model: Path, alone: Alone) -> None:
    """The comparison can fail: another seed's requests differ."""
    assert run(model, mixed_requests(8), kv_cache_type=alone.kv_cache_type) != alone.tokens


def test_the_type_of_the_cache_is_part_of_the_arithmetic(model: Path, alone: Alone) -> None:
    """The comparison can see the cache: another type gives other log-probabilities, as another numerics_id says."""
    other = "f16" if alone.kv_cache_type == "int8" else "int8"
    assert run(model, mixed_requests(7), kv_cache_type=other) != alone.tokens
