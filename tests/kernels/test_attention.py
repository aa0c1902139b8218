"""attention.cl against docs/numerics.md section 9: exact bits, whatever shares the batch, the tile or the cache."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pyopencl as cl
import pytest
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops
from tests.kernels.kv_pages import DEFINES, unwritten_pages
from tests.kernels.reference_ops import Cached

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Layout:
    """What the kernel is built for."""

    head_dim: int
    num_heads: int
    num_kv_heads: int
    block_size: int = 16
    tile_rows: int = 8
    kv_cache_type: str = "f16"

    @property
    def scale(self) -> float:
        return float(np.float32(1 / np.sqrt(self.head_dim)))

    @property
    def qkv_width(self) -> int:
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    def kernel(self, library: KernelLibrary) -> cl.Kernel:
        heads = {"HEAD_DIM": self.head_dim, "NUM_HEADS": self.num_heads, "NUM_KV_HEADS": self.num_kv_heads}
        defines = heads | {"BLOCK_SIZE": self.block_size, "TILE_ROWS": self.tile_rows}
        return library.kernel("attention", "attention", **defines, **DEFINES[self.kv_cache_type])


@dataclass(frozen=True)
class Tokens:
    """One sequence: q [num_tokens][num_heads][head_dim], and k and v as cached."""

    q: Floats
    k: Cached
    v: Cached

    def expected(self, position: int, scale: float) -> Floats:
        return reference_ops.attention(self.q[position], self.k[: position + 1], self.v[: position + 1], scale)


def make_tokens(layout: Layout, num_tokens: int, seed: int = 0) -> Tokens:
    """Random tokens; one dimension of K and V is so small that its f16 values are subnormal."""
    rng = np.random.default_rng([seed, num_tokens, layout.head_dim, layout.num_heads])
    q = rng.standard_normal((num_tokens, layout.num_heads, layout.head_dim), np.float32) * np.float32(2)
    k, v = rng.standard_normal((2, num_tokens, layout.num_kv_heads, layout.head_dim), np.float32)
    k[..., 1] *= np.float32(1e-6)
    v[..., 1] *= np.float32(1e-6)
    return Tokens(q, *(reference_ops.to_cache(x, layout.kv_cache_type) for x in (k, v)))


class PagedCache:
    """K, V and block tables of some sequences; floats that are not written are NaN, and block ids are shuffled."""

    def __init__(self, layout: Layout, sequences: list[Tokens], num_cached: list[int], seed: int = 0) -> None:
        size = layout.block_size
        blocks = [-(-count // size) for count in num_cached]
        num_blocks = sum(blocks) + 2
        ids = iter(np.random.default_rng(seed).permutation(num_blocks))
        self.pages = unwritten_pages(num_blocks, layout.num_kv_heads, layout.head_dim, size, layout.kv_cache_type)
        self.block_tables = np.full((len(sequences), max(blocks)), np.iinfo(np.int32).max, np.int32)
        for tokens, table, count in zip(sequences, self.block_tables, num_cached, strict=True):
            for index, start in enumerate(range(0, count, size)):
                table[index] = block = next(ids)
                written = slice(start, min(start + size, count))
                self._write(block, tokens.k[written], tokens.v[written])

    def _write(self, block: int, k: Cached, v: Cached) -> None:
        count, _, head_dim = k.codes.shape
        keys, values = self.pages.keys[block], self.pages.values[block]
        keys["codes"][:, :head_dim, :count] = k.codes.transpose(1, 2, 0)
        values["codes"][:, :count, :head_dim] = v.codes.swapaxes(0, 1)
        values["codes"][:, :count, head_dim:] = 0
        for pages, cached in ((keys, k), (values, v)):
            if "scales" in (pages.dtype.names or ()):
                pages["scales"][:, :count] = cached.scales.T


class Batch:
    """Rows (sequence, position), cut into tiles, ready to launch on a cache."""

    def __init__(
        self, library: KernelLibrary, layout: Layout, cache: PagedCache, q: Floats, rows: list[tuple[int, int]]
    ):
        self.device, self.layout, self.kernel = library.device, layout, layout.kernel(library)
        self.tiles = np.array(list(self._tiles(rows)), np.int32)
        qkv = np.full((len(rows), layout.qkv_width), np.nan, np.float32)
        qkv[:, : q[0].size] = q.reshape(len(rows), -1)
        positions = np.array([position for _, position in rows], np.int32)
        arrays = (qkv, *cache.pages, positions, cache.block_tables, self.tiles)
        self.out = np.full((len(rows), layout.num_heads, layout.head_dim), np.nan, np.float32)
        self.buffers = [self.device.upload(array, "input") for array in (*arrays, self.out)]
        self.kernel.set_args(*self.buffers, np.int32(cache.block_tables.shape[1]), np.float32(layout.scale))

    def _tiles(self, rows: list[tuple[int, int]]) -> Iterator[tuple[int, int, int, int]]:
        first = 0
        for row in range(1, len(rows) + 1):
            if row == len(rows) or rows[row][0] != rows[first][0] or row - first == self.layout.tile_rows:
                yield rows[first][0], first, row - first, 0
                first = row

    def launch(self) -> None:
        self.device.run(self.kernel, len(self.tiles) * self.layout.num_kv_heads)

    def result(self) -> Floats:
        self.launch()
        self.device.read(self.buffers[-1], self.out)
        return self.out


def attend(
    library: KernelLibrary, layout: Layout, sequences: list[Tokens], rows: list[tuple[int, int]], seed: int = 0
) -> Floats:
    """Output [M][num_heads][head_dim] for `rows`; a sequence's cache ends with its last row here."""
    num_cached = [1 + max((p for s, p in rows if s == index), default=0) for index in range(len(sequences))]
    q = np.stack([sequences[s].q[p] for s, p in rows])
    return Batch(library, layout, PagedCache(layout, sequences, num_cached, seed), q, rows).result()


def prefill(library: KernelLibrary, layout: Layout, tokens: Tokens, chunk: int, first: int = 0) -> Floats:
    """All rows of one sequence from position `first` on, `chunk` at a time."""
    positions = range(first, len(tokens.q))
    chunks = [[(0, p) for p in positions[start : start + chunk]] for start in range(0, len(positions), chunk)]
    return np.concatenate([attend(library, layout, [tokens], rows) for rows in chunks])


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


LAYOUTS = [
    Layout(head_dim=8, num_heads=8, num_kv_heads=4),
    Layout(head_dim=12, num_heads=3, num_kv_heads=1, block_size=24),
    Layout(head_dim=32, num_heads=5, num_kv_heads=1, kv_cache_type="f32"),
    Layout(head_dim=12, num_heads=4, num_kv_heads=2, block_size=8, kv_cache_type="int8"),
    Layout(head_dim=64, num_heads=8, num_kv_heads=1, block_size=32),
    Layout(head_dim=64, num_heads=7, num_kv_heads=1, block_size=32, kv_cache_type="int8"),
    Layout(head_dim=64, num_heads=14, num_kv_heads=2, block_size=256),
    Layout(head_dim=80, num_heads=4, num_kv_heads=4, block_size=8),
    Layout(head_dim=128, num_heads=8, num_kv_heads=2, tile_rows=3),
    Layout(head_dim=256, num_heads=6, num_kv_heads=1, tile_rows=1),
]


@pytest.mark.parametrize(
    "layout", LAYOUTS, ids=lambda x: f"{x.num_heads}:{x.num_kv_heads}x{x.head_dim}{x.kv_cache_type}"
)
def test_decode_rows_equal_the_definition_to_the_bit(library: KernelLibrary, layout: Layout) -> None:
    """One row of each of several sequences, around a partition's end, for groups of 1 to 8 heads (ATT-6, KV-13)."""
    lengths = (1, 8, 255, 256, 257, 513)
    sequences = [make_tokens(layout, length) for length in lengths]
    rows = [(index, length - 1) for index, length in enumerate(lengths)]
    expected = np.stack([sequences[s].expected(p, layout.scale) for s, p in rows])
    assert_same_bits(attend(library, layout, sequences, rows), expected)


def test_prefill_rows_equal_the_definition_to_the_bit(library: KernelLibrary) -> None:
    """A prompt whose tiles straddle a partition's end equals the definition in every row around it."""
    layout = Layout(head_dim=16, num_heads=6, num_kv_heads=2, tile_rows=5)
    tokens = make_tokens(layout, 264)
    actual = prefill(library, layout, tokens, chunk=512)
    for position in (0, 1, 7, 8, 100, *range(250, 264)):
        assert_same_bits(actual[position], tokens.expected(position, layout.scale))


@pytest.mark.parametrize(("kv_cache_type", "rounding"), [("f16", 5e-3), ("int8", 5e-2)])
@pytest.mark.parametrize("num_tokens", [5, 300, 1000])
def test_result_is_close_to_exact_attention(
    library: KernelLibrary, num_tokens: int, kv_cache_type: str, rounding: float
) -> None:
    """Against float64 attention: 1e-5 over the cached K and V, their type's rounding over the original ones."""
    layout = Layout(head_dim=64, num_heads=4, num_kv_heads=2, kv_cache_type=kv_cache_type)
    exact, cached = make_tokens(replace(layout, kv_cache_type="f32"), num_tokens), make_tokens(layout, num_tokens)
    actual = attend(library, layout, [cached], [(0, num_tokens - 1)])[0]
    for tokens, tolerance in ((cached, 1e-5), (exact, rounding)):
        q = tokens.q[-1].astype(np.float64)
        expected = reference_ops.attention_float64(q, tokens.k.values, tokens.v.values, layout.scale)
        np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("kv_cache_type", DEFINES)
@pytest.mark.parametrize("chunk", [1, 7])
def test_chunked_prefill_gives_the_same_bits(library: KernelLibrary, chunk: int, kv_cache_type: str) -> None:
    """A prompt in chunks of 1 or 7, with nothing but NaN after each chunk, equals the prompt at once (MODEL-3)."""
    layout = Layout(head_dim=16, num_heads=4, num_kv_heads=2, block_size=8, kv_cache_type=kv_cache_type)
    tokens = make_tokens(layout, 290)
    assert_same_bits(
        prefill(library, layout, tokens, chunk, first=220), prefill(library, layout, tokens, chunk=512)[220:]
    )


@pytest.mark.parametrize(
    "change", [*({"block_size": b} for b in (8, 24, 32, 256)), {"tile_rows": 1}, {"tile_rows": 16}]
)
@pytest.mark.parametrize("kv_cache_type", DEFINES)
def test_block_size_and_tile_size_do_not_change_bits(
    library: KernelLibrary, kv_cache_type: str, change: dict[str, int]
) -> None:
    """Blocks of 8 to 256 tokens and tiles of 1 to 16 rows give the bits of blocks of 16 and tiles of 8."""
    layout = Layout(head_dim=24, num_heads=3, num_kv_heads=1, kv_cache_type=kv_cache_type)
    tokens = make_tokens(layout, 280)
    rows = [(0, position) for position in range(240, 280)]
    changed = replace(layout, **change)  # type: ignore[arg-type]
    assert_same_bits(attend(library, changed, [tokens], rows), attend(library, layout, [tokens], rows))


@pytest.mark.parametrize("kv_cache_type", DEFINES)
def test_company_in_the_batch_does_not_change_bits(library: KernelLibrary, kv_cache_type: str) -> None:
    """Rows of three sequences, prefill and decode mixed, equal the same rows alone on another arrangement of blocks."""
    layout = Layout(head_dim=16, num_heads=7, num_kv_heads=1, kv_cache_type=kv_cache_type)
    sequences = [make_tokens(layout, length) for length in (30, 260, 70)]
    rows = [*((0, p) for p in range(11, 30)), (1, 259), *((2, p) for p in range(64, 70))]
    together = attend(library, layout, sequences, rows, seed=1)
    for row, (sequence, position) in enumerate(rows):
        assert_same_bits(together[row], attend(library, layout, [sequences[sequence]], [(0, position)], seed=2)[0])


def test_positions_decide_what_a_row_sees(library: KernelLibrary) -> None:
    """Rows of one tile in any order of positions, of a longer sequence, see positions up to their own (ATT-5)."""
    layout = Layout(head_dim=16, num_heads=2, num_kv_heads=1)
    tokens = make_tokens(layout, 300)
    rows = [(0, p) for p in (299, 3, 257, 0, 255, 3, 40)]
    actual = attend(library, layout, [tokens], rows)
    for row, (_, position) in enumerate(rows):
        assert_same_bits(actual[row], tokens.expected(position, layout.scale))


def test_a_rows_nan_stays_out_of_earlier_rows(library: KernelLibrary) -> None:
    """NaN and infinity in K and V of the last row of a tile change no other row of that tile."""
    layout = Layout(head_dim=16, num_heads=2, num_kv_heads=2)
    tokens = make_tokens(layout, 8)
    spoilt = replace(
        tokens, k=replace(tokens.k, codes=tokens.k.codes.copy()), v=replace(tokens.v, codes=tokens.v.codes.copy())
    )
    spoilt.k.codes[-1], spoilt.v.codes[-1] = np.nan, np.inf
    rows = [(0, p) for p in range(8)]
    assert_same_bits(attend(library, layout, [spoilt], rows)[:-1], attend(library, layout, [tokens], rows)[:-1])


def test_memory_is_flat_over_ten_thousand_calls(device: Device) -> None:
    """10,000 launches leave the process no larger than the first thousand did (ATT-4)."""
    layout = Layout(head_dim=8, num_heads=1, num_kv_heads=1, tile_rows=1)
    tokens = make_tokens(layout, 4)
    batch = Batch(KernelLibrary(device), layout, PagedCache(layout, [tokens], [4]), tokens.q[3:], [(0, 3)])
    for call in range(10_000):
        batch.launch()
        if call % 1000 == 999:
            device.finish()
        if call == 999:
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1024


def digest() -> str:
    """Hash of a prefill and a decode on the default device."""
    layout = Layout(head_dim=32, num_heads=8, num_kv_heads=2)
    sequences = [make_tokens(layout, 120), make_tokens(layout, 270)]
    rows = [*((0, p) for p in range(120)), (1, 269)]
    return hashlib.sha256(attend(KernelLibrary(Device.open()), layout, sequences, rows).tobytes()).hexdigest()


def test_thread_count_does_not_change_bits() -> None:
    """One process with one PoCL thread and one with two give the same hash."""
    script = "from tests.kernels.test_attention import digest; print(digest())"
    hashes = [
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"POCL_MAX_PTHREAD_COUNT": threads},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for threads in ("1", "2")
    ]
    assert hashes[0] == hashes[1] == digest() + "\n"
