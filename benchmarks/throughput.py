"""What the Python SDK makes of many requests on one stream, in a process of its own. It prints a line of JSON: tokens,
seconds, and the processor time that this process took meanwhile.

usage: python -m benchmarks.throughput ADDRESS NUM_REQUESTS MAX_TOKENS
"""

from __future__ import annotations

import asyncio
import json
import sys
import time

from clforge import Client, Delta, Session

_WARM_UP_TOKENS = 16  # of each request, before anything is counted


async def _one(session: Session, max_tokens: int) -> int:
    tokens = 0
    async for event in session.generate([1], max_tokens=max_tokens, ignore_eos=True):
        if isinstance(event, Delta):
            tokens += event.num_tokens
    return tokens


async def _all(session: Session, num_requests: int, max_tokens: int) -> int:
    return sum(await asyncio.gather(*(_one(session, max_tokens) for _ in range(num_requests))))


async def measure(address: str, num_requests: int, max_tokens: int) -> dict[str, float]:
    """Tokens of all requests, how long they took, and at what cost."""
    async with Client(address) as client, client.session() as session:
        await _all(session, num_requests, _WARM_UP_TOKENS)
        started, busy = time.perf_counter(), time.process_time()
        tokens = await _all(session, num_requests, max_tokens)
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - busy
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(measure(sys.argv[1], int(sys.argv[2]), int(sys.argv[3])))))
