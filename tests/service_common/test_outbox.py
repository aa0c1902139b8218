"""What a stream has yet to send: numbered without gaps, merged while its writer is late."""

from __future__ import annotations

import asyncio

from clforge.v1.generation_pb2 import (
    FINISH_REASON_STOP,
    SECTION_ANSWER,
    SECTION_REASONING,
    Accepted,
    Delta,
    Finished,
    Update,
)
from service_common.outbox import MAX_DELTA_TOKENS, Outbox


def delta(*token_ids: int) -> Delta:
    return Delta(token_ids=token_ids, num_tokens=len(token_ids))


async def batches(outbox: Outbox) -> list[list[Update]]:
    return [batch async for batch in outbox.batches()]


async def test_a_late_writer_gets_one_delta_per_choice() -> None:
    """Deltas of the same choice are merged while they wait; others keep their own."""
    outbox = Outbox()
    outbox.accepted(1, Accepted())
    for token_id in range(5):
        outbox.delta(1, 0, delta(token_id))
        outbox.delta(1, 1, delta(token_id + 10))
    outbox.finished(1, 0, Finished(reason=FINISH_REASON_STOP))
    outbox.close()
    [batch] = await batches(outbox)
    assert [(update.choice, update.sequence, list(update.delta.token_ids)) for update in batch] == [
        (0, 0, []),
        (0, 1, [0, 1, 2, 3, 4]),
        (1, 0, [10, 11, 12, 13, 14]),
        (0, 2, []),
    ]
    assert batch[1].delta.num_tokens == 5


async def test_deltas_of_two_sections_stay_apart() -> None:
    """What waits is merged within a section only, so a delta is all of one."""
    outbox = Outbox()
    for section, text in ((SECTION_REASONING, "a"), (SECTION_REASONING, "b"), (SECTION_ANSWER, "c")):
        outbox.delta(1, 0, Delta(text=text, section=section))
    outbox.close()
    [batch] = await batches(outbox)
    assert [(update.sequence, update.delta.section, update.delta.text) for update in batch] == [
        (0, SECTION_REASONING, "ab"),
        (1, SECTION_ANSWER, "c"),
    ]


async def test_a_delta_does_not_grow_without_end() -> None:
    """Merging stops at MAX_DELTA_TOKENS, so that no update is too large for a message; nothing is lost (CLI-2)."""
    outbox = Outbox()
    for token_id in range(2 * MAX_DELTA_TOKENS + 1):
        outbox.delta(1, 0, delta(token_id))
    outbox.close()
    [batch] = await batches(outbox)
    assert [update.delta.num_tokens for update in batch] == [MAX_DELTA_TOKENS, MAX_DELTA_TOKENS, 1]
    assert [update.sequence for update in batch] == [0, 1, 2]
    assert [token for update in batch for token in update.delta.token_ids] == list(range(2 * MAX_DELTA_TOKENS + 1))


async def test_what_was_handed_out_is_not_changed_by_what_follows() -> None:
    """After a batch was taken, the next delta is an update of its own, numbered on."""
    outbox = Outbox()
    taken: list[list[Update]] = []

    async def write() -> None:
        taken.extend([batch async for batch in outbox.batches()])

    writer = asyncio.create_task(write())
    for token_id in range(3):
        outbox.delta(7, 0, delta(token_id))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
    outbox.close()
    await writer
    updates = [update for batch in taken for update in batch]
    assert [update.sequence for update in updates] == list(range(len(updates)))
    assert [token for update in updates for token in update.delta.token_ids] == [0, 1, 2]
    assert len(updates) > 1


async def test_closing_ends_the_batches_after_the_last_update() -> None:
    """Nothing is lost at the end, and an empty outbox ends at once."""
    outbox = Outbox()
    outbox.close()
    assert await batches(outbox) == []
    outbox = Outbox()
    outbox.finished(1, 0, Finished())
    outbox.close()
    assert len(await batches(outbox)) == 1


async def test_there_is_room_again_when_a_batch_was_taken_or_none_will_come() -> None:
    """Whoever fills the outbox can wait for its reader, and is not left waiting when it closes."""
    outbox = Outbox()
    await asyncio.wait_for(outbox.room(1), 1)
    for _ in range(2):
        outbox.delta(1, 0, delta(7))
        outbox.finished(1, 0, Finished())
        waiting = asyncio.create_task(outbox.room(2))
        await asyncio.sleep(0)
        assert not waiting.done()
        await anext(outbox.batches())
        await asyncio.wait_for(waiting, 1)
    outbox.finished(2, 0, Finished())
    waiting = asyncio.create_task(outbox.room(1))
    await asyncio.sleep(0)
    outbox.close()
    await asyncio.wait_for(waiting, 1)


def test_a_batch_takes_in_what_comes_while_its_writer_waits_for_its_turn() -> None:
    """Two deltas, one before and one during the wait, leave as one update; the last batch waits for no turn."""

    async def run() -> list[list[Update]]:
        outbox, turns = Outbox(), 0

        async def turn() -> None:
            nonlocal turns
            turns += 1
            outbox.delta(1, 0, Delta(text="b", num_tokens=1))

        outbox.delta(1, 0, Delta(text="a", num_tokens=1))
        batches = []
        async for batch in outbox.batches(turn):
            batches.append(batch)
            if len(batches) == 1:
                outbox.finished(1, 0, Finished())
                outbox.close()
        assert turns == 1
        return batches

    first, last = asyncio.run(run())
    assert [update.delta.text for update in first] == ["ab"]
    assert [update.WhichOneof("event") for update in last] == ["finished"]
