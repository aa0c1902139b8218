"""The whole check: worlds run, each of their requests asked again alone, some in a fresh process, and all compared."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

from tests.identity.alone import answers_alone
from tests.identity.answer import Answer, difference
from tests.identity.config import IdentityConfig
from tests.identity.fresh import answers_afresh
from tests.identity.models import BUNDLED, LAYOUTS, make_model
from tests.identity.pools import pools
from tests.identity.world import CONTEXT_LENGTH, Outcome, World, run_world

MIN_COUNT = 20  # of each count of MUST_HAPPEN, or the check has shown too little
MUST_HAPPEN = (
    *("preemptions", "prefix_hits", "evictions", "copies", "mixed_steps"),
    *("accepted_drafts", "refused_drafts"),
)
_WORLD_REQUESTS, _LAYOUT_WORLD_REQUESTS = 25, 13  # at most
_VARIANTS = (("f16", 1), ("int8", 2), ("f16", 2), ("int8", 1))  # type of the cache and threads; all turns of two differ

Advance = Callable[[int], None]  # hears of as many requests that were asked, under load or again


class Result(NamedTuple):
    """What a world has shown: its requests, by id and in words those that gave something else alone, and how many were
    asked in a fresh process as well."""

    world: World
    outcome: Outcome
    differences: dict[int, str]
    num_fresh: int = 0


def worlds(config: IdentityConfig, folder: Path) -> list[World]:
    """The worlds of a run, over all types of cache and numbers of threads; models are made in `folder`."""
    variants, seeds = cycle(_VARIANTS), random.Random(config.seed)
    made = []
    for model, num_requests, max_size in _requests_by_model(config, folder):
        num_worlds = -(-num_requests // max_size)
        for index in range(num_worlds):
            size = (num_requests + index) // num_worlds
            made.append(World(model, *next(variants), seeds.getrandbits(32), size))
    return made


def _requests_by_model(config: IdentityConfig, folder: Path) -> Iterable[tuple[Path, int, int]]:
    yield BUNDLED, config.requests, _WORLD_REQUESTS
    if config.layout_requests:
        for layout in LAYOUTS:
            yield make_model(layout, folder), config.layout_requests, _LAYOUT_WORLD_REQUESTS


def compare(world: World, outcome: Outcome, alone: list[tuple[Answer, ...]]) -> Result:
    """The world's result, given what its requests answer alone."""
    differences = {
        answered.request.id: f"{world}: {found}"
        for answered, expected in zip(outcome.answered, alone, strict=True)
        if (found := difference(answered, expected))
    }
    return Result(world, outcome, differences)


def check_world(world: World) -> Result:
    """Runs a world and its oracle in this process."""
    outcome = run_world(world)
    return compare(world, outcome, answers_alone(*_alone_arguments(world, outcome)))


def check_worlds(todo: Iterable[World], advance: Advance) -> list[Result]:
    """Runs worlds in processes with as many threads as they ask for, and their oracles in those with another number."""
    results: list[Result] = []
    with pools() as executors:
        outcomes: dict[Future[Any], World] = {executors[w.threads].submit(run_world, w): w for w in todo}
        oracles: dict[Future[Any], tuple[World, Outcome]] = {}
        while outcomes or oracles:
            done, _ = wait([*outcomes, *oracles], return_when=FIRST_COMPLETED)
            for future in done:
                if future in outcomes:
                    world, outcome = outcomes.pop(future), future.result()
                    other = _other_pool(executors, world)
                    oracles[other.submit(answers_alone, *_alone_arguments(world, outcome))] = world, outcome
                else:
                    world, outcome = oracles.pop(future)
                    results.append(compare(world, outcome, future.result()))
                advance(world.num_requests)
    return sorted(results, key=lambda result: (result.world.model.stem, result.world.seed))


def check_afresh(results: list[Result], num_requests: int, seed: int, advance: Advance) -> list[Result]:
    """Asks so many of the requests, none of them cut short, in a fresh process each; returns what is known then."""
    results = list(results)
    whole = [
        (index, answered)
        for index, result in enumerate(results)
        for answered in result.outcome.answered
        if not any(answer.is_cut for answer in answered.answers)
    ]
    for index, answered in random.Random(seed).sample(whole, min(num_requests, len(whole))):
        world, _, differences, num_fresh = results[index]
        if found := difference(answered, answers_afresh(world, answered.request)):
            differences = differences | {answered.request.id: f"{world}, in a fresh process: {found}"}
        results[index] = results[index]._replace(differences=differences, num_fresh=num_fresh + 1)
        advance(1)
    return results


def _other_pool(executors: dict[int, ProcessPoolExecutor], world: World) -> ProcessPoolExecutor:
    return next(executor for threads, executor in executors.items() if threads != world.threads)


def _alone_arguments(world: World, outcome: Outcome) -> tuple[Any, ...]:
    requests = [answered.request for answered in outcome.answered]
    return world.model, world.kv_cache_type, CONTEXT_LENGTH, requests
