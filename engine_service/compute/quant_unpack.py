"""The blocks of GGUF's quantised tensor types, taken apart into codes and scales without any arithmetic on values.

Follows ggml's `ggml-common.h` (block structs) and `ggml-quants.c` (dequantize_row_*).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import numpy as np
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

Bytes: TypeAlias = NDArray[np.uint8]


class BlockFields(NamedTuple):
    """What R x B blocks hold; every array's first two axes are (R, B).

    A weight is `(code - zero) * scale` (+ `minimum`), with zero 8, 16, 32 or 128 by type. In two-level types
    the block's `scale` is multiplied by the group's `group_scales`, and `minimum` by `-group_minimums`.
    """

    codes: Bytes  # (R, B, elements of a block)
    scale: NDArray[np.uint16]  # (R, B) f16 bits
    minimum: NDArray[np.uint16] | None = None  # (R, B) f16 bits
    group_scales: Bytes | None = None  # (R, B, groups): 6 bits, or int8 bits in Q6_K
    group_minimums: Bytes | None = None  # (R, B, groups): 6 bits


def _f16(field: Bytes) -> NDArray[np.uint16]:
    """The bits of a little-endian half: (R, B, 2) bytes to (R, B)."""
    return np.ascontiguousarray(field).view("<u2")[..., 0]


def _nibbles(field: Bytes) -> Bytes:
    """(..., c) bytes to (..., 2 * c) codes: all the low nibbles, then all the high ones."""
    return np.concatenate([field & 0x0F, field >> 4], axis=-1)


def _high_bits(field: Bytes) -> Bytes:
    """(R, B, 4) bytes to (R, B, 32): bit j of the little-endian word, as the fifth bit of code j."""
    return np.unpackbits(field, axis=-1, bitorder="little") << np.uint8(4)


def _q8_0(blocks: Bytes) -> BlockFields:
    return BlockFields(blocks[..., 2:34] ^ np.uint8(0x80), _f16(blocks[..., :2]))


def _q4_0(blocks: Bytes) -> BlockFields:
    return BlockFields(_nibbles(blocks[..., 2:18]), _f16(blocks[..., :2]))


def _q4_1(blocks: Bytes) -> BlockFields:
    return BlockFields(_nibbles(blocks[..., 4:20]), _f16(blocks[..., :2]), _f16(blocks[..., 2:4]))


def _q5_0(blocks: Bytes) -> BlockFields:
    codes = _nibbles(blocks[..., 6:22]) | _high_bits(blocks[..., 2:6])
    return BlockFields(codes, _f16(blocks[..., :2]))


def _q5_1(blocks: Bytes) -> BlockFields:
    codes = _nibbles(blocks[..., 8:24]) | _high_bits(blocks[..., 4:8])
    return BlockFields(codes, _f16(blocks[..., :2]), _f16(blocks[..., 2:4]))


def _six_bit_pairs(packed: Bytes) -> tuple[Bytes, Bytes]:
    """(R, B, 12) bytes to the eight 6-bit scales and the eight 6-bit minimums (ggml's get_scale_min_k4)."""
    scale, minimum, low = packed[..., 0:4], packed[..., 4:8], packed[..., 8:12]
    scales = np.concatenate([scale & 63, (low & 0x0F) | (scale >> 6 << 4)], axis=-1)
    minimums = np.concatenate([minimum & 63, (low >> 4) | (minimum >> 6 << 4)], axis=-1)
    return scales, minimums


def _k_nibbles(field: Bytes) -> Bytes:
    """(R, B, 128) bytes to (R, B, 8, 32): each 32 bytes are one group's low nibbles and the next group's high ones."""
    rows, blocks, _ = field.shape
    return _nibbles(field.reshape(rows, blocks, 4, 32)).reshape(rows, blocks, 8, 32)


def _k_fields(blocks: Bytes, codes: Bytes) -> BlockFields:
    scales, minimums = _six_bit_pairs(blocks[..., 4:16])
    flat = codes.reshape(*blocks.shape[:2], 256)
    return BlockFields(flat, _f16(blocks[..., :2]), _f16(blocks[..., 2:4]), scales, minimums)


def _q4_k(blocks: Bytes) -> BlockFields:
    return _k_fields(blocks, _k_nibbles(blocks[..., 16:144]))


def _q5_k(blocks: Bytes) -> BlockFields:
    bits = (blocks[..., None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & np.uint8(1)
    return _k_fields(blocks, _k_nibbles(blocks[..., 48:176]) | (bits << np.uint8(4)))


def _q6_k(blocks: Bytes) -> BlockFields:
    rows, count, _ = blocks.shape
    low = _nibbles(blocks[..., :128].reshape(rows, count, 2, 64)).reshape(rows, count, 2, 4, 32)
    shifts = np.array([0, 2, 4, 6], np.uint8)[:, None]
    high = (blocks[..., 128:192].reshape(rows, count, 2, 1, 32) >> shifts) & np.uint8(3)
    codes = (low | (high << np.uint8(4))).reshape(rows, count, 256)
    return BlockFields(codes, _f16(blocks[..., 208:210]), group_scales=blocks[..., 192:208])


_UNPACKERS: dict[GgmlType, Callable[[Bytes], BlockFields]] = {
    GgmlType.Q8_0: _q8_0,
    GgmlType.Q4_0: _q4_0,
    GgmlType.Q4_1: _q4_1,
    GgmlType.Q5_0: _q5_0,
    GgmlType.Q5_1: _q5_1,
    GgmlType.Q4_K: _q4_k,
    GgmlType.Q5_K: _q5_k,
    GgmlType.Q6_K: _q6_k,
}


def unpack_blocks(tensor_type: GgmlType, blocks: Bytes) -> BlockFields:
    """Takes apart `blocks` (R, B, bytes of one block) of a quantised type; KeyError for a type that has none."""
    return _UNPACKERS[tensor_type](blocks)
