"""What a run has shown, as tables and one line."""

from __future__ import annotations

from itertools import groupby

from rich.table import Table

from tests.identity.check import MIN_COUNT, MUST_HAPPEN, Result
from tests.identity.world import Counts

_HEAD = ("model", "KV", "requests", "choices", "tokens", "differ", *(name.replace("_", " ") for name in Counts._fields))


def total_counts(results: list[Result]) -> Counts:
    """The sums over all worlds."""
    return sum((result.outcome.counts for result in results), Counts())


def too_rare(results: list[Result]) -> list[str]:
    """What had to happen and did so less than MIN_COUNT times."""
    counts = total_counts(results)._asdict()
    return [
        f"{name.replace('_', ' ')}: {counts[name]}; at least {MIN_COUNT} have to be seen, or the check shows too little"
        for name in MUST_HAPPEN
        if counts[name] < MIN_COUNT
    ]


def num_differing(results: list[Result]) -> int:
    """Requests that gave something else alone."""
    return sum(len(result.differences) for result in results)


def complaints(results: list[Result]) -> list[str]:
    """What went wrong in words, a line each."""
    broken = [f"{result.world} ended early: {result.outcome.error}" for result in results if result.outcome.error]
    return broken + [line for result in results for line in result.differences.values()] + too_rare(results)


def summary(results: list[Result]) -> str:
    """The one line that counts."""
    num_requests = sum(len(result.outcome.answered) for result in results)
    num_fresh = sum(result.num_fresh for result in results)
    afresh = f"; {num_fresh} of them asked in a fresh process too" if num_fresh else ""
    return f"{num_differing(results)} of {num_requests} differ{afresh}"


def table(results: list[Result]) -> Table:
    """A row for each model and type of cache, and the sums."""

    def kind(result: Result) -> tuple[str, str]:
        return result.world.model.stem, result.world.kv_cache_type

    shown = Table()
    for index, name in enumerate(_HEAD):
        shown.add_column(name, justify="left" if index < 2 else "right")
    for names, group in groupby(sorted(results, key=kind), key=kind):
        shown.add_row(*names, *_figures(list(group)))
    shown.add_section()
    shown.add_row("all", "", *_figures(results))
    return shown


def _figures(results: list[Result]) -> list[str]:
    answers = [answer for result in results for answered in result.outcome.answered for answer in answered.answers]
    num_requests = sum(len(result.outcome.answered) for result in results)
    num_tokens = sum(len(answer.tokens) for answer in answers)
    figures = (num_requests, len(answers), num_tokens, num_differing(results), *total_counts(results))
    return [f"{figure:,}" for figure in figures]
