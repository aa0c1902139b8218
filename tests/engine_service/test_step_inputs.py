"""A step's arrays: flat, positions explicit, slots in the right blocks."""

from __future__ import annotations

from array import array

import numpy as np
import pytest

from engine_service.compute.device import Device
from engine_service.compute.step_inputs import TILE_ROWS, StepInputs, StepLimits, StepSize
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk
from engine_service.scheduling.sequence import Sequence
from service_common.errors import InternalError
from tests.in_process import request

LIMITS = StepLimits(max_tokens=40, max_seqs=4, max_logit_rows=6, max_blocks_per_seq=5, block_size=8)


def sequence(prompt: list[int], blocks: list[int]) -> Sequence:
    made = Sequence(
        request=request(1, prompt, 1), choice=0, rank=(0.0, 0, 0), max_tokens=1, end_token_ids=frozenset(), credit=1
    )
    made.block_table = array("i", blocks)
    return made


def test_a_mixed_step_is_laid_out_flat(device: Device) -> None:
    """A decode token, a chunk within a prompt and one that ends it, with two logit rows: every array says so."""
    inputs = StepInputs(device, LIMITS)
    decode = ScheduledChunk(sequence(list(range(10)), [4, 2]), 9, 1, 1)
    middle = ScheduledChunk(sequence(list(range(100, 140)), [9, 1, 7, 3, 5]), 6, 12, 0)
    last = ScheduledChunk(sequence([50, 51, 52], [0]), 0, 3, 2)
    assert inputs.upload([decode, middle, last]) == StepSize(16, 3, 4, 0)

    def read(name: str, count: int) -> list[int]:
        out = np.empty(count, np.int32)
        device.read(getattr(inputs, name), out)
        return out.tolist()

    assert read("counts", 5) == [16, 3, 4, 0, 1]
    assert read("token_ids", 16) == [9, *range(106, 118), 50, 51, 52]
    assert read("positions", 16) == [9, *range(6, 18), 0, 1, 2]
    assert read("slot_mapping", 16) == [
        2 * 8 + 1,
        *(9 * 8 + 6, 9 * 8 + 7),
        *(1 * 8 + offset for offset in range(8)),
        *(7 * 8 + 0, 7 * 8 + 1),
        *(0, 1, 2),
    ]
    assert read("logit_rows", 3) == [0, 14, 15]
    tiles = np.array(read("tiles", 16)).reshape(4, 4)
    assert tiles[:, :3].tolist() == [[0, 0, 1], [1, 1, TILE_ROWS], [1, 1 + TILE_ROWS, 12 - TILE_ROWS], [2, 13, 3]]
    tables = np.array(read("block_tables", 20)).reshape(4, 5)
    assert tables[0, :2].tolist() == [4, 2]
    assert tables[1].tolist() == [9, 1, 7, 3, 5]


def test_block_copies_are_laid_out_beside_the_chunks(device: Device) -> None:
    """Sources and targets in pairs, one source for several targets; the next step has none of them."""
    inputs = StepInputs(device, LIMITS)
    chunks = [ScheduledChunk(sequence([1], [4]), 0, 1, 1)]
    copies = (BlockCopy(4, 2), BlockCopy(4, 9), BlockCopy(0, 1))
    assert inputs.upload(chunks, copies).num_block_copies == 3
    pairs = np.empty((3, 2), np.int32)
    device.read(inputs.block_copies, pairs)
    assert pairs.tolist() == [[4, 2], [4, 9], [0, 1]]
    assert inputs.upload(chunks).num_block_copies == 0


@pytest.mark.parametrize("copies", [[(1, 2), (2, 3)], [(1, 2), (3, 2)], [(5, 5)]])
def test_block_copies_that_depend_on_each_other_are_an_error(device: Device, copies: list[tuple[int, int]]) -> None:
    """A target that is a source, or another copy's target, is named: copies of one step have no order."""
    with pytest.raises(InternalError, match=r"depend on each other: \[\("):
        StepInputs(device, LIMITS).upload([], [BlockCopy(*copy) for copy in copies])
