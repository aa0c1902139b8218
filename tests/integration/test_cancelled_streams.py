"""Streams that are cancelled at any moment leave nothing in either process.

Memory is `python -m benchmarks.cancelled_streams`'s to measure, with very many of them; here every table is looked at.
"""

from __future__ import annotations

import asyncio
import gc
from pathlib import Path

from benchmarks.cancelled_streams import Moment, Sample, cancel_stream, cancel_streams, growth_mib
from tests.gguf_builder import tiny_llama
from tests.integration.processes import two_processes
from tests.integration.test_observability import free_address, scrape
from tests.prometheus import samples
from tests.tokenizer_service.tokenizer_world import world
from tokenizer_service.generation import Generation
from tokenizer_service.session import Session

NUM_STREAMS = 300
EMPTY = (
    "clforge_num_requests_running",
    "clforge_num_requests_waiting",
    "clforge_num_requests_paused",
    "clforge_num_waiting_prompt_tokens",
    "clforge_kv_cache_used_blocks",
    "clforge_tokenizer_num_streams",
    "clforge_tokenizer_num_requests_live",
    "clforge_tokenizer_num_requests_encoding",
    "clforge_tokenizer_num_waiting_messages",
    "clforge_tokenizer_num_waiting_characters",
)


async def test_cancelled_streams_leave_every_table_empty(tmp_path: Path) -> None:
    """In two real processes: no request, no stream, no message, no KV block (DESIGN, invariants 4 and 5; KV-2)."""
    model = tmp_path / "tiny.gguf"
    tiny_llama(model, seed=1, context_length=128)
    addresses = free_address(), free_address()
    with two_processes(model, "--metrics", addresses[0], tokenizer_options=("--metrics", addresses[1])) as processes:
        await cancel_streams(processes.address, NUM_STREAMS, concurrency=16)
        async with processes.stubs() as stubs:
            await stubs.until_live()
        figures: dict[str, float] = {}
        for address in addresses:
            figures |= samples(await asyncio.to_thread(scrape, address))
    assert {name: figures[name] for name in EMPTY} == dict.fromkeys(EMPTY, 0.0)
    seen = figures["clforge_tokenizer_requests_abandoned_total"]
    assert NUM_STREAMS / 2 < seen <= NUM_STREAMS  # some were gone before their submit had come


def alive(*kinds: type) -> int:
    """Objects of these kinds in this process."""
    gc.collect()
    return sum(isinstance(each, kinds) for each in gc.get_objects())


async def test_cancelled_streams_leave_no_object_behind(tmp_path: Path) -> None:
    """Whatever the moment, neither sessions nor generations nor tasks pile up: the last call is gRPC's to keep."""
    async with world(tmp_path) as service:
        counts = []
        for _ in range(2):
            for moment in list(Moment) * 20:
                await cancel_stream(service.stub, moment)
            await service.until(service.is_clean)
            counts.append((alive(Session, Generation), len(asyncio.all_tasks())))
    assert all(objects <= 3 for objects, _ in counts)
    assert counts[1][1] <= counts[0][1] + 1


def test_growth_is_that_since_the_first_sample() -> None:
    """In MiB, of the process that is named."""
    taken = [Sample(10, {"engine": 5 << 20, "tokenizer": 1 << 20}, 1.0), Sample(20, {"engine": 8 << 20}, 1.0)]
    assert growth_mib(taken, "engine") == 3.0
