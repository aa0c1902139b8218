"""What RPCs, scheduling between processes and text cost: tokens/s by the SDK ÷ of the engine driven in-process."""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import NamedTuple

from benchmarks.server import Server
from benchmarks.streams import ask_clforge, steady_tokens_per_second
from clforge import Client
from engine_service.bench.config import OursConfig
from engine_service.bench.protocol import SideProcess
from engine_service.bench.workloads import SETTLE_SECONDS
from service_common.options import child_environment, to_argv
from service_common.resources import usable_cpus


class SdkLoad(NamedTuple):
    """Streams that run at once, how long prompts and answers are, and how often each way is measured."""

    num_streams: Sequence[int] = (1, 16)
    prompt_len: int = 128
    max_tokens: int = 96
    num_pairs: int = 3


_LOAD = SdkLoad()


def measure(model: Path, seed: int, load: SdkLoad = _LOAD) -> dict[str, float]:
    """Tokens/s of decode by either way, and the median ratio of pairs, for each number of streams."""
    length = load.prompt_len + load.max_tokens
    config = OursConfig(
        model=model.absolute(),
        threads=usable_cpus(),
        context_length=length,
        max_num_seqs=max(load.num_streams),
        num_cached_tokens=max(load.num_streams) * length,
    )
    command = [sys.executable, "-P", "-m", "engine_service.bench.ours", *to_argv(config)]
    figures: dict[str, float] = {}
    with (
        SideProcess("ours", command, child_environment()) as engine,
        Server.whole(model, f"--max-num-seqs={max(load.num_streams)}") as server,
    ):
        rng = random.Random(seed)
        for num_streams in load.num_streams:
            pairs = [_pair(number, server.address, engine, rng, num_streams, load) for number in range(load.num_pairs)]
            for way in ("sdk", "engine"):
                figures[f"{way}_tokens_per_s_{num_streams}"] = median(pair[way] for pair in pairs)
            figures[f"share_{num_streams}"] = median(pair["sdk"] / pair["engine"] for pair in pairs)
    return figures


def _pair(
    number: int, address: str, engine: SideProcess, rng: random.Random, num_streams: int, load: SdkLoad
) -> dict[str, float]:
    """Rates by both ways, of the same prompts; who goes first changes from pair to pair."""
    prompts = [rng.choices(range(engine.facts["vocab_size"]), k=load.prompt_len) for _ in range(num_streams)]
    rates = {}
    for way in sorted(("sdk", "engine"), reverse=bool(number % 2)):
        time.sleep(SETTLE_SECONDS)
        if way == "sdk":
            rates[way] = asyncio.run(_by_sdk(address, prompts, load))
        else:
            rates[way] = _in_process(engine, f"{num_streams} streams, pair {number}", prompts, load)
    return rates


async def _by_sdk(address: str, prompts: Sequence[Sequence[int]], load: SdkLoad) -> float:
    """All prompts are in the prefix cache when the streams start, so that they start together and decode is all."""
    async with Client(address) as client:
        for max_tokens in (1, load.max_tokens):
            asking = (ask_clforge(client, prompt, max_tokens, no_cache=False) for prompt in prompts)
            streams = await asyncio.gather(*asking)
        return steady_tokens_per_second(streams)


def _in_process(engine: SideProcess, group: str, prompts: list[list[int]], load: SdkLoad) -> float:
    engine.start(group, prompts, load.prompt_len + load.max_tokens)
    return engine.decode(group, load.max_tokens - 1).rate
