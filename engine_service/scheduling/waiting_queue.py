"""Who is admitted next: priorities that age, and streams that take turns.

Requests of one priority form a class. The class goes first whose oldest request has the least rank, arrival less a head
start for priority; a class of lower priority catches up as it waits. Within a class those go first that have run before
and were preempted; then the streams take turns, each with its oldest request, a new stream behind all others.

So nothing starves: a request is passed over
- by its own class, at most once by each other stream for each request of its own stream up to itself;
- by another class only while that holds a request that came before it, or after it by less than the head start; each of
  these, too, waits for at most one turn of every other stream for each older request of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator

from engine_service.scheduling.block_pool import IntegrityError
from engine_service.scheduling.sequence import Rank, Sequence, SequenceState
from engine_service.scheduling.sorted_queue import SortedQueue


def by_rank(sequence: Sequence) -> Rank:
    """The key by which sequences are sorted."""
    return sequence.rank


class _PriorityClass:
    """The waiting sequences of one priority; each is in `all`, and in `returning` or in the queue of its stream."""

    def __init__(self) -> None:
        self.all: SortedQueue[Sequence] = SortedQueue(by_rank)
        self.returning: SortedQueue[Sequence] = SortedQueue(by_rank)
        self.streams: dict[Hashable, SortedQueue[Sequence]] = {}  # none is empty; in order of turns

    @property
    def first(self) -> Sequence:
        if self.returning:
            return self.returning.first
        return next(iter(self.streams.values())).first

    def add(self, sequence: Sequence) -> None:
        self.all.add(sequence)
        if sequence.state is SequenceState.PREEMPTED:
            self.returning.add(sequence)
            return
        stream_id = sequence.request.stream_id
        if stream_id not in self.streams:
            self.streams[stream_id] = SortedQueue(by_rank)
        self.streams[stream_id].add(sequence)

    def remove(self, sequence: Sequence) -> None:
        self.all.remove(sequence)
        if sequence.state is SequenceState.PREEMPTED:
            self.returning.remove(sequence)
            return
        stream_id = sequence.request.stream_id
        self.streams[stream_id].remove(sequence)
        if not self.streams[stream_id]:
            del self.streams[stream_id]

    def end_turn(self, stream_id: Hashable) -> None:
        """Puts the stream behind all others."""
        if stream_id in self.streams:
            self.streams[stream_id] = self.streams.pop(stream_id)


class WaitingQueue:
    """Sequences that have credit and no blocks: QUEUED or PREEMPTED, a state that does not change while inside."""

    def __init__(self) -> None:
        self._classes: dict[int, _PriorityClass] = {}  # by priority; none is empty
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[Sequence]:
        for priority_class in self._classes.values():
            yield from priority_class.all

    @property
    def first(self) -> Sequence:
        """Who is admitted next. ValueError when empty."""
        return min(self._classes.values(), key=lambda priority_class: priority_class.all.first.rank).first

    def add(self, sequence: Sequence) -> None:
        """Takes a sequence in."""
        priority = sequence.request.priority
        if priority not in self._classes:
            self._classes[priority] = _PriorityClass()
        self._classes[priority].add(sequence)
        self._length += 1

    def remove(self, sequence: Sequence) -> None:
        """Takes a sequence out. InternalError where it is not inside."""
        priority = sequence.request.priority
        self._classes[priority].remove(sequence)
        self._length -= 1
        if not self._classes[priority].all:
            del self._classes[priority]

    def take_first(self) -> Sequence:
        """Takes the first sequence out; unless it comes back from preemption, its stream has had its turn."""
        sequence = self.first
        priority_class = self._classes[sequence.request.priority]
        self.remove(sequence)
        if sequence.state is not SequenceState.PREEMPTED:
            priority_class.end_turn(sequence.request.stream_id)
        return sequence

    def check_integrity(self) -> None:
        """Raises IntegrityError, or the queues' InternalError, where a sequence is not exactly where it belongs."""
        for priority, priority_class in self._classes.items():
            priority_class.all.check_integrity()
            queues = [priority_class.returning, *priority_class.streams.values()]
            if sorted((sequence for queue in queues for sequence in queue), key=by_rank) != list(priority_class.all):
                raise IntegrityError(f"the streams of priority {priority} do not hold what waits with that priority")
            if not all(priority_class.streams.values()) or not priority_class.all:
                raise IntegrityError(f"an empty stream or class is kept for priority {priority}")
        if self._length != sum(1 for _ in self):
            raise IntegrityError(f"{self._length} sequences are counted as waiting; there are {sum(1 for _ in self)}")
