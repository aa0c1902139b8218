"""Clients that ask for streams of tokens, and when those came: of our servers by the SDK, of llama-server by HTTP."""

from __future__ import annotations

import asyncio
import http.client
import json
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field

from clforge import Client, Delta, Finished
from engine_service.bench.protocol import BenchError

_TIMEOUT_SECONDS = 600.0
_WORDS = (
    "the",
    "sun",
    "rose",
    "over",
    "a",
    "quiet",
    "town",
    "and",
    "people",
    "began",
    "to",
    "walk",
    "along",
    "narrow",
    "streets",
    "toward",
    "old",
    "market",
    "square",
    "where",
    "bread",
    "fish",
    "cloth",
    "were",
    "sold",
)


@dataclass
class Stream:
    """One answer: when it was asked for, and when how many tokens of it came (perf_counter seconds)."""

    started: float
    arrivals: list[tuple[float, int]] = field(default_factory=list)
    num_tokens: int = 0  # as the server counts them

    @property
    def first_token_seconds(self) -> float:
        """From asking to the first piece of the answer."""
        return self.arrivals[0][0] - self.started

    @property
    def ended(self) -> float:
        """When the last piece came."""
        return self.arrivals[-1][0]


Ask = Callable[[str], Awaitable[Stream]]


def random_text(rng: random.Random, num_words: int) -> str:
    """A prompt that shares no long beginning with others."""
    return " ".join(rng.choices(_WORDS, k=num_words))


async def closed_loop(ask: Ask, prompts: Sequence[str], num_streams: int) -> list[Stream]:
    """Asks every prompt, `num_streams` of them at any time."""
    room = asyncio.Semaphore(num_streams)

    async def when_there_is_room(prompt: str) -> Stream:
        async with room:
            return await ask(prompt)

    return await asyncio.gather(*map(when_there_is_room, prompts))


def tokens_per_second(streams: Sequence[Stream]) -> float:
    """All tokens, by the time from the first question to the last piece of an answer."""
    seconds = max(stream.ended for stream in streams) - min(stream.started for stream in streams)
    return sum(stream.num_tokens for stream in streams) / seconds


def steady_tokens_per_second(streams: Sequence[Stream]) -> float:
    """Tokens that came while all streams ran, by that time. BenchError where they never ran together."""
    started = max(stream.arrivals[0][0] for stream in streams)
    ended = min(stream.ended for stream in streams)
    num_tokens = sum(count for stream in streams for at, count in stream.arrivals if started < at <= ended)
    if ended <= started or not num_tokens:
        raise BenchError(f"{len(streams)} streams never ran all at once: ask for longer answers")
    return num_tokens / (ended - started)


async def ask_clforge(client: Client, prompt: str | Sequence[int], max_tokens: int, *, no_cache: bool = True) -> Stream:
    """A greedy answer of `max_tokens` tokens. BenchError where it has more or less."""
    stream = Stream(time.perf_counter())
    async for event in client.generate(
        prompt, max_tokens=max_tokens, temperature=0.0, ignore_eos=True, no_cache=no_cache
    ):
        if isinstance(event, Delta):
            stream.arrivals.append((time.perf_counter(), event.num_tokens))
        elif isinstance(event, Finished):
            stream.num_tokens = event.usage.generated_tokens
    _check(stream, max_tokens)
    return stream


async def ask_llama_server(address: str, prompt: str, max_tokens: int) -> Stream:
    """As `ask_clforge`, of a llama-server at `address` (host:port)."""
    return await asyncio.to_thread(_ask_llama_server, address, prompt, max_tokens)


def _ask_llama_server(address: str, prompt: str, max_tokens: int) -> Stream:
    body = {
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "cache_prompt": False,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    stream = Stream(time.perf_counter())
    connection = http.client.HTTPConnection(address, timeout=_TIMEOUT_SECONDS)
    try:
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
        response = connection.getresponse()
        if response.status != http.client.OK:
            raise BenchError(f"llama-server answers {response.status}: {response.read(200).decode(errors='replace')}")
        take_events(stream, response)
    except (OSError, http.client.HTTPException) as error:
        raise BenchError(f"llama-server at {address} does not answer: {error!r}") from error
    finally:
        connection.close()
    _check(stream, max_tokens)
    return stream


def take_events(stream: Stream, lines: Iterable[bytes]) -> None:
    """Takes in server-sent events of OpenAI's completions: pieces as they come, and the count of tokens at the end."""
    for line in lines:
        name, _, data = line.decode().strip().partition(": ")
        if name != "data" or data == "[DONE]":
            continue
        event = json.loads(data)
        if event.get("choices") and event["choices"][0].get("finish_reason") is None:
            stream.arrivals.append((time.perf_counter(), 1))
        if event.get("usage"):
            stream.num_tokens = event["usage"]["completion_tokens"]


def _check(stream: Stream, max_tokens: int) -> None:
    if stream.num_tokens != max_tokens or not stream.arrivals:
        raise BenchError(f"an answer had {stream.num_tokens} tokens; the workload has {max_tokens}")
