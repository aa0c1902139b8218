"""Who watches the load hears of each change, neither too often nor too seldom, and the engine is asked rarely."""

from __future__ import annotations

import asyncio
import itertools
import time

import grpc
import pytest

from clforge.v1 import engine_pb2 as pb
from clforge.v1.generation_pb2 import Load
from engine_service.load_feed import MAX_INTERVAL_SECONDS, MIN_INTERVAL_SECONDS, LoadFeed
from tests.engine_service.engine_server import engine_server, submit

LATE_SECONDS = 0.3  # on a machine that is busy with something else


class Engine:
    """An engine that counts questions, and whose load only ever changes by `work`."""

    def __init__(self) -> None:
        self.load = Load()
        self.num_questions = 0
        self.idle = asyncio.Event()
        self.idle.set()
        self.feed = LoadFeed(self.ask)

    async def ask(self) -> Load:
        self.num_questions += 1
        await self.idle.wait()
        answer = Load()
        answer.CopyFrom(self.load)
        return answer

    def work(self) -> None:
        self.load.num_steps += 1
        self.feed.changed()


async def heard(feed: LoadFeed, count: int) -> list[float]:
    """When `count` messages came."""
    times: list[float] = []
    async for _ in feed.watch():
        times.append(time.monotonic())
        if len(times) == count:
            break
    return times


async def test_change_is_told_at_once_and_silence_is_broken_in_time() -> None:
    """The first message is there at once; a change comes without delay, and without one a second does not pass."""
    engine = Engine()
    watch = engine.feed.watch()
    assert (await anext(watch)).num_steps == 0
    await asyncio.sleep(2 * MIN_INTERVAL_SECONDS)
    started = time.monotonic()
    asyncio.get_running_loop().call_later(0.05, engine.work)
    assert (await anext(watch)).num_steps == 1
    assert time.monotonic() - started < 0.05 + LATE_SECONDS
    started = time.monotonic()
    assert (await anext(watch)).num_steps == 1
    assert MAX_INTERVAL_SECONDS / 2 < time.monotonic() - started < 1.0 + LATE_SECONDS


async def test_idle_engine_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Repeating what is known costs the engine nothing (ISSUE-3)."""
    monkeypatch.setattr("engine_service.load_feed.MAX_INTERVAL_SECONDS", 0.15)
    engine = Engine()
    assert len(await heard(engine.feed, 3)) == 3
    assert engine.num_questions == 1


async def test_busy_engine_is_asked_rarely_however_many_watch() -> None:
    """Ten questions a second at most, and ten messages a second for each watcher."""
    engine = Engine()
    done = asyncio.Event()

    async def be_busy() -> None:
        while not done.is_set():
            engine.work()
            await asyncio.sleep(0.002)

    busy = asyncio.create_task(be_busy())
    started = time.monotonic()
    times = await asyncio.gather(*(heard(engine.feed, 4) for _ in range(20)))
    elapsed = time.monotonic() - started
    done.set()
    await busy
    assert engine.num_questions <= 1 + elapsed / MIN_INTERVAL_SECONDS
    for each in times:
        assert min(b - a for a, b in itertools.pairwise(each)) > 0.9 * MIN_INTERVAL_SECONDS


async def test_every_watcher_hears_of_a_change() -> None:
    """Also when another one has asked for it."""
    engine = Engine()
    watches = [engine.feed.watch() for _ in range(3)]
    for watch in watches:
        await anext(watch)
        await asyncio.sleep(MIN_INTERVAL_SECONDS / 3)
    for step in range(1, 4):
        engine.work()
        started = time.monotonic()
        assert [load.num_steps for load in await asyncio.gather(*map(anext, watches))] == [step] * 3
        assert time.monotonic() - started < 2 * MIN_INTERVAL_SECONDS + LATE_SECONDS


async def test_change_during_the_question_is_not_lost() -> None:
    """What happens between question and answer is told with the next one."""
    engine = Engine()
    watch = engine.feed.watch()
    await anext(watch)
    engine.work()
    engine.idle.clear()
    following = asyncio.ensure_future(anext(watch))
    while engine.num_questions < 2:
        await asyncio.sleep(0.005)
    engine.feed.changed()
    engine.idle.set()
    assert (await following).num_steps == 1
    assert engine.num_questions == 2
    engine.load.num_steps += 1
    assert (await asyncio.wait_for(anext(watch), MAX_INTERVAL_SECONDS / 2 + LATE_SECONDS)).num_steps == 2


async def test_long_step_does_not_silence_the_feed() -> None:
    """While the engine does not answer, what was told last is told again within the second."""
    engine = Engine()
    watch = engine.feed.watch()
    await anext(watch)
    engine.idle.clear()
    engine.work()
    assert (await asyncio.wait_for(anext(watch), 1.0 + LATE_SECONDS)).num_steps == 0
    engine.idle.set()
    assert (await asyncio.wait_for(anext(watch), MIN_INTERVAL_SECONDS + LATE_SECONDS)).num_steps == 1


async def test_close_ends_every_watch() -> None:
    """Without an error, however far each is; a watch that begins afterwards ends at once."""
    engine = Engine()
    watching = [asyncio.create_task(heard(engine.feed, 1000)) for _ in range(3)]
    await asyncio.sleep(0.05)
    watching.append(asyncio.create_task(heard(engine.feed, 1000)))
    await asyncio.sleep(0)
    engine.feed.close()
    counts = [len(times) for times in await asyncio.wait_for(asyncio.gather(*watching), 0.1 + LATE_SECONDS)]
    assert counts[:3] == [1, 1, 1]
    assert await heard(engine.feed, 1) == []


async def test_failed_question_fails_the_watch() -> None:
    """An error of the engine reaches whoever watches."""

    async def fail() -> Load:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await anext(LoadFeed(fail).watch())


async def test_rpc_tells_of_steps_without_tokens() -> None:
    """A prompt that is being computed changes the load as much as a token does."""
    async with engine_server(max_prefill_chunk=8) as running:
        running.runner.delay_seconds = 0.15
        watch = aiter(running.stub.WatchLoad(pb.EngineServiceWatchLoadRequest()))
        assert (await anext(watch)).load.num_requests_running == 0
        call = running.stub.GenerateTokens()
        await call.write(submit(1, prompt_length=64, max_tokens=1))
        loads = [(await anext(watch)).load for _ in range(5)]
        assert [load.generation_tokens for load in loads] == [0] * 5
        prompt_tokens = [load.prompt_tokens for load in loads]
        assert prompt_tokens == sorted(set(prompt_tokens))
        call.cancel()


async def test_rpc_ends_at_drain() -> None:
    """With OK and without delay, although a request goes on; one that begins then is refused."""
    async with engine_server() as running:
        call = running.stub.GenerateTokens()
        await call.write(submit(1, max_tokens=100, initial_credit=1))
        watch = running.stub.WatchLoad(pb.EngineServiceWatchLoadRequest())
        await anext(aiter(watch))
        running.server.refuse_new()
        async with asyncio.timeout(MIN_INTERVAL_SECONDS + LATE_SECONDS):
            async for _ in watch:
                pass
        assert await watch.code() is grpc.StatusCode.OK
        late = running.stub.WatchLoad(pb.EngineServiceWatchLoadRequest())
        assert await late.code() is grpc.StatusCode.UNAVAILABLE
        call.cancel()
