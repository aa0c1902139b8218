"""A request asked of `clforge serve` as it has just started: both processes, the wire, and an empty cache."""

from __future__ import annotations

import asyncio

from clforge import Client
from clforge.events import Choice, Logprob
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sequence import FinishReason, Request
from tests.identity.answer import Answer
from tests.identity.world import CONTEXT_LENGTH, World
from tests.integration.served import served


def answers_afresh(world: World, request: Request) -> tuple[Answer, ...]:
    """What the request gives as the only one that a server ever sees: an answer per choice."""
    threads, context_length = str(world.threads), str(CONTEXT_LENGTH)
    options = ("--kv-cache-type", world.kv_cache_type, "--threads", threads, "--context-length", context_length)
    with served(world.model, "--kv-cache-bytes", "64MiB", *options) as address:
        return asyncio.run(_ask(address, request))


async def _ask(address: str, request: Request) -> tuple[Answer, ...]:
    sampling, limits = request.sampling, request.limits
    assert request.logprobs is not None
    async with Client(address) as client:
        completion = await client.complete(
            request.prompt_ids,
            seed=sampling.seed,
            temperature=sampling.temperature,
            top_k=sampling.top_k,
            top_p=sampling.top_p,
            min_p=sampling.min_p,
            max_tokens=limits.max_tokens,
            min_tokens=limits.min_tokens,
            stop_token_ids=limits.stop_token_ids,
            ignore_eos=limits.ignore_eos,
            n=request.num_choices,
            logprobs=request.logprobs,
        )
    return tuple(map(_answer, completion.choices))


def _answer(choice: Choice) -> Answer:
    tokens = [
        SampledToken(entry.chosen.token_id, entry.chosen.logprob, tuple(map(_pair, entry.top)))
        for entry in choice.logprobs
    ]
    assert choice.token_ids == tuple(token.token_id for token in tokens)
    stop = choice.finished.matched_stop
    assert not isinstance(stop, str)
    return Answer(tuple(tokens), FinishReason(choice.finished.reason.value), stop)


def _pair(entry: Logprob) -> tuple[int, float]:
    return entry.token_id, entry.logprob
