"""What happens when more is asked than can be served, as clients of `clforge serve` see it.

First as many clients as sequences may run at once ask one after the other: what they get through is the capacity. Then
requests come at ten times that rate, whether the earlier ones are answered or not.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from benchmarks.report import percentile
from benchmarks.server import PROCESSES, Server
from benchmarks.streams import random_text
from clforge import Client, OverloadedError
from engine_service.bench.protocol import BenchError

MILLISECOND = 1e-3
MEBIBYTE = 1 << 20


class OverloadLoad(NamedTuple):
    """The server's limits, a request's size, and for how long requests come."""

    max_num_seqs: int = 64
    max_queued_requests: int = 64
    prompt_words: int = 24
    max_tokens: int = 256  # on average: requests of one length would come and go in waves
    capacity_seconds: float = 15.0
    overload_seconds: float = 60.0
    first_sample_seconds: float = 10.0  # into the overload; then memory is measured, and at its end again
    factor: float = 10.0


_LOAD = OverloadLoad()


@dataclass
class Tally:
    """What became of the requests."""

    num_accepted: int = 0
    refusal_seconds: list[float] = field(default_factory=list)
    late_seconds: list[float] = field(default_factory=list)  # by which this client itself sent its requests late
    failures: list[str] = field(default_factory=list)


def measure(model: Path, seed: int, load: OverloadLoad = _LOAD) -> dict[str, float]:
    """Rates in requests/s, refusals in ms, memory in MiB. BenchError where nothing was refused: that is no overload."""
    limits = f"--max-num-seqs={load.max_num_seqs}", f"--max-queued-requests={load.max_queued_requests}"
    with Server.whole(model, *limits) as server:
        return asyncio.run(_measure(server, random.Random(seed), load))


async def _measure(server: Server, rng: random.Random, load: OverloadLoad) -> dict[str, float]:
    async with Client(server.address, retry_seconds=0.0) as client:
        capacity = await _capacity(client, rng, load)
        tally, (early, late) = await asyncio.gather(_overload(client, rng, load, capacity), _memory(server, load))
    return figures(capacity, tally, early, late)


def figures(capacity: float, tally: Tally, early: dict[str, int], late: dict[str, int]) -> dict[str, float]:
    """Of a capacity in requests/s, and the memory of both processes in bytes. BenchError where nothing was refused."""
    if not tally.refusal_seconds:
        raise BenchError(f"all of {tally.num_accepted} requests were served: that is no overload")
    memory = {
        f"{name}_mib_{when}": sizes[name] / MEBIBYTE
        for name in PROCESSES
        for when, sizes in (("early", early), ("late", late))
    }
    return {
        "capacity_per_s": capacity,
        "num_accepted": tally.num_accepted,
        "num_refused": len(tally.refusal_seconds),
        "num_failed": len(tally.failures),
        "refusal_p50_ms": percentile(tally.refusal_seconds, 50) / MILLISECOND,
        "refusal_p99_ms": percentile(tally.refusal_seconds, 99) / MILLISECOND,
        "client_late_p99_ms": percentile(tally.late_seconds, 99) / MILLISECOND,
        **memory,
        "memory_growth": max(late[name] / early[name] for name in PROCESSES),
    }


async def _capacity(client: Client, rng: random.Random, load: OverloadLoad) -> float:
    """Requests per second."""
    num_done = 0
    started = time.perf_counter()

    async def ask() -> None:
        nonlocal num_done
        while time.perf_counter() < started + load.capacity_seconds:
            await _request(client, rng, load)
            num_done += 1

    await asyncio.gather(*(ask() for _ in range(load.max_num_seqs)))
    return num_done / (time.perf_counter() - started)


async def _overload(client: Client, rng: random.Random, load: OverloadLoad, capacity: float) -> Tally:
    """What became of all requests, once the last one has ended."""
    tally, tasks = Tally(), list[asyncio.Task[None]]()
    interval = 1 / (load.factor * capacity)
    started = time.perf_counter()
    for number in range(round(load.overload_seconds / interval)):
        due = started + number * interval
        if (wait := due - time.perf_counter()) > 0:
            await asyncio.sleep(wait)
        tally.late_seconds.append(time.perf_counter() - due)
        tasks.append(asyncio.create_task(_attempt(client, rng, load, tally)))
    await asyncio.gather(*tasks)
    return tally


async def _memory(server: Server, load: OverloadLoad) -> tuple[dict[str, int], dict[str, int]]:
    """What each process holds soon after the overload began, and at its end."""
    await asyncio.sleep(load.first_sample_seconds)
    early = server.rss_bytes()
    await asyncio.sleep(load.overload_seconds - load.first_sample_seconds)
    return early, server.rss_bytes()


async def _attempt(client: Client, rng: random.Random, load: OverloadLoad, tally: Tally) -> None:
    started = time.perf_counter()
    try:
        await _request(client, rng, load)
    except OverloadedError:
        tally.refusal_seconds.append(time.perf_counter() - started)
    except Exception as error:
        tally.failures.append(repr(error))
    else:
        tally.num_accepted += 1


async def _request(client: Client, rng: random.Random, load: OverloadLoad) -> None:
    prompt = random_text(rng, load.prompt_words)
    max_tokens = rng.randint(load.max_tokens // 2, load.max_tokens * 3 // 2)
    async for _ in client.generate(prompt, max_tokens=max_tokens, ignore_eos=True):
        pass
