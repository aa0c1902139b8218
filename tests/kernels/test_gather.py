"""gather.cl against gguf's own dequantisation."""

from __future__ import annotations

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import layout_for, pack
from tests.engine_service.matrix_data import ALL_TYPES, dequantise_file, file_rows


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_gathered_rows_are_the_files_values(library: KernelLibrary, tensor_type: GgmlType) -> None:
    """Rows by id, repeated and out of order, of the first and the last group, are exactly what the file holds."""
    device, layout, n = library.device, layout_for(tensor_type), 21
    k = 172 if not layout.is_quantised else 3 * layout.block
    raw = file_rows(tensor_type, n, k)
    ids = np.array([20, 0, 7, 8, 7, 13], np.int32)
    out = np.full((len(ids), k), np.nan, np.float32)
    buffers = [device.upload(array, "array") for array in (pack(layout, raw, k), ids, out)]
    kernel = library.kernel("gather", "gather_rows", **layout.defines)
    kernel.set_args(*buffers, np.int32(k))
    device.run(kernel, len(ids))
    device.read(buffers[2], out)
    np.testing.assert_array_equal(out, dequantise_file(raw, tensor_type)[ids])
