"""A request's ids and log-probabilities are the same bits whatever runs beside it (D9)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from gguf import GGMLQuantizationType

from engine_service.scheduling.sampled_token import SampledToken
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
        )
        limits = GenerationLimits(max_tokens=rng.randrange(5, 30), ignore_eos=True)
        requests.append(request(request_id, prompt, 0, sampling=sampling, limits=limits, logprobs=3))
    return requests


def run(model: Path, requests: Sequence[Request], **options: Any) -> dict[int, list[SampledToken]]:
    with engine(model, **options) as running:
        for each in requests:
            running.add(each)
        return run_to_end(running)


@pytest.fixture(scope="module")
def alone(model: Path) -> dict[int, list[SampledToken]]:
    """What each request gives in an engine that runs one at a time."""
    return run(model, mixed_requests(7), max_num_seqs=1)


def test_neighbours_change_no_bit(model: Path, alone: dict[int, list[SampledToken]]) -> None:
    """Sixteen concurrent requests each give what they give alone."""
    assert run(model, mixed_requests(7)) == alone
    assert len(alone) == NUM_REQUESTS


@pytest.mark.parametrize("chunk", CHUNKS)
def test_prefill_chunks_change_no_bit(model: Path, alone: dict[int, list[SampledToken]], chunk: int) -> None:
    """Prompts prefilled in chunks of 1, 7 or 512 tokens give the same (MODEL-3)."""
    assert run(model, mixed_requests(7), max_prefill_chunk=chunk) == alone


def test_preemption_changes_no_bit(model: Path, alone: dict[int, list[SampledToken]]) -> None:
    """A cache too small for all of them, so that some are computed again, gives the same."""
    with engine(model, kv_cache_bytes=12 * 2 * 2 * 2 * 64 * 32 * 2, context_length=160) as running:
        for each in mixed_requests(7):
            running.add(each)
        assert run_to_end(running) == alone
        assert running.scheduler.load().num_preemptions > 0


def test_block_size_and_portable_kernels_change_no_bit(model: Path, alone: dict[int, list[SampledToken]]) -> None:
    """Neither the size of KV blocks nor the kernel class is part of the arithmetic."""
    assert run(model, mixed_requests(7), block_size=8) == alone
    assert run(model, mixed_requests(7), portable_kernels=True) == alone


def test_other_seeds_give_other_tokens(model: Path, alone: dict[int, list[SampledToken]]) -> None:
    """The comparison can fail: another seed's requests differ."""
    assert run(model, mixed_requests(8)) != alone
