"""Faults put in on purpose, each of which must change bits under load and none alone: the check notices all of them."""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from engine_service import loader
from engine_service.compute import kernel_sources
from engine_service.compute.device import Device
from engine_service.compute.fused_program import FusedProgram
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.model_runner import ModelRunner
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.scheduling.block_manager import BlockManager, Reuse
from engine_service.scheduling.block_pool import BlockPool
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk, ScheduledStep
from engine_service.scheduling.prefix_cache import PrefixCache, PrefixMatch
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.scheduler import Scheduler
from engine_service.scheduling.sequence import Sequence as ScheduledSequence
from engine_service.scheduling.sequence_queues import SequenceQueues
from engine_service.scheduling.step_planner import StepPlanner
from tests.identity.check import check_world
from tests.identity.models import make_model
from tests.identity.world import World

Fault = Callable[[pytest.MonkeyPatch], None]
NUM_REQUESTS = 20
SEEDS = (0, 2, 3, 7)  # tried in turn: the first shows most faults


def wrong_block(patch: pytest.MonkeyPatch) -> None:
    """The last block in a sequence's table is that of its neighbour in the step."""
    run = ModelRunner.run

    def run_wrong(self: ModelRunner, step: ScheduledStep) -> list[SampledToken]:
        tables = [chunk.sequence.block_table for chunk in step.chunks]
        for chunk, table, neighbour in zip(step.chunks, tables, tables[1:] + tables[:1], strict=True):
            chunk.sequence.block_table = array("i", [*table[:-1], neighbour[-1]])
        tokens = run(self, step)
        for chunk, table in zip(step.chunks, tables, strict=True):
            chunk.sequence.block_table = table
        return tokens

    patch.setattr(ModelRunner, "run", run_wrong)


def skipped_copy(patch: pytest.MonkeyPatch) -> None:
    """Copies on write are planned and never made."""
    run = ModelRunner.run
    patch.setattr(ModelRunner, "run", lambda self, step: run(self, replace(step, block_copies=())))


def copy_of_the_wrong_block(patch: pytest.MonkeyPatch) -> None:
    """A copy is made of the first block of the sequence that is first in the step."""
    run = ModelRunner.run

    def run_wrong(self: ModelRunner, step: ScheduledStep) -> list[SampledToken]:
        first = step.chunks[0].sequence.block_table[0]
        copies = tuple(BlockCopy(first, copy.target) for copy in step.block_copies if copy.target != first)
        return run(self, replace(step, block_copies=copies))

    patch.setattr(ModelRunner, "run", run_wrong)


def stale_position(patch: pytest.MonkeyPatch) -> None:
    """A preempted sequence goes on where it was, though its blocks are gone."""
    preempt, start = SequenceQueues.preempt, SequenceQueues._start
    positions: dict[ScheduledSequence, int] = {}

    def preempt_noting(self: SequenceQueues, sequence: ScheduledSequence) -> None:
        positions[sequence] = sequence.num_computed
        preempt(self, sequence)

    def start_stale(self: SequenceQueues, sequence: ScheduledSequence, reuse: Reuse, now: float) -> None:
        start(self, sequence, reuse, now)
        sequence.num_computed = positions.get(sequence, sequence.num_computed)

    patch.setattr(SequenceQueues, "preempt", preempt_noting)
    patch.setattr(SequenceQueues, "_start", start_stale)


def order_by_batch_size(patch: pytest.MonkeyPatch) -> None:
    """The norm adds its squares in another order where a step has more than four rows."""
    right, halves = "sum_of_squares(x, n) /", "sum_of_squares(x, n / 2) + sum_of_squares(x + n / 2, n - n / 2)"
    patch_kernel(patch, "rms_norm", right, f"(NUM_ITEMS > 4 ? {halves} : sum_of_squares(x, n)) /")


def partition_by_batch_size(patch: pytest.MonkeyPatch) -> None:
    """Attention cuts positions into smaller partitions where a step has more than one tile."""
    for use in ("start += PARTITION", "min(PARTITION, num_tokens", "min(PARTITION, s.num_visible"):
        patch_kernel(patch, "attention", use, use.replace("PARTITION", "(num_tiles > 1 ? 64 : PARTITION)"))


def scales_left_behind(patch: pytest.MonkeyPatch) -> None:
    """A copied block of an int8 cache keeps the scales of what was there before."""
    patch_kernel(patch, "copy_blocks", "KV_HEAD_SIZE * (int)sizeof(kv_t) / 16", "HDP * BLOCK_SIZE / 16")


def match_without_comparison(patch: pytest.MonkeyPatch) -> None:
    """A cached block is taken for the one that is looked for if it begins with the same token."""

    def find_by_first_token(self: PrefixCache, salt: str, token_ids: tuple[int, ...]) -> PrefixMatch:
        node, block_ids = self.root(salt), list[int]()
        for start in range(0, len(token_ids) - self._block_size + 1, self._block_size):
            child = next((child for child in node.children if child.token_ids[0] == token_ids[start]), None)
            if child is None or len(child.token_ids) < self._block_size:
                break
            node = child
            block_ids.append(child.block_id)
        return PrefixMatch(node, block_ids, None, 0)

    patch.setattr(PrefixCache, "find", find_by_first_token)


def freed_while_shared(patch: pytest.MonkeyPatch) -> None:
    """References beyond a block's first are not counted: whoever lets go of it first frees it for all."""
    retain, release = BlockPool.retain, BlockPool.release

    def retain_first(self: BlockPool, block_id: int) -> None:
        if self.reference_count(block_id) == 0:
            retain(self, block_id)

    def release_once(self: BlockPool, block_id: int) -> None:
        if self.reference_count(block_id) > 0:
            release(self, block_id)

    patch.setattr(BlockPool, "retain", retain_first)
    patch.setattr(BlockPool, "release", release_once)


def evicted_but_found(patch: pytest.MonkeyPatch) -> None:
    """The prefix cache still finds a block that was given away."""
    patch.setattr(PrefixCache, "forget", lambda self, block_id: None)


def counter_by_slot(patch: pytest.MonkeyPatch) -> None:
    """The counter of random numbers is shifted by the row's place in the batch."""
    fill_params = Sampler._fill_params
    leave_out_self_test(patch)

    def fill_shifted(self: Sampler, rows: Sequence[RowParams]) -> None:
        fill_params(self, [row._replace(position=row.position + slot) for slot, row in enumerate(rows)])

    patch.setattr(Sampler, "_fill_params", fill_shifted)


def chunk_one_too_far(patch: pytest.MonkeyPatch) -> None:
    """A prompt's later chunks begin one token too late."""
    prefill_chunk = StepPlanner._prefill_chunk

    def prefill_late(self: StepPlanner, sequence: ScheduledSequence, budget: int, max_rows: int) -> ScheduledChunk:
        sequence.num_computed += 0 < sequence.num_computed < sequence.num_tokens - 1
        return prefill_chunk(self, sequence, budget, max_rows)

    patch.setattr(StepPlanner, "_prefill_chunk", prefill_late)


def one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    """A copied block is taken to hold one token more than it has in common."""
    find_room = BlockManager.find_room

    def find_more(self: BlockManager, sequence: ScheduledSequence, without: Sequence[object] = ()) -> Reuse | None:
        reuse = find_room(self, sequence, without)  # type: ignore[arg-type]
        if reuse is None or reuse.copy_source is None or reuse.num_tokens + 1 >= sequence.num_tokens:
            return reuse
        return reuse._replace(num_tokens=reuse.num_tokens + 1)

    patch.setattr(BlockManager, "find_room", find_more)


def draft_accepted_unseen(patch: pytest.MonkeyPatch) -> None:
    """What follows a draft token is taken in though another token was sampled in its place."""
    verify = Scheduler._verify

    def verify_blindly(
        self: Scheduler, sequence: ScheduledSequence, draft_ids: tuple[int, ...], tokens: list[SampledToken], now: float
    ) -> None:
        verify(self, sequence, tuple(token.token_id for token in tokens[:-1]), tokens, now)

    patch.setattr(Scheduler, "_verify", verify_blindly)


FAULTS: list[Fault] = [
    wrong_block,
    skipped_copy,
    copy_of_the_wrong_block,
    stale_position,
    order_by_batch_size,
    partition_by_batch_size,
    scales_left_behind,
    match_without_comparison,
    freed_while_shared,
    evicted_but_found,
    counter_by_slot,
    chunk_one_too_far,
    one_token_too_many,
    draft_accepted_unseen,
]


def patch_kernel(patch: pytest.MonkeyPatch, source: str, right: str, wrong: str) -> None:
    """Changes a kernel."""
    leave_out_self_test(patch)
    read = kernel_sources.part

    def read_wrong(path: str) -> str:
        text = read(path)
        assert path != f"cpu/{source}.cl" or right in text
        return text.replace(right, wrong) if path == f"cpu/{source}.cl" else text

    patch.setattr(kernel_sources, "part", read_wrong)


def leave_out_self_test(patch: pytest.MonkeyPatch) -> None:
    """Otherwise the self-test at the engine's start would be the first to notice some faults."""

    def untested(device: Device, *arguments: object, **options: object) -> FusedProgram:
        return FusedProgram(KernelLibrary(device))

    patch.setattr(loader, "choose_program", untested)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("Q8_0", tmp_path_factory.mktemp("identity"))


def num_wrong(model: Path, seed: int) -> int:
    """Requests of a world that came to their end and differ. What a broken engine leaves behind does not count."""
    result = check_world(World(model, "int8", threads=2, seed=seed, num_requests=NUM_REQUESTS))
    ended_ids = {
        request.id
        for request, answers in result.outcome.answered
        if all(answer.reason is not None for answer in answers)
    }
    return len(ended_ids & result.differences.keys())


def test_nothing_differs_without_a_fault(model: Path) -> None:
    """The worlds that show the faults are themselves right."""
    for seed in SEEDS:
        result = check_world(World(model, "int8", threads=2, seed=seed, num_requests=NUM_REQUESTS))
        assert not result.differences
        assert not result.outcome.error
        assert len(result.outcome.answered) == NUM_REQUESTS


@pytest.mark.parametrize("fault", FAULTS, ids=[fault.__name__ for fault in FAULTS])
def test_a_fault_is_noticed(fault: Fault, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Requests under load differ from the same requests alone, with the fault in both."""
    fault(monkeypatch)
    assert any(num_wrong(model, seed) > 0 for seed in SEEDS)
