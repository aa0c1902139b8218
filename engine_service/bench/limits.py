"""What the device can do at best: copy memory, and multiply and add. kernels/cpu/machine_limits.cl does it."""

from __future__ import annotations

import time
from typing import NamedTuple

import numpy as np

from engine_service.bench.protocol import Timed
from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary

_COPY_BYTES = 128 << 20  # of source, and as many of target: far beyond any cache
_NUM_COPIES = 4
_VECTOR_BYTES = 32
_CHAINS, _LANES, _OPS_PER_FMA = 12, 8, 2  # as the kernel has them
_ROUNDS = 1 << 20
_ITEMS_PER_UNIT = 4
_NUM_TRIES = 5


class Limits(NamedTuple):
    """Bytes/s of a copy, read and written both counted, and f32 operations/s, an addition or multiplication each."""

    bytes_per_s: float
    ops_per_s: float


class MachineLimits:
    """Kernels that do nothing but reach the device's limits, and 256 MiB for them to copy."""

    def __init__(self, device: Device) -> None:
        library = KernelLibrary(device)
        self._device = device
        self._num_items = _ITEMS_PER_UNIT * device.num_compute_units
        self._copy = library.kernel("machine_limits", "copy")
        self._buffers = device.zeros(_COPY_BYTES, "limits.from"), device.zeros(_COPY_BYTES, "limits.to")
        self._copy.set_args(*self._buffers, np.int32(_COPY_BYTES // _VECTOR_BYTES))
        self._multiply_add = library.kernel("machine_limits", "multiply_add")
        self._sums = device.empty(self._num_items * 4, "limits.sums")
        self._multiply_add.set_args(self._sums, np.int32(_ROUNDS), np.float32(0.5), np.float32(0.25))
        device.finish()

    def copy(self) -> Timed:
        """Copies a few times; tells bytes read and bytes written."""
        started = time.perf_counter()
        for _ in range(_NUM_COPIES):
            self._device.run(self._copy, self._num_items)
        self._device.finish()
        return Timed(2 * _COPY_BYTES * _NUM_COPIES, time.perf_counter() - started)

    def measure(self) -> Limits:
        """The best of a few tries of each: a limit is what can be reached, not what is reached on average."""
        return Limits(
            max(self.copy().rate for _ in range(_NUM_TRIES)),
            max(self._multiply_add_rate() for _ in range(_NUM_TRIES)),
        )

    def _multiply_add_rate(self) -> float:
        started = time.perf_counter()
        self._device.run(self._multiply_add, self._num_items)
        self._device.finish()
        num_ops = self._num_items * _ROUNDS * _CHAINS * _LANES * _OPS_PER_FMA
        return num_ops / (time.perf_counter() - started)
