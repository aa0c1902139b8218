"""How soon `clforge serve` is ready where kernels and file are cached, and the most memory that its engine took."""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.server import Server
from clforge import Client

MEBIBYTE = 1 << 20
_READ_BYTES = 4 << 20
_BEYOND_BYTES = 500_000_000  # what the engine may take beside weights and KV cache
_WEIGHTS_SHARE = 1.15


class StartLoad(NamedTuple):
    """The memory given to the KV cache, and what is asked of the server before its memory is looked at."""

    kv_cache_mib: int = 512
    prompt_len: int = 1024
    max_tokens: int = 16


_LOAD = StartLoad()


def measure(model: Path, seed: int, load: StartLoad = _LOAD) -> dict[str, float]:
    """Seconds to readiness, those to read the file, and the difference; memory in MiB, and as a share of its limit."""
    option = f"--kv-cache-bytes={load.kv_cache_mib}MiB"
    with Server.whole(model, option):
        pass  # compiles what is not cached yet
    read_file(model)
    read_seconds = read_file(model)
    started = time.perf_counter()
    with Server.whole(model, option) as server:
        ready_seconds = time.perf_counter() - started
        asyncio.run(_ask(server.address, seed, load))
        peak = server.peak_bytes()["engine"]
    allowed = _WEIGHTS_SHARE * model.stat().st_size + load.kv_cache_mib * MEBIBYTE + _BEYOND_BYTES
    return {
        "ready_s": ready_seconds,
        "read_s": read_seconds,
        "ready_beyond_read_s": ready_seconds - read_seconds,
        "peak_mib": peak / MEBIBYTE,
        "allowed_mib": allowed / MEBIBYTE,
        "peak_share": peak / allowed,
    }


def read_file(path: Path) -> float:
    """Reads all of a file; returns the seconds that it took."""
    started = time.perf_counter()
    buffer = bytearray(_READ_BYTES)
    with path.open("rb", buffering=0) as file:
        while file.readinto(buffer):
            pass
    return time.perf_counter() - started


async def _ask(address: str, seed: int, load: StartLoad) -> None:
    async with Client(address) as client:
        info = await client.model_info()
        prompt_len = min(load.prompt_len, info.context_length - load.max_tokens)
        prompt_ids = random.Random(seed).choices(range(info.vocab_size), k=prompt_len)
        await client.complete(prompt_ids, max_tokens=load.max_tokens, temperature=0.0, ignore_eos=True)
