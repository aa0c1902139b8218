"""Which tokens go into the next forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk, ScheduledStep, SchedulerConfig
from engine_service.scheduling.prefill_budget import PrefillBudget
from engine_service.scheduling.request_table import RequestTable
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues


class StepPlanner:
    """Fills steps: decode tokens first, then prefill under the token budget, then newcomers, each in order of rank."""

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        queues: SequenceQueues,
        requests: RequestTable,
        prefill_budget: PrefillBudget,
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._queues = queues
        self._requests = requests
        self._prefill_budget = prefill_budget

    def plan(self, now: float) -> ScheduledStep | None:
        """The next step, None where nothing can run. Admits, preempts, and allocates the blocks the step writes."""
        chunks, prefilling = self._decode_chunks()
        num_decodes = len(chunks)
        budget = min(self._config.max_num_batched_tokens - num_decodes, self._prefill_budget.limit(num_decodes))
        num_tokens, num_rows = num_decodes, num_decodes
        copies: list[BlockCopy] = []
        candidates = chain(prefilling, self._admissions(now))
        while budget and (sequence := next(candidates, None)):
            chunk = self._prefill_chunk(sequence, budget)
            chunks.append(chunk)
            if copy := self._blocks.start_copy(sequence.id):
                copies.append(copy)
            budget -= chunk.num_tokens
            num_tokens += chunk.num_tokens
            num_rows += chunk.num_rows
        return ScheduledStep(chunks, num_tokens, num_rows, tuple(copies), num_decodes) if chunks else None

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
                chunks.append(ScheduledChunk(sequence, start, 1, 1))
        return chunks, prefilling

    def _prefill_chunk(self, sequence: Sequence, budget: int) -> ScheduledChunk:
        num_left = sequence.num_tokens - sequence.num_computed
        num_tokens = min(num_left, budget, self._config.max_prefill_chunk)
        return ScheduledChunk(sequence, sequence.num_computed, num_tokens, num_rows=int(num_tokens == num_left))

    def _admissions(self, now: float) -> Iterator[Sequence]:
        """Admits waiting sequences one by one, as asked for; ends at the first that does not fit; none is skipped."""
        queues = self._queues
        while queues.waiting and len(queues.running) < self._config.max_num_seqs:
            grace_seconds = self._config.pause_grace_seconds if queues.running else 0.0
            sequence = queues.admit_first(now, now - grace_seconds)
            if sequence is None:
                return
            self._requests.mark_started(sequence.request.id)
            yield sequence
