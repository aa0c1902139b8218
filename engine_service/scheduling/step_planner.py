"""Which tokens go into the next forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain, islice

from engine_service.scheduling.block_manager import BlockManager
from engine_service.scheduling.drafter import Drafter
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk, ScheduledStep, SchedulerConfig
from engine_service.scheduling.prefill_budget import PrefillBudget
from engine_service.scheduling.request_table import RequestTable
from engine_service.scheduling.sequence import Sequence, SequenceState
from engine_service.scheduling.sequence_queues import SequenceQueues


class StepPlanner:
    """Fills steps: decode tokens, drafts, prefill under the token budget, then newcomers, each in order of rank."""

    def __init__(
        self,
        config: SchedulerConfig,
        blocks: BlockManager,
        queues: SequenceQueues,
        requests: RequestTable,
        prefill_budget: PrefillBudget,
        drafter: Drafter,
    ) -> None:
        self._config = config
        self._blocks = blocks
        self._queues = queues
        self._requests = requests
        self._prefill_budget = prefill_budget
        self._drafter = drafter

    def plan(self, now: float) -> ScheduledStep | None:
        """The next step, None where nothing can run. Admits, preempts, and allocates the blocks the step writes."""
        chunks, prefilling = self._decode_chunks()
        num_decodes = len(chunks)
        num_drafted = self._add_drafts(chunks)
        num_tokens = num_rows = num_decodes + num_drafted
        budget = min(self._config.max_num_batched_tokens - num_tokens, self._prefill_budget.limit(num_tokens))
        copies: list[BlockCopy] = []
        candidates = chain(prefilling, self._admissions(now))
        while budget and num_rows < self._config.max_logit_rows and (sequence := next(candidates, None)):
            chunk = self._prefill_chunk(sequence, budget, self._config.max_logit_rows - num_rows)
            chunks.append(chunk)
            if copy := self._blocks.start_copy(sequence.id):
                copies.append(copy)
            budget -= chunk.num_tokens
            num_tokens += chunk.num_tokens
            num_rows += chunk.num_rows
        return ScheduledStep(chunks, num_tokens, num_rows, tuple(copies), num_decodes, num_drafted) if chunks else None

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

    def _add_drafts(self, chunks: list[ScheduledChunk]) -> int:
        """Appends drafts to decode chunks, in order of rank; how many tokens that adds.

        Drafts take the spare rows of logits, and at most half of the tokens that are left, so that prefill goes on.
        """
        num_decodes = len(chunks)
        num_left = min(self._config.num_spare_rows, (self._config.max_num_batched_tokens - num_decodes) // 2)
        num_spare = num_left
        for index, chunk in enumerate(chunks):
            sequence = chunk.sequence
            if not sequence.max_draft_tokens or not num_left:
                continue
            max_tokens = min(num_left, sequence.num_allowed - 1)
            draft_ids = self._drafter.draft(sequence, max_tokens, num_decodes)
            draft_ids = draft_ids[: self._room_for_draft(chunk, len(draft_ids))]
            if draft_ids:
                num_tokens = 1 + len(draft_ids)
                chunks[index] = ScheduledChunk(sequence, chunk.start, num_tokens, num_tokens, draft_ids)
                num_left -= len(draft_ids)
        return num_spare - num_left

    def _room_for_draft(self, chunk: ScheduledChunk, num_wanted: int) -> int:
        """Draft tokens behind `chunk` that have slots, after taking blocks that no sequence uses: none is preempted."""
        block_table, block_size = chunk.sequence.block_table, self._blocks.block_size
        stop = chunk.start + chunk.num_tokens
        while len(block_table) * block_size < stop + num_wanted and self._blocks.can_grow():
            self._blocks.grow(chunk.sequence.id)
        return min(num_wanted, len(block_table) * block_size - stop)

    def _prefill_chunk(self, sequence: Sequence, budget: int, max_rows: int) -> ScheduledChunk:
        start, first_row = sequence.num_computed, max(sequence.num_computed, sequence.first_row)
        num_left = sequence.num_tokens - start
        num_tokens = min(num_left, budget, self._config.max_prefill_chunk, first_row - start + max_rows)
        return ScheduledChunk(sequence, start, num_tokens, num_rows=max(0, start + num_tokens - first_row))

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
