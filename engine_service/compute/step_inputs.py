"""The inputs of one forward pass, flat over its ragged batch: built on the host, uploaded as one array."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk
from service_common.errors import InternalError

TILE_ROWS = 8  # rows of one sequence that an attention work-item serves
TOKEN_COUNT, LOGIT_COUNT = 0, 1  # where `counts` has the number of tokens and of rows whose logits are wanted


@dataclass(frozen=True)
class StepLimits:
    """The largest step that buffers are made for."""

    max_tokens: int
    max_seqs: int
    max_logit_rows: int
    max_blocks_per_seq: int
    block_size: int

    @property
    def max_tiles(self) -> int:
        """Attention tiles of the worst batch: every sequence ends in an unfilled tile."""
        return self.max_tokens // TILE_ROWS + self.max_seqs


class StepSize(NamedTuple):
    """How much of the buffers a step uses; the numbers are in `counts` in this order."""

    num_tokens: int
    num_logit_rows: int
    num_tiles: int
    num_block_copies: int
    num_steps: int = 1


class StepInputs:
    """Owns the input buffers. All are int32 views of one device buffer, so that a step costs one upload.

    Attributes:
        counts: [5] the StepSize
        token_ids, positions, slot_mapping: [max_tokens]
        logit_rows: [max_logit_rows] rows whose logits are wanted
        tiles: [max_tiles][4] index of the sequence in block_tables, first row, number of rows, unused
        block_tables: [max_seqs][max_blocks_per_seq]
        block_copies: [max_seqs][2] source and target block
    """

    counts: cl.Buffer
    token_ids: cl.Buffer
    positions: cl.Buffer
    slot_mapping: cl.Buffer
    logit_rows: cl.Buffer
    tiles: cl.Buffer
    block_tables: cl.Buffer
    block_copies: cl.Buffer

    def __init__(self, device: Device, limits: StepLimits) -> None:
        self._device, self.limits = device, limits
        shapes = {
            "counts": (len(StepSize._fields),),
            "token_ids": (limits.max_tokens,),
            "positions": (limits.max_tokens,),
            "slot_mapping": (limits.max_tokens,),
            "logit_rows": (limits.max_logit_rows,),
            "tiles": (limits.max_tiles, 4),
            "block_tables": (limits.max_seqs, limits.max_blocks_per_seq),
            "block_copies": (limits.max_seqs, 2),
        }
        align = max(device.view_alignment, 64) // 4
        sizes = {name: -(-int(np.prod(shape)) // align) * align for name, shape in shapes.items()}
        self._host_array = np.zeros(sum(sizes.values()), np.int32)
        self._buffer = device.zeros(self._host_array.nbytes, "step_inputs")
        self._host: dict[str, NDArray[np.int32]] = {}
        start = 0
        for name, shape in shapes.items():
            count = int(np.prod(shape))
            self._host[name] = self._host_array[start : start + count].reshape(shape)
            setattr(self, name, device.view(self._buffer, start * 4, count * 4))
            start += sizes[name]

    def upload(self, chunks: Sequence[ScheduledChunk], block_copies: Sequence[BlockCopy] = ()) -> StepSize:
        """Fills and uploads the inputs for `chunks`; logits are wanted for the last `num_rows` rows of each.

        `block_copies` are made before the pass, in any order: at most one for each of max_seqs sequences, and no target
        may be a source or another's target. InternalError where one is.
        """
        _check_independent(block_copies)
        host = self._host
        row = num_logit_rows = num_tiles = 0
        for index, chunk in enumerate(chunks):
            stop = row + chunk.num_tokens
            self._fill_rows(chunk, row, stop)
            block_table = chunk.sequence.block_table
            host["block_tables"][index, : len(block_table)] = block_table
            for first in range(row, stop, TILE_ROWS):
                host["tiles"][num_tiles] = index, first, min(TILE_ROWS, stop - first), 0
                num_tiles += 1
            for wanted in range(stop - chunk.num_rows, stop):
                host["logit_rows"][num_logit_rows] = wanted
                num_logit_rows += 1
            row = stop
        size = StepSize(row, num_logit_rows, num_tiles, len(block_copies))
        host["counts"][:] = size
        if block_copies:
            host["block_copies"][: len(block_copies)] = block_copies
        self._device.write(self._buffer, self._host_array)
        return size

    def _fill_rows(self, chunk: ScheduledChunk, row: int, stop: int) -> None:
        host, block_size = self._host, self.limits.block_size
        host["token_ids"][row:stop] = chunk.token_ids()
        positions = np.arange(chunk.start, chunk.start + chunk.num_tokens, dtype=np.int32)
        host["positions"][row:stop] = positions
        blocks = np.frombuffer(chunk.sequence.block_table, np.int32)
        host["slot_mapping"][row:stop] = blocks[positions // block_size] * block_size + positions % block_size


def _check_independent(block_copies: Sequence[BlockCopy]) -> None:
    sources, targets = {copy.source for copy in block_copies}, {copy.target for copy in block_copies}
    if len(targets) < len(block_copies) or sources & targets:
        raise InternalError(
            f"block copies of one step depend on each other: {[tuple(copy) for copy in block_copies]}",
            reason="BLOCK_COPIES_CHAINED",
        )
