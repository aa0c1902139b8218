"""Weight layouts on the device: which there are, their exact sizes, and the exact repacking of file rows into them.

A matrix (N, K) is stored as tiles of 8 rows x one block of K, ordered [ceil(N / 8)][K / block]; missing rows are zero.
Lanes of a kernel are the 8 rows of a tile.

Float layouts: block 1; a tile is the element of each row: [8].
Quantised layouts: a tile is, in this order,
  codes         [block / 32] times the planes of 32 codes a row: CODE_BITS x 32 bytes
  group_scales  GROUP 32: u8 [8 groups][8 rows], then u8 minimums alike; GROUP 16: int8 [8 groups of 32][8 rows][2]
  scale         f16 [8]
  minimum       f16 [8], where HAS_MIN

Codes are unsigned; the zero point is CODE_ZERO (int8 codes are stored plus 128). Quad p (0..7) of 32 codes is
k = 4p..4p+3, and quad vector Q[p] is the 32 bytes [8 rows][4] of it. The planes are
  8 bits     Q[0..7]
  4 bits     4 vectors: vector v = Q[2v] in the low nibbles, Q[2v + 1] in the high ones
  fifth bit  1 vector: bit p of a byte belongs to Q[p]
  bits 5, 6  2 vectors: field f (bits 2f, 2f + 1) of vector u belongs to Q[4u + f]
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from engine_service.compute.quant_unpack import BlockFields, Bytes, unpack_blocks
from service_common.errors import StartupError

ROWS = 8
_CODES = 32


@dataclass(frozen=True)
class Layout:
    """One device layout. `defines` are the kernel sources' names for it (see kernels/weight_tile.cl)."""

    tensor_type: GgmlType
    block: int
    tile_bytes: int
    defines: Mapping[str, int] = field(hash=False)

    @property
    def name(self) -> str:
        """GGUF's name of the type."""
        return str(self.tensor_type.name)

    @property
    def is_quantised(self) -> bool:
        """Whether the matmul takes quantised activations."""
        return "CODE_BITS" in self.defines

    def file_row_bytes(self, k: int) -> int:
        """Bytes of one row of k elements in the file; ValueError where k is not a whole number of blocks."""
        elements, nbytes = GGML_QUANT_SIZES[self.tensor_type]
        if k <= 0 or k % elements:
            raise ValueError(f"a row of {self.name} has {k} elements; it must be a positive multiple of {elements}")
        return k // elements * nbytes


def _float_layout(tensor_type: GgmlType, itemsize: int) -> Layout:
    return Layout(tensor_type, 1, ROWS * itemsize, MappingProxyType({f"WEIGHT_{tensor_type.name}": 1}))


def _quantised_layout(tensor_type: GgmlType, bits: int, *, zero: int = 0, has_min: bool, group: int = 0) -> Layout:
    blocks = 8 if group else 1
    group_bytes = ROWS * blocks * 2 if group else 0
    defines = {"CODE_BITS": bits, "CODE_ZERO": zero, "HAS_MIN": int(has_min), "GROUP": group}
    tile_bytes = blocks * bits * _CODES + group_bytes + ROWS * (4 if has_min else 2)
    return Layout(tensor_type, blocks * _CODES, tile_bytes, MappingProxyType(defines))


_LAYOUTS: dict[GgmlType, Layout] = {
    layout.tensor_type: layout
    for layout in (
        _float_layout(GgmlType.F32, 4),
        _float_layout(GgmlType.F16, 2),
        _float_layout(GgmlType.BF16, 2),
        _quantised_layout(GgmlType.Q8_0, 8, zero=128, has_min=False),
        _quantised_layout(GgmlType.Q4_0, 4, zero=8, has_min=False),
        _quantised_layout(GgmlType.Q4_1, 4, has_min=True),
        _quantised_layout(GgmlType.Q5_0, 5, zero=16, has_min=False),
        _quantised_layout(GgmlType.Q5_1, 5, has_min=True),
        _quantised_layout(GgmlType.Q4_K, 4, has_min=True, group=32),
        _quantised_layout(GgmlType.Q5_K, 5, has_min=True, group=32),
        _quantised_layout(GgmlType.Q6_K, 6, zero=32, has_min=False, group=16),
    )
}

SUPPORTED_TYPES = frozenset(_LAYOUTS)


def layout_for(tensor_type: GgmlType) -> Layout:
    """The device layout that holds `tensor_type` exactly; StartupError lists the supported types if none does."""
    try:
        return _LAYOUTS[tensor_type]
    except KeyError:
        supported = ", ".join(layout.name for layout in _LAYOUTS.values())
        raise StartupError(f"tensor type {tensor_type.name} is not supported; supported are {supported}") from None


def packed_bytes(layout: Layout, n: int, k: int) -> int:
    """Device bytes of an (n, k) matrix; ValueError where the layout cannot hold that shape."""
    layout.file_row_bytes(k)
    if n <= 0:
        raise ValueError(f"a matrix has {n} rows; it must have at least one")
    return -(-n // ROWS) * (k // layout.block) * layout.tile_bytes


def pack(layout: Layout, raw: Bytes, k: int) -> Bytes:
    """File rows `raw` (n, row_bytes) as the `packed_bytes(layout, n, k)` bytes of the device, in one dimension.

    The reference for kernels/cpu/repack.cl. Takes several times the memory of `raw`. ValueError for another row size.
    """
    n, row_bytes = raw.shape
    if row_bytes != layout.file_row_bytes(k):
        raise ValueError(f"a row of {k} {layout.name} elements has {row_bytes} bytes; need {layout.file_row_bytes(k)}")
    rows = np.concatenate([raw, np.zeros((-n % ROWS, row_bytes), np.uint8)])
    return _pack_quantised(layout, rows) if layout.is_quantised else _pack_float(rows, row_bytes // k)


def _pack_float(rows: Bytes, itemsize: int) -> Bytes:
    elements = rows.view(f"u{itemsize}")
    return _interleave(elements).reshape(-1).view(np.uint8)


def _pack_quantised(layout: Layout, rows: Bytes) -> Bytes:
    _, block_bytes = GGML_QUANT_SIZES[layout.tensor_type]
    fields = unpack_blocks(layout.tensor_type, rows.reshape(len(rows), -1, block_bytes))
    parts = [_code_planes(fields.codes, layout.defines["CODE_BITS"]), *_scale_parts(fields)]
    return np.concatenate([part.view(np.uint8) for part in parts], axis=-1).reshape(-1)


def _interleave(values: NDArray[Any]) -> NDArray[Any]:
    """(rows, B, ...) to (rows / 8, B, 8, ...)."""
    return np.ascontiguousarray(values.reshape(-1, ROWS, *values.shape[1:]).swapaxes(1, 2))


def _scale_parts(fields: BlockFields) -> Iterator[NDArray[Any]]:
    """The parts of the tiles after the codes, each (groups of 8 rows, B, bytes or halves)."""
    if fields.group_scales is not None:
        halves = fields.group_minimums is None
        yield _group_part(fields.group_scales, 2 if halves else 1)
    if fields.group_minimums is not None:
        yield _group_part(fields.group_minimums, 1)
    yield _interleave(fields.scale)
    if fields.minimum is not None:
        yield _interleave(fields.minimum)


def _group_part(values: Bytes, per_block: int) -> Bytes:
    """(rows, B, 8 * per_block) to (rows / 8, B, 8 groups x 8 rows x per_block)."""
    tiles = _interleave(values)
    groups, blocks = tiles.shape[:2]
    by_group = tiles.reshape(groups, blocks, ROWS, -1, per_block).swapaxes(2, 3)
    return np.ascontiguousarray(by_group).reshape(groups, blocks, -1)


def _code_planes(codes: Bytes, bits: int) -> Bytes:
    """(rows, B, elements) to (rows / 8, B, elements / 32 x bits x 32): the planes of the module's docstring."""
    rows, blocks, elements = codes.shape
    quads = codes.view(np.uint32).reshape(-1, ROWS, blocks, elements // _CODES, 8).transpose(0, 2, 3, 4, 1)
    q = np.ascontiguousarray(quads).view(np.uint8)
    if bits == 8:
        return q.reshape(rows // ROWS, blocks, -1)
    low = (q[..., 0::2, :] & np.uint8(0x0F)) | (q[..., 1::2, :] << np.uint8(4))
    planes = low if bits == 4 else np.concatenate([low, _high_planes(q >> np.uint8(4), bits - 4)], axis=-2)
    return planes.reshape(rows // ROWS, blocks, -1)


def _high_planes(high: Bytes, width: int) -> Bytes:
    """Fields of `width` bits for the 8 quads (..., 8, 32) to the `width` vectors (..., width, 32) that hold them."""
    per_byte = 8 // width
    shifts = np.arange(0, 8, width, dtype=np.uint8)[:, None]
    fields = high.reshape(*high.shape[:-2], width, per_byte, _CODES) << shifts
    planes: Bytes = np.bitwise_or.reduce(fields, axis=-2)
    return planes
