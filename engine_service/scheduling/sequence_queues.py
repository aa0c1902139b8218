"""Where every live sequence is, and the KV blocks that it holds there."""

from __future__ import annotations

from array import array

from engine_service.scheduling.block_manager import BlockManager, Reuse
from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.followers import Followers
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.sorted_queue import SortedQueue
from engine_service.scheduling.waiting_queue import WaitingQueue, by_rank

_WITHOUT_BLOCKS = frozenset({SequenceState.QUEUED, SequenceState.PREEMPTED})
_RUNNING = frozenset({SequenceState.PREFILL, SequenceState.DECODE})


class SequenceQueues:
    """Moves sequences between the queues, and takes and returns their blocks.

    A sequence with credit is in `waiting` (QUEUED, PREEMPTED: no blocks), or in `running` (PREFILL: blocks for all its
    known tokens; DECODE: for all but, perhaps, the newest), or it waits for the leader of its request (QUEUED). One
    without is in `out_of_credit` with the time it ran out, longest ago first; if it is PAUSED it is in `paused` too,
    and keeps its blocks. `running` and `paused` are in order of rank.
    """

    def __init__(self, blocks: BlockManager) -> None:
        self.waiting = WaitingQueue()
        self.running: SortedQueue[Sequence] = SortedQueue(by_rank)
        self.paused: SortedQueue[Sequence] = SortedQueue(by_rank)
        self.out_of_credit: dict[Sequence, float] = {}
        self.num_preemptions = 0
        self._followers = Followers()
        self._blocks = blocks

    def enqueue(self, sequence: Sequence, now: float) -> None:
        """Takes in a new sequence."""
        if sequence.credit:
            self._start_waiting(sequence)
        else:
            self.out_of_credit[sequence] = now

    def admit_first(self, now: float, paused_since: float) -> Sequence | None:
        """waiting → running, with blocks for all known tokens, for the first that waits; None where it does not fit.

        Sequences paused at `paused_since` or before are preempted where that makes room, and none where it would not.
        """
        reuse = self._make_room(self.waiting.first, paused_since)
        if reuse is None:
            return None
        sequence = self.waiting.take_first()
        self._start(sequence, reuse, now)
        return sequence

    def fork(self, leader: Sequence, now: float) -> None:
        """`leader` has computed the prompt: the choices that waited for it go on from there, QUEUED → running.

        Those for which there is no block wait for their turn instead.
        """
        for follower in self._followers.release(leader):
            reuse = self._blocks.find_fork(leader, follower)
            if reuse is None:
                self.waiting.add(follower)
            else:
                self._start(follower, reuse, now)

    def grow(self, sequence: Sequence) -> bool:
        """Gives a running sequence one more block, at the cost of whoever is to be preempted first.

        False where that is `sequence` itself. The first of `running` always gets its block, since a request that needs
        more than the pool was refused.
        """
        while not self._blocks.can_grow():
            victim = self.paused.last if self.paused else self.running.last
            self.preempt(victim)
            if victim is sequence:
                return False
        self._blocks.grow(sequence.id)
        return True

    def preempt(self, sequence: Sequence) -> None:
        """Takes a sequence's blocks away; what it has generated stays known and will be computed again."""
        queue = self.paused if sequence.state is SequenceState.PAUSED else self.running
        queue.remove(sequence)
        sequence.transition(SequenceState.PREEMPTED)
        self._release(sequence)
        sequence.num_computed = 0
        self.num_preemptions += 1
        if sequence.credit:
            self.waiting.add(sequence)

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
        elif sequence.state is SequenceState.PREEMPTED:
            self.waiting.add(sequence)
        else:
            self._start_waiting(sequence)

    def discard(self, sequence: Sequence) -> None:
        """Takes a sequence out, wherever it is, and frees its blocks: it is FINISHED."""
        has_blocks = sequence.state not in _WITHOUT_BLOCKS
        if sequence.state is SequenceState.PAUSED:
            self.paused.remove(sequence)
        elif has_blocks:
            self.running.remove(sequence)
        elif sequence.credit and not self._followers.discard(sequence):
            self.waiting.remove(sequence)
        self.out_of_credit.pop(sequence, None)
        sequence.transition(SequenceState.FINISHED)
        if has_blocks:
            self._release(sequence)
        for follower in self._followers.release(sequence):
            self._start_waiting(follower)

    def __len__(self) -> int:
        return len(self.waiting) + len(self.running) + len(self.out_of_credit) + len(self._followers)

    def check_integrity(self) -> None:
        """Raises IntegrityError where a sequence is not where state and credit put it, or its blocks do not match."""
        self.waiting.check_integrity()
        self.running.check_integrity()
        self.paused.check_integrity()
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

    def _start_waiting(self, sequence: Sequence) -> None:
        if self._followers.join(sequence):
            self.waiting.add(sequence)

    def _make_room(self, sequence: Sequence, paused_since: float) -> Reuse | None:
        """What `sequence` can reuse, once there is room for it; None, and nothing changes, where there cannot be."""
        find_room = self._blocks.find_room
        reuse = find_room(sequence)
        if reuse is not None or not self.paused:
            return reuse
        victims = [victim for victim in reversed(self.paused) if self.out_of_credit[victim] <= paused_since]
        if find_room(sequence, without=[victim.id for victim in victims]) is None:
            return None
        for victim in victims:
            self.preempt(victim)
            if (reuse := find_room(sequence)) is not None:
                break
        return reuse

    def _start(self, sequence: Sequence, reuse: Reuse, now: float) -> None:
        sequence.transition(SequenceState.PREFILL)
        sequence.block_table = self._blocks.open(sequence, reuse)
        sequence.num_computed = reuse.num_tokens
        if sequence.first_scheduled_at is None:
            sequence.first_scheduled_at = now
            sequence.num_cached = reuse.num_tokens
        self.running.add(sequence)

    def _release(self, sequence: Sequence) -> None:
        self._blocks.free(sequence)
        sequence.block_table = array("i")


def _check(sequence: Sequence, place: str, holds: bool) -> None:
    if not holds:
        raise IntegrityError(
            f"sequence {sequence.id} is {place} in state {sequence.state.name} with credit {sequence.credit}, "
            f"{sequence.num_computed} of {sequence.num_tokens} tokens computed and {len(sequence.block_table)} blocks"
        )
