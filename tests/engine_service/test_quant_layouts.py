"""Repacking of file rows into device layouts: exact, and its sizes counted to the byte."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from engine_service.compute.quant_layouts import layout_for, pack, packed_bytes
from service_common.errors import StartupError
from tests.engine_service.matrix_data import ALL_TYPES, QUANTISED_TYPES, dequantise_file, file_rows
from tests.kernels import reference_matmul

TILE_BYTES = {
    "F32": 32, "F16": 16, "BF16": 16, "Q8_0": 272, "Q4_0": 144, "Q4_1": 160, "Q5_0": 176, "Q5_1": 192,
    "Q4_K": 1184, "Q5_K": 1440, "Q6_K": 1680,
}  # fmt: skip


def unpacked(tensor_type: GgmlType, raw: NDArray[np.uint8], k: int) -> NDArray[np.float32]:
    """File rows, packed and read back by the oracle."""
    layout = layout_for(tensor_type)
    packed = pack(layout, raw, k)
    if not layout.is_quantised:
        return reference_matmul.unpack_float(layout.name, packed, len(raw), k)
    return reference_matmul.dequantise(reference_matmul.unpack_quantised(layout.name, packed, len(raw), k))


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("n", [1, 8, 19])
def test_packing_keeps_every_weight_exactly(tensor_type: GgmlType, n: int) -> None:
    """What the device layout holds dequantises to what gguf reads from the file's bytes (GGUF-8)."""
    raw = file_rows(tensor_type, n, 768, seed=n)
    np.testing.assert_array_equal(unpacked(tensor_type, raw, 768), dequantise_file(raw, tensor_type))


@pytest.mark.parametrize("name", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1"])
def test_packing_keeps_really_quantised_data(name: str) -> None:
    """Weights quantised by gguf from normal values survive, one block a row included."""
    tensor_type = GgmlType[name]
    weights = np.random.default_rng(0).standard_normal((9, 32), dtype=np.float32)
    raw = gguf.quants.quantize(weights, tensor_type)
    np.testing.assert_array_equal(unpacked(tensor_type, raw, 32), dequantise_file(raw, tensor_type))


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
@pytest.mark.parametrize("k", [1, 8, 172])
def test_float_layouts_take_any_width(name: str, k: int) -> None:
    """Float rows need not be a whole number of anything."""
    raw = file_rows(GgmlType[name], 11, k)
    np.testing.assert_array_equal(unpacked(GgmlType[name], raw, k), dequantise_file(raw, GgmlType[name]))


@pytest.mark.parametrize("tensor_type", QUANTISED_TYPES, ids=lambda t: t.name)
def test_every_code_bit_belongs_to_one_weight(tensor_type: GgmlType) -> None:
    """Flipping any one bit of a block's codes changes one weight; each weight has its code's bits (GGUF-7)."""
    elements, block_bytes = gguf.GGML_QUANT_SIZES[tensor_type]
    first = {"Q8_0": 2, "Q4_0": 2, "Q4_1": 4, "Q5_0": 2, "Q5_1": 4, "Q4_K": 16, "Q5_K": 16, "Q6_K": 0}[tensor_type.name]
    bits = layout_for(tensor_type).defines["CODE_BITS"]
    flips = elements * bits
    block = file_rows(tensor_type, 1, elements, fill=0x55)
    raw = np.repeat(block, flips + 1, axis=0)
    raw[np.arange(flips), first + np.arange(flips) // 8] ^= (1 << np.arange(flips) % 8).astype(np.uint8)
    values = unpacked(tensor_type, raw, elements)
    changed = values[:-1] != values[-1]
    assert raw.shape[1] == block_bytes
    assert (changed.sum(axis=1) == 1).all()
    assert (changed.sum(axis=0) == bits).all()


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_device_bytes_are_counted_exactly_and_stay_near_the_file(tensor_type: GgmlType) -> None:
    """packed_bytes is what pack makes, at most 1.15 times the file's bytes, and exact beyond 64 bits (BACKEND-3)."""
    layout = layout_for(tensor_type)
    raw = file_rows(tensor_type, 16, 512)
    assert pack(layout, raw, 512).nbytes == packed_bytes(layout, 16, 512) == 2 * 512 // layout.block * layout.tile_bytes
    assert packed_bytes(layout, 16, 512) <= 1.15 * raw.nbytes
    assert layout.tile_bytes == TILE_BYTES[layout.name]
    assert packed_bytes(layout, 1 << 40, 1 << 40) == (1 << 37) * ((1 << 40) // layout.block) * layout.tile_bytes


@pytest.mark.parametrize(
    ("name", "block_bytes"),
    [("Q4_0", 18), ("Q4_1", 20), ("Q5_0", 22), ("Q5_1", 24), ("Q8_0", 34), ("Q4_K", 144), ("Q5_K", 176), ("Q6_K", 210)],
)
def test_file_blocks_have_ggmls_bytes(name: str, block_bytes: int) -> None:
    """A row's bytes in the file follow the exact size of a block (GGUF-2)."""
    layout = layout_for(GgmlType[name])
    assert layout.file_row_bytes(layout.block * 3) == 3 * block_bytes


def test_unsupported_type_is_refused_with_the_list() -> None:
    """A type without a layout names itself and what there is."""
    with pytest.raises(StartupError, match=r"TQ1_0 is not supported; supported are F32, F16, BF16, Q8_0, .*Q6_K"):
        layout_for(GgmlType.TQ1_0)


def test_rows_of_another_length_are_refused() -> None:
    """Bytes that are not the row's, and widths that are not whole blocks, are errors with both numbers (GGUF-4)."""
    layout = layout_for(GgmlType.Q4_K)
    with pytest.raises(ValueError, match="a row of 512 Q4_K elements has 287 bytes; need 288"):
        pack(layout, np.zeros((8, 287), np.uint8), 512)
    with pytest.raises(ValueError, match="a row of Q4_K has 300 elements; it must be a positive multiple of 256"):
        packed_bytes(layout, 8, 300)
    with pytest.raises(ValueError, match="a matrix has 0 rows"):
        packed_bytes(layout, 0, 256)
