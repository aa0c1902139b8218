"""Where every live sequence is, and the KV blocks that it holds there."""

from __future__ import annotations

from array import array

from engine_service.scheduling.block_manager import BlockManager, IntegrityError
from engine_service.scheduling.sequence import Rank, Sequence, SequenceState
from engine_service.scheduling.sorted_queue import SortedQueue

_WITHOUT_BLOCKS = frozenset({SequenceState.QUEUED, SequenceState.PREEMPTED})
_RUNNING = frozenset({SequenceState.PREFILL, SequenceState.DECODE})


def _rank(sequence: Sequence) -> Rank:
    return sequence.rank


class SequenceQueues:
    """Moves sequences between the queues, each sorted by rank, and takes and returns their blocks.

    A sequence with credit is in `waiting` (QUEUED, PREEMPTED: no blocks) or in `running` (PREFILL: blocks for all its
    known tokens; DECODE: for all but, perhaps, the newest). One without is in `out_of_credit` with the time it ran out,
    longest ago first; if it is PAUSED it is in `paused` too, and keeps its blocks.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self.waiting: SortedQueue[Sequence] = SortedQueue(_rank)
        self.running: SortedQueue[Sequence] = SortedQueue(_rank)
        self.paused: SortedQueue[Sequence] = SortedQueue(_rank)
        self.out_of_credit: dict[Sequence, float] = {}
        self.num_preemptions = 0
        self._blocks = blocks

    def enqueue(self, sequence: Sequence, now: float) -> None:
        """Takes in a new sequence."""
        if sequence.credit:
            self.waiting.add(sequence)
        else:
            self.out_of_credit[sequence] = now

    def admit(self, sequence: Sequence) -> None:
        """waiting → running, with blocks for all known tokens; the caller has made room."""
        self.waiting.remove(sequence)
        sequence.transition(SequenceState.PREFILL)
        sequence.block_table = self._blocks.allocate(sequence.id, self._blocks.blocks_for(sequence.num_tokens))
        self.running.add(sequence)

    def grow(self, sequence: Sequence) -> bool:
        """Gives a running sequence one more block, at the cost of whoever is to be preempted first.

        False where that is `sequence` itself. The first of `running` always gets its block, since a request that needs
        more than the pool was refused.
        """
        while not self._blocks.can_allocate(1):
            victim = self.paused.last if self.paused else self.running.last
            self.preempt(victim)
            if victim is sequence:
                return False
        self._blocks.allocate(sequence.id, 1)
        return True

    def make_room(self, num_blocks: int, paused_since: float) -> bool:
        """Sees to it that `num_blocks` are free, preempting sequences paused at `paused_since` or before where it must.

        False, and none is preempted, where even that would not suffice.
        """
        if self._blocks.can_allocate(num_blocks):
            return True
        victims = [sequence for sequence in reversed(self.paused) if self.out_of_credit[sequence] <= paused_since]
        if self._blocks.num_free_blocks + sum(len(victim.block_table) for victim in victims) < num_blocks:
            return False
        for victim in victims:
            if self._blocks.can_allocate(num_blocks):
                break
            self.preempt(victim)
        return self._blocks.can_allocate(num_blocks)

    def preempt(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks away; what it has generated stays known and will be computed again."""
        if sequence.state is SequenceState.PAUSED:
            self.paused.remove(sequence)
        else:
            self.running.remove(sequence)
            self.waiting.add(sequence)
        sequence.transition(SequenceState.PREEMPTED)
        self._release(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1

    def pause(self, sequence: Sequence, now: float) -> None:
        """running → paused: the sequence has used its credit up."""
        sequence.transition(SequenceState.PAUSED)
        self.running.remove(sequence)
        self.paused.add(sequence)
        self.out_of_credit[sequence] = now

    def grant(self, sequence: Sequence, tokens: int) -> None:
        """Adds credit; a sequence that had none goes on."""
        sequence.credit += tokens
        if self.out_of_credit.pop(sequence, None) is None:
            return
        if sequence.state is SequenceState.PAUSED:
            self.paused.remove(sequence)
            sequence.transition(SequenceState.DECODE)
            self.running.add(sequence)
        else:
            self.waiting.add(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks: it is FINISHED."""
        has_blocks = sequence.state not in _WITHOUT_BLOCKS
        if sequence.state is SequenceState.PAUSED:
            self.paused.remove(sequence)
        elif has_blocks:
            self.running.remove(sequence)
        elif sequence.credit:
            self.waiting.remove(sequence)
        self.out_of_credit.pop(sequence, None)
        sequence.transition(SequenceState.FINISHED)
        if has_blocks:
            self._release(sequence)

    def check_integrity(self) -> None:
        """Raises IntegrityError where a sequence is not where state and credit put it, or its blocks do not match."""
        for queue in (self.waiting, self.running, self.paused):
            queue.check_integrity()
        for sequence in self.waiting:
            _check(sequence, "waiting", sequence.state in _WITHOUT_BLOCKS and sequence.credit > 0)
        for sequence in self.running:
            _check(sequence, "running", sequence.state in _RUNNING and sequence.credit > 0)
        for sequence in self.paused:
            _check(sequence, "paused", sequence.state is SequenceState.PAUSED)
        num_paused = 0
        for sequence in self.out_of_credit:
            num_paused += sequence.state is SequenceState.PAUSED
            _check(sequence, "out of credit", sequence.credit == 0 and sequence.state not in _RUNNING)
        if num_paused != len(self.paused):
            raise IntegrityError(
                f"{len(self.paused)} sequences are paused, and {num_paused} of those out of credit are"
            )
        self._check_blocks([*self.running, *self.paused])

    def _check_blocks(self, holders: list[Sequence]) -> None:
        self._blocks.check_integrity()
        if self._blocks.sequence_ids() != {sequence.id for sequence in holders}:
            raise IntegrityError("the sequences with a block table are not those that run or are paused")
        for sequence in holders:
            if sequence.state is SequenceState.PREFILL:
                fits = len(sequence.block_table) == self._blocks.blocks_for(sequence.num_tokens)
                _check(sequence, "in prefill", fits and sequence.num_computed < sequence.num_tokens)
            else:
                fits = len(sequence.block_table) >= self._blocks.blocks_for(sequence.num_computed)
                _check(sequence, "in decode", fits and sequence.num_computed == sequence.num_tokens - 1)
            _check(sequence, "a holder", sequence.block_table is self._blocks.block_table(sequence.id))

    def _release(self, sequence: Sequence) -> None:
        self._blocks.free(sequence.id)
        sequence.block_table = array("i")


def _check(sequence: Sequence, place: str, holds: bool) -> None:
    if not holds:
        raise IntegrityError(
            f"sequence {sequence.id} is {place} in state {sequence.state.name} with credit {sequence.credit}, "
            f"{sequence.num_computed} of {sequence.num_tokens} tokens computed and {len(sequence.block_table)} blocks"
        )
