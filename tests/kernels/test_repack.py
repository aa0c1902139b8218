"""repack.cl against quant_layouts.pack, byte for byte."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType
from structlog.testing import capture_logs

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import layout_for, pack, packed_bytes
from engine_service.compute.weight_packer import WeightPacker
from tests.engine_service.matrix_data import FLOAT_TYPES, QUANTISED_TYPES


@pytest.mark.parametrize("n", [1, 8, 21])
@pytest.mark.parametrize(
    ("tensor_type", "k"),
    [(t, k) for t in FLOAT_TYPES for k in (1, 8, 171)]
    + [(t, blocks * layout_for(t).block) for t in QUANTISED_TYPES for blocks in (1, 2, 5)],
    ids=lambda value: value.name if isinstance(value, GgmlType) else str(value),
)
def test_tiles_are_those_of_pack(library: KernelLibrary, tensor_type: GgmlType, k: int, n: int) -> None:
    """Random bytes of every type, with rows missing from the last group, give the reference's bytes, zeros included."""
    device, layout = library.device, layout_for(tensor_type)
    raw = np.random.default_rng(n).integers(0, 256, (n, layout.file_row_bytes(k)), np.uint8)
    target = device.upload(np.full(packed_bytes(layout, n, k), 0xAA, np.uint8), "target")
    with capture_logs() as warnings:
        assert list(WeightPacker(library).write(target, layout, raw, k))[-1] == n
    assert warnings == []  # or numpy would be tested against itself
    out = np.empty(target.size, np.uint8)
    device.read(target, out)
    np.testing.assert_array_equal(out, pack(layout, raw, k))
