"""rope_kv_write.cl against docs/numerics.md sections 7 and 8, and against the layout of the paged cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops

Floats = NDArray[np.float32]
NUM_POSITIONS = 4096
UNWRITTEN = 7.5


@dataclass(frozen=True)
class Layout:
    """What the kernel is built for."""

    head_dim: int
    num_heads: int
    num_kv_heads: int
    rope_dim: int
    adjacent: bool
    block_size: int = 16
    kv_cache_type: str = "f16"

    def split(self, qkv: Floats) -> list[Floats]:
        """q, k and v of qkv [M][width], each [M][heads][head_dim]."""
        heads = qkv.reshape(len(qkv), -1, self.head_dim)
        return np.split(heads, [self.num_heads, self.num_heads + self.num_kv_heads], axis=1)

    def make_qkv(self, num_rows: int) -> Floats:
        """Random rows, with values that are subnormal in f16 and values beyond its range."""
        rng = np.random.default_rng(num_rows)
        qkv = rng.standard_normal((num_rows, (self.num_heads + 2 * self.num_kv_heads) * self.head_dim), np.float32)
        qkv[:, ::5] *= np.float32(3e-7)
        qkv[:, ::7] *= np.float32(1e5)
        return qkv


class Written(NamedTuple):
    """What one launch left: q [M][num_heads][head_dim], k and v by slot, [num_slots][num_kv_heads][padded head_dim]."""

    q: Floats
    k: NDArray[Any]
    v: NDArray[Any]


def write(library: KernelLibrary, layout: Layout, qkv: Floats, positions: list[int], slots: list[int]) -> Written:
    padded, num_blocks = (layout.head_dim + 7) // 8 * 8, 6
    dtype = np.float16 if layout.kv_cache_type == "f16" else np.float32
    keys = np.full((num_blocks, layout.num_kv_heads, padded, layout.block_size), UNWRITTEN, dtype)
    values = np.full((num_blocks, layout.num_kv_heads, layout.block_size, padded), UNWRITTEN, dtype)
    defines = {"KV_F32": 1} if layout.kv_cache_type == "f32" else {}
    defines |= {"ROPE_ADJACENT": 1} if layout.adjacent else {}
    defines |= {"HEAD_DIM": layout.head_dim, "NUM_HEADS": layout.num_heads, "NUM_KV_HEADS": layout.num_kv_heads}
    kernel = library.kernel(
        "rope_kv_write", "rope_kv_write", ROPE_DIM=layout.rope_dim, BLOCK_SIZE=layout.block_size, **defines
    )
    cos_sin = reference_ops.cos_sin_table(NUM_POSITIONS, layout.rope_dim)
    indices = (np.array(positions, np.int32), np.array(slots, np.int32))
    buffers = [library.device.upload(array, "input") for array in (qkv, *indices, cos_sin, keys, values)]
    kernel.set_args(*buffers)
    library.device.run(kernel, len(qkv))
    rotated = np.empty_like(qkv)
    for buffer, out in ((buffers[0], rotated), (buffers[4], keys), (buffers[5], values)):
        library.device.read(buffer, out)
    k, v = keys.transpose(0, 3, 1, 2), values.transpose(0, 2, 1, 3)
    return Written(layout.split(rotated)[0], *(x.reshape(-1, layout.num_kv_heads, padded) for x in (k, v)))


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    unsigned = {2: np.uint16, 4: np.uint32}[actual.itemsize]
    np.testing.assert_array_equal(actual.view(unsigned), expected.view(unsigned))


LAYOUTS = [
    Layout(head_dim=64, num_heads=4, num_kv_heads=1, rope_dim=64, adjacent=True),
    Layout(head_dim=64, num_heads=4, num_kv_heads=2, rope_dim=64, adjacent=False, block_size=32),
    Layout(head_dim=80, num_heads=2, num_kv_heads=2, rope_dim=20, adjacent=False, block_size=8),
    Layout(head_dim=12, num_heads=2, num_kv_heads=1, rope_dim=10, adjacent=True, kv_cache_type="f32"),
]


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_rows_equal_the_definition_to_the_bit(library: KernelLibrary, layout: Layout) -> None:
    """q and k are rotated by absolute position, k and v rounded into their slots, no other slot written (MODEL-1)."""
    positions, slots = [0, 1, 2, 4095, 77], [3, 47, 16, 0, 21]
    qkv = layout.make_qkv(len(positions))
    written = write(library, layout, qkv, positions, slots)
    angles = reference_ops.cos_sin_table(NUM_POSITIONS, layout.rope_dim)[positions]
    q, k, v = layout.split(qkv)
    assert_same_bits(written.q, reference_ops.rotate(q, angles, adjacent=layout.adjacent))
    rotated = reference_ops.rotate(k, angles, adjacent=layout.adjacent)
    for actual, expected in ((written.k, rotated), (written.v, v)):
        cached = reference_ops.to_cache(expected, layout.kv_cache_type)
        assert_same_bits(np.ascontiguousarray(actual[slots, :, : layout.head_dim]), cached)
        others = np.delete(actual, slots, axis=0)
        assert_same_bits(others, np.full_like(others, UNWRITTEN))


def test_rotation_is_close_to_float64(library: KernelLibrary) -> None:
    """q is within 1e-5 of the complex product in float64, and its pairs keep their length."""
    layout = LAYOUTS[0]
    qkv = np.random.default_rng(0).standard_normal((8, 6 * 64), np.float32)
    positions = list(range(8))
    actual = write(library, layout, qkv, positions, [-1] * 8).q.astype(np.float64).reshape(8, 4, 32, 2)
    before = layout.split(qkv)[0].astype(np.float64).reshape(8, 4, 32, 2)
    turns = np.exp(1j * np.arange(8)[:, None] * 10000.0 ** (-np.arange(32) / 32))
    exact = (before[..., 0] + 1j * before[..., 1]) * turns[:, None]
    np.testing.assert_allclose(actual[..., 0] + 1j * actual[..., 1], exact, rtol=0, atol=1e-5)


def test_a_row_without_a_slot_is_rotated_but_not_kept(library: KernelLibrary) -> None:
    """Slot -1 leaves the cache untouched."""
    layout = LAYOUTS[1]
    qkv = layout.make_qkv(2)
    written = write(library, layout, qkv, [5, 9], [-1, -1])
    angles = reference_ops.cos_sin_table(NUM_POSITIONS, layout.rope_dim)[[5, 9]]
    assert_same_bits(written.q, reference_ops.rotate(layout.split(qkv)[0], angles, adjacent=False))
    for cache in (written.k, written.v):
        assert_same_bits(cache, np.full_like(cache, UNWRITTEN))


def test_a_row_alone_gives_the_bits_it_has_in_a_batch(library: KernelLibrary) -> None:
    """Rows written one launch each equal rows written together."""
    layout = LAYOUTS[2]
    qkv, positions, slots = layout.make_qkv(4), [9, 8, 300, 1], [0, 5, 9, 40]
    together = write(library, layout, qkv, positions, slots)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        alone = write(library, layout, qkv[row : row + 1], [position], [slot])
        assert_same_bits(alone.q[0], together.q[row])
        assert_same_bits(alone.k[slot], together.k[slot])
        assert_same_bits(alone.v[slot], together.v[slot])


def test_the_f16_cache_never_holds_nan_or_infinity(library: KernelLibrary) -> None:
    """NaN and infinite inputs are stored as finite values, so that they stay in rows that see them."""
    layout = LAYOUTS[0]
    qkv = np.full((3, 6 * 64), np.inf, np.float32)
    qkv[1], qkv[2] = -np.inf, np.nan
    written = write(library, layout, qkv, [1, 2, 3], [0, 1, 2])
    assert np.isfinite(written.k).all()
    assert np.isfinite(written.v).all()
    assert (written.v[0] == 65504).all()


def test_values_are_padded_with_zeros(library: KernelLibrary) -> None:
    """Dimensions of V beyond head_dim are written as zero: attention reads whole vectors."""
    written = write(library, LAYOUTS[3], LAYOUTS[3].make_qkv(1), [0], [2])
    assert (written.v[2, :, 12:] == 0).all()
