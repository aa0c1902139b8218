"""What the prefix cache saves: time to first token of prompts that begin alike, as `clforge serve` gives it."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.server import Server
from clforge import Client, Finished
from engine_service.bench.protocol import BenchError

MILLISECOND = 1e-3


class PrefixLoad(NamedTuple):
    """`num_requests` prompts of `shared_len` tokens in common and `own_len` of their own, one after the other."""

    shared_len: int = 700
    own_len: int = 4
    num_requests: int = 32


_LOAD = PrefixLoad()


def measure(model: Path, seed: int, load: PrefixLoad = _LOAD) -> dict[str, float]:
    """Times to first token in ms: of the first prompt, of the others in the median and at worst; first ÷ median."""
    with Server.whole(model, "--max-num-seqs=8") as server:
        seconds = asyncio.run(_seconds_to_first_token(server.address, seed, load))
    first, others = seconds[0], seconds[1:]
    return {
        "first_ms": first / MILLISECOND,
        "others_ms": median(others) / MILLISECOND,
        "others_worst_ms": max(others) / MILLISECOND,
        "speedup": first / median(others),
    }


async def _seconds_to_first_token(address: str, seed: int, load: PrefixLoad) -> list[float]:
    """BenchError where a prompt after the first was not found in the cache: then the figure would be another one's."""
    rng = random.Random(seed)
    async with Client(address) as client:
        vocab = range((await client.model_info()).vocab_size)
        unrelated, shared = (rng.choices(vocab, k=load.shared_len) for _ in range(2))
        await _generate(client, unrelated)  # what is slow only once, whatever the prompt, is no prefill
        seconds = []
        for number in range(load.num_requests):
            started = time.perf_counter()
            finished = await _generate(client, shared + rng.choices(vocab, k=load.own_len))
            seconds.append(time.perf_counter() - started)
            num_cached = finished.usage.cached_tokens
            if (num_cached >= load.shared_len) != bool(number):
                raise BenchError(f"{num_cached} tokens of prompt {number} were cached, of {load.shared_len} shared")
    return seconds


async def _generate(client: Client, prompt_ids: list[int]) -> Finished:
    """Returns with the first token, which is the last one too, so that it does not wait for a whole character."""
    completion = await client.complete(prompt_ids, max_tokens=1, temperature=0.0, ignore_eos=True)
    return completion.choices[0].finished
