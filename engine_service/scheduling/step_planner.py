"""Which tokens go into the next forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import ScheduledChunk, ScheduledStep, SchedulerConfig
from engine_service.scheduling.request_table import RequestTable
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues


class StepPlanner:
    """Fills steps: decode tokens first, then prefill under the token budget, then newcomers, each in order of rank."""

    def __init__(
        self, config: SchedulerConfig, blocks: BlockManager, queues: SequenceQueues, requests: RequestTable
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._queues = queues
        self._requests = requests

    def plan(self, now: float) -> ScheduledStep | None:
        """The next step, None where nothing can run. Admits, preempts, and allocates the blocks the step writes."""
        chunks, prefilling = self._decode_chunks()
        num_decodes = len(chunks)
        budget = self._config.max_num_batched_tokens - num_decodes
        candidates = chain(prefilling, self._admissions(now))
        while budget and (sequence := next(candidates, None)):
            chunk = self._prefill_chunk(sequence, budget)
            chunks.append(chunk)
            budget -= chunk.num_tokens
        if not chunks:
            return None
        num_samples = num_decodes + sum(chunk.samples for chunk in islice(chunks, num_decodes, None))
        return ScheduledStep(chunks, self._config.max_num_batched_tokens - budget, num_samples)

    def _decode_chunks(self) -> tuple[list[ScheduledChunk], list[Sequence]]:
        """Chunks for those of the first max_num_seqs running sequences that decode, and the ones in prefill.

        Growing preempts from the end of the order, so never a sequence that was already looked at.
        """
        block_size = self._blocks.block_size
        prefill = SequenceState.PREFILL
        chunks: list[ScheduledChunk] = []
        prefilling: list[Sequence] = []
        for sequence in islice(self._queues.running, self._config.max_num_seqs):
            if sequence.state is prefill:
                prefilling.append(sequence)
                continue
            start = sequence.num_computed
            if start < len(sequence.block_table) * block_size or self._queues.grow(sequence):
                chunks.append(ScheduledChunk(sequence, start, 1, True))
        return chunks, prefilling

    def _prefill_chunk(self, sequence: Sequence, budget: int) -> ScheduledChunk:
        num_left = sequence.num_tokens - sequence.num_computed
        num_tokens = min(num_left, budget, self._config.max_prefill_chunk)
        return ScheduledChunk(sequence, sequence.num_computed, num_tokens, samples=num_tokens == num_left)

    def _admissions(self, now: float) -> Iterator[Sequence]:
        """Admits waiting sequences one by one, as asked for; ends at the first that does not fit; none is skipped."""
        queues = self._queues
        while queues.waiting and len(queues.running) < self._config.max_num_seqs:
            sequence = queues.waiting.first
            grace_seconds = self._config.pause_grace_seconds if queues.running else 0.0
            if not queues.make_room(self._blocks.blocks_for(sequence.num_tokens), now - grace_seconds):
                return
            queues.admit(sequence)
            if sequence.first_scheduled_at is None:
                sequence.first_scheduled_at = now
                self._requests.mark_started(sequence.request.id)
            yield sequence
