"""File rows to tiles on the device: by a kernel where it makes the bytes that quant_layouts.pack does, else by pack."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyopencl as cl
import structlog

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import ROWS, Layout, pack, packed_bytes
from engine_service.compute.quant_unpack import Bytes
from service_common.errors import DeviceError

_PIECE_BYTES = 4 << 20  # of the file: bounds what numpy takes, and how long progress is silent
_TEST_ROWS, _TEST_BLOCKS = 2 * ROWS, 3


class WeightPacker:
    """Repacks matrices for one device. A layout's kernel is tried before its first use."""

    def __init__(self, library: KernelLibrary) -> None:
        self._library, self._device = library, library.device
        self._kernels: dict[Layout, cl.Kernel | None] = {}

    def write(self, target: cl.Buffer, layout: Layout, raw: Bytes, k: int) -> Iterator[int]:
        """Fills `target` with the (n, k) matrix of file rows `raw` (n, row bytes), which may be a memory map.

        Yields the number of rows that are done, piece by piece; nobody may change `raw` before the last one.
        """
        kernel = self._kernel(layout)
        for first_row, rows in _pieces(raw):
            if kernel is None:
                self._device.write(target, pack(layout, rows, k), first_row // ROWS * packed_bytes(layout, ROWS, k))
            else:
                self._launch(kernel, target, rows, k // layout.block, first_row)
            yield min(first_row + len(rows), len(raw))

    def _kernel(self, layout: Layout) -> cl.Kernel | None:
        """The layout's kernel; None, after a warning, where this device does not run it as it should."""
        if layout not in self._kernels:
            try:
                self._kernels[layout] = self._tried_kernel(layout)
            except DeviceError as error:
                self._kernels[layout] = None
                structlog.get_logger(__name__).warning(
                    "weights are repacked without the device, which is slower",
                    layout=layout.name,
                    device=self._device.name,
                    reason=str(error),
                )
        return self._kernels[layout]

    def _tried_kernel(self, layout: Layout) -> cl.Kernel:
        kernel = self._library.kernel("repack", "repack", **layout.defines, **{f"FILE_{layout.name}": 1})
        k = _TEST_BLOCKS * layout.block
        rows = np.random.default_rng(0).integers(0, 256, (_TEST_ROWS, layout.file_row_bytes(k)), np.uint8)
        expected = np.concatenate([np.zeros(packed_bytes(layout, ROWS, k), np.uint8), pack(layout, rows, k)])
        target = self._device.upload(np.zeros_like(expected), "self_test")
        self._launch(kernel, target, rows, _TEST_BLOCKS, ROWS)
        found = np.empty_like(expected)
        self._device.read(target, found)
        if not np.array_equal(found, expected):
            raise DeviceError("self-test", "WRONG_RESULT", kernel=f"repack {layout.name}")
        return kernel

    def _launch(self, kernel: cl.Kernel, target: cl.Buffer, rows: Bytes, num_blocks: int, first_row: int) -> None:
        """Repacks whole groups of rows. Waits, since `rows` must not go before."""
        source = self._device.lend(rows)
        kernel.set_args(source, target, np.int32(num_blocks), np.int32(first_row // ROWS))
        self._device.run(kernel, len(rows) // ROWS)
        self._device.finish()
        source.release()


def _pieces(raw: Bytes) -> Iterator[tuple[int, Bytes]]:
    """Whole groups of 8 rows, about _PIECE_BYTES at a time: (first row, rows). Zeros fill up the last group."""
    n, row_bytes = raw.shape
    whole = n // ROWS * ROWS
    step = max(1, _PIECE_BYTES // (ROWS * row_bytes)) * ROWS
    for start in range(0, whole, step):
        yield start, raw[start : min(start + step, whole)]
    if whole < n:
        yield whole, np.concatenate([raw[whole:], np.zeros((whole + ROWS - n, row_bytes), np.uint8)])
