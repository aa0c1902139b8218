"""rope_kv_write.cl against docs/numerics.md sections 7 and 8, and against the layout of the paged cache."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops
from tests.kernels.kv_pages import DEFINES, unwritten_pages
from tests.kernels.reference_ops import Cached

Floats = NDArray[np.float32]
NUM_POSITIONS = 4096


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
    """What one launch left: q [M][num_heads][head_dim], and k and v by slot, with padded heads."""

    q: Floats
    k: Cached
    v: Cached


def write(library: KernelLibrary, layout: Layout, qkv: Floats, positions: list[int], slots: list[int]) -> Written:
    pages = unwritten_pages(6, layout.num_kv_heads, layout.head_dim, layout.block_size, layout.kv_cache_type)
    defines = DEFINES[layout.kv_cache_type] | ({"ROPE_ADJACENT": 1} if layout.adjacent else {})
    defines |= {"HEAD_DIM": layout.head_dim, "NUM_HEADS": layout.num_heads, "NUM_KV_HEADS": layout.num_kv_heads}
    kernel = library.kernel(
        "rope_kv_write", "rope_kv_write", ROPE_DIM=layout.rope_dim, BLOCK_SIZE=layout.block_size, **defines
    )
    cos_sin = reference_ops.cos_sin_table(NUM_POSITIONS, layout.rope_dim)
    indices = (np.array(positions, np.int32), np.array(slots, np.int32))
    buffers = [library.device.upload(array, "input") for array in (qkv, *indices, cos_sin, *pages)]
    kernel.set_args(*buffers)
    library.device.run(kernel, len(qkv))
    rotated = np.empty_like(qkv)
    for buffer, out in zip((buffers[0], *buffers[4:]), (rotated, *pages), strict=True):
        library.device.read(buffer, out)
    return Written(layout.split(rotated)[0], *pages.by_slot())


def assert_same_bits(actual: NDArray[Any], expected: NDArray[Any]) -> None:
    assert actual.dtype == expected.dtype
    unsigned = np.dtype(f"u{actual.itemsize}")
    np.testing.assert_array_equal(
        np.ascontiguousarray(actual).view(unsigned), np.ascontiguousarray(expected).view(unsigned)
    )


def assert_unwritten(cached: Cached) -> None:
    """All bits of `cached` are 1; caches without scales in memory have 1 for each."""
    for array in (cached.codes, cached.scales) if cached.codes.dtype == np.int8 else (cached.codes,):
        assert (np.ascontiguousarray(array).view(np.uint8) == 0xFF).all()


LAYOUTS = [
    Layout(head_dim=64, num_heads=4, num_kv_heads=1, rope_dim=64, adjacent=True),
    Layout(head_dim=64, num_heads=4, num_kv_heads=2, rope_dim=64, adjacent=False, block_size=32),
    Layout(head_dim=80, num_heads=2, num_kv_heads=2, rope_dim=20, adjacent=False, block_size=8),
    Layout(head_dim=12, num_heads=2, num_kv_heads=1, rope_dim=10, adjacent=True, kv_cache_type="f32"),
    Layout(head_dim=12, num_heads=3, num_kv_heads=3, rope_dim=12, adjacent=True, kv_cache_type="int8", block_size=8),
    Layout(head_dim=64, num_heads=2, num_kv_heads=2, rope_dim=64, adjacent=False, kv_cache_type="int8"),
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
    for actual, exact in ((written.k, rotated), (written.v, v)):
        expected = reference_ops.to_cache(exact, layout.kv_cache_type)
        assert_same_bits(actual.codes[slots, :, : layout.head_dim], expected.codes)
        if layout.kv_cache_type == "int8":
            assert_same_bits(actual.scales[slots], expected.scales)
        assert_unwritten(actual[[slot for slot in range(len(actual.codes)) if slot not in slots]])


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
    assert_unwritten(written.k)
    assert_unwritten(written.v)


def test_a_row_alone_gives_the_bits_it_has_in_a_batch(library: KernelLibrary) -> None:
    """Rows written one launch each equal rows written together."""
    layout = LAYOUTS[2]
    qkv, positions, slots = layout.make_qkv(4), [9, 8, 300, 1], [0, 5, 9, 40]
    together = write(library, layout, qkv, positions, slots)
    for row, (position, slot) in enumerate(zip(positions, slots, strict=True)):
        alone = write(library, layout, qkv[row : row + 1], [position], [slot])
        assert_same_bits(alone.q[0], together.q[row])
        assert_same_bits(alone.k.codes[slot], together.k.codes[slot])
        assert_same_bits(alone.v.codes[slot], together.v.codes[slot])


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[-1]], ids=lambda layout: layout.kv_cache_type)
def test_a_rounded_cache_never_holds_nan_or_infinity(library: KernelLibrary, layout: Layout) -> None:
    """NaN and infinite inputs are stored as finite values, so that they stay in rows that see them."""
    qkv = np.full((3, layout.make_qkv(1).size), np.inf, np.float32)
    qkv[1], qkv[2] = -np.inf, np.nan
    written = write(library, layout, qkv, [1, 2, 3], [0, 1, 2])
    for cached in (written.k[:3], written.v[:3]):
        assert np.isfinite(cached.values).all()
    assert (np.abs(written.v[:2].values / 65504 - [[[1]], [[-1]]]) < 1e-3).all()


def test_int8_rows_of_extreme_sizes_equal_the_definition(library: KernelLibrary) -> None:
    """Rows of zeros, of values whose scale is subnormal or none at all, and of values beyond f16 (KV-13)."""
    layout = replace(LAYOUTS[-1], rope_dim=2)
    sizes = np.array([0, 1e-30, 3.7e-6, 3.8e-6, 1.1e-5, 1e-3, 65504, 1e30], np.float32)
    v = np.random.default_rng(0).uniform(-1, 1, (len(sizes), 2, 64)).astype(np.float32)
    v[..., 7] = 1
    v *= sizes[:, None, None]
    qkv = np.concatenate([np.zeros((len(sizes), 4 * 64), np.float32), v.reshape(len(sizes), -1)], axis=1)
    slots = list(range(len(sizes)))
    written, expected = write(library, layout, qkv, slots, slots).v[slots], reference_ops.to_cache(v, "int8")
    assert_same_bits(written.codes, expected.codes)
    assert_same_bits(written.scales, expected.scales)
    assert (expected.scales[:3] == 0).all()
    assert (expected.scales[3:] > 0).all()
    assert np.abs(expected.codes).max() == 127


@pytest.mark.parametrize("layout", [LAYOUTS[3], LAYOUTS[4]], ids=lambda layout: layout.kv_cache_type)
def test_values_are_padded_with_zeros(library: KernelLibrary, layout: Layout) -> None:
    """Dimensions of V beyond head_dim are written as zero: attention reads whole vectors."""
    written = write(library, layout, layout.make_qkv(1), [0], [2])
    assert (written.v.codes[2, :, 12:] == 0).all()
