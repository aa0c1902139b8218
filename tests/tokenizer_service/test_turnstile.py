"""The turnstile: how many go on within one turn of the event loop."""

from __future__ import annotations

import asyncio

from tokenizer_service.turnstile import Turnstile


def test_as_many_as_its_width_pass_in_one_turn_in_order_of_arrival() -> None:
    """Of seven that come together two pass at once, then two more in each turn, none before those that came earlier."""
    assert asyncio.run(_passed_after_each_turn(7, width=2)) == [[0, 1], [0, 1, 2, 3], [0, 1, 2, 3, 4, 5], [*range(7)]]


def test_one_that_stops_waiting_takes_nobodys_place() -> None:
    """A cancelled waiter is passed over, and the next one goes on in its turn."""

    async def passed() -> list[int]:
        passed: list[int] = []
        tasks = _start(Turnstile(1), passed, 4)
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return passed

    assert asyncio.run(passed()) == [0, 2, 3]


def test_nobody_waits_where_few_come() -> None:
    """One at a time, each passes without giving up its turn."""

    async def passed() -> list[int]:
        turnstile, passed = Turnstile(1), list[int]()
        for number in range(3):
            await _pass(turnstile, passed, number)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return passed

    assert asyncio.run(passed()) == [0, 1, 2]


async def _passed_after_each_turn(count: int, width: int) -> list[list[int]]:
    passed: list[int] = []
    tasks = _start(Turnstile(width), passed, count)
    seen: list[list[int]] = []
    while len(passed) < count:
        await asyncio.sleep(0)
        if not seen or passed != seen[-1]:
            seen.append(list(passed))
    await asyncio.gather(*tasks)
    return seen


def _start(turnstile: Turnstile, passed: list[int], count: int) -> list[asyncio.Task[None]]:
    return [asyncio.create_task(_pass(turnstile, passed, number)) for number in range(count)]


async def _pass(turnstile: Turnstile, passed: list[int], number: int) -> None:
    await turnstile.turn()
    passed.append(number)
