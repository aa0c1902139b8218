"""One OpenCL device: one context, one in-order queue, and buffers whose sizes are exact.

All failures become DeviceError with operation, code name and parameters. Once opened, a Device belongs to the engine
thread.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.huge_pages import HugePages
from service_common.errors import DeviceError
from service_common.resources import processor_flags

_MAX_BUFFER_BYTES = 1 << 40
_LARGE_BYTES = 1 << 20  # from here on a CPU's buffers lie in huge pages


@contextmanager
def device_errors(operation: str, **parameters: object) -> Iterator[None]:
    """Turns pyopencl's errors inside the block into DeviceError naming `operation` and `parameters`."""
    try:
        yield
    except (cl.Error, OSError) as error:  # OSError: from the mapping of memory for a buffer
        raise DeviceError(operation, str(error), **parameters) from error


def list_devices() -> list[cl.Device]:
    """All OpenCL devices of all platforms, in the order in which `--device` counts them; empty without a driver."""
    try:
        platforms = cl.get_platforms()
    except cl.Error:  # the loader's way to say that there is none
        return []
    devices = []
    for platform in platforms:
        with suppress(cl.Error):  # a platform without devices, or a broken one, leaves the others usable
            devices += platform.get_devices()
    return devices


class Device:
    """Owns a context and its in-order queue. `close()` may be called twice."""

    def __init__(self, handle: cl.Device) -> None:
        self.handle = handle
        self.name = _text(handle, "name") or "unnamed OpenCL device"
        with device_errors("create context", device=self.name):
            self.context = cl.Context([handle])
            self.queue = cl.CommandQueue(self.context)
        self.allocated_bytes = 0
        self._huge_pages = HugePages()

    @classmethod
    def open(cls, index: int = 0) -> Device:
        """Opens the index-th device of `list_devices()`; DeviceError when there is none."""
        devices = list_devices()
        if not 0 <= index < len(devices):
            raise DeviceError("open device", "DEVICE_NOT_FOUND", index=index, available=len(devices))
        return cls(devices[index])

    @property
    def num_compute_units(self) -> int:
        """Work-groups that run at once: threads, on a CPU."""
        return max(1, int(self.handle.max_compute_units))

    @property
    def is_cpu(self) -> bool:
        """Whether kernels run on this machine's own processor, and on the host's memory."""
        return bool(int(self.handle.type) & int(cl.device_type.CPU))

    @property
    def has_vnni(self) -> bool:
        """Whether kernels run on this machine's own processor and it has AVX-512 VNNI on 256-bit vectors.

        The compiler of a driver may not know the processor and so not define the macro.
        """
        return self.is_cpu and {"avx512_vnni", "avx512vl"} <= processor_flags()

    @property
    def supports_correct_division(self) -> bool:
        """Whether the compiler option for correctly rounded division and square root is accepted."""
        flags = getattr(self.handle, "single_fp_config", 0)
        return bool(int(flags) & int(cl.device_fp_config.CORRECTLY_ROUNDED_DIVIDE_SQRT))

    def empty(self, nbytes: int, name: str) -> cl.Buffer:
        """An uninitialised read-write buffer of exactly `nbytes` bytes; `name` appears in errors."""
        if not 0 < nbytes <= _MAX_BUFFER_BYTES:
            raise DeviceError("allocate buffer", "INVALID_BUFFER_SIZE", buffer=name, bytes=nbytes)
        with device_errors("allocate buffer", buffer=name, bytes=nbytes):
            buffer = self._allocated(nbytes)
        self.allocated_bytes += nbytes
        return buffer

    def _allocated(self, nbytes: int) -> cl.Buffer:
        if not self.is_cpu or nbytes < _LARGE_BYTES:
            return cl.Buffer(self.context, cl.mem_flags.READ_WRITE, nbytes)
        flags = cl.mem_flags.READ_WRITE | cl.mem_flags.USE_HOST_PTR
        return cl.Buffer(self.context, flags, hostbuf=self._huge_pages.take(nbytes))

    def zeros(self, nbytes: int, name: str) -> cl.Buffer:
        """A buffer of zero bytes. Writing them touches the memory, so that running out shows here and not later."""
        buffer = self.empty(nbytes, name)
        with device_errors("fill buffer", buffer=name, bytes=nbytes):
            cl.enqueue_fill_buffer(self.queue, buffer, np.zeros(1, np.uint8), 0, nbytes)
        return buffer

    def upload(self, array: NDArray[Any], name: str) -> cl.Buffer:
        """A buffer holding a copy of `array` in C order."""
        buffer = self.empty(array.nbytes, name)
        self.write(buffer, array)
        return buffer

    def lend(self, array: NDArray[Any]) -> cl.Buffer:
        """A buffer for kernels to read the C-contiguous `array` from, while its owner keeps it as it is.

        A CPU reads it where it lies, which may be a memory map; another device gets a copy.
        """
        flags = cl.mem_flags.READ_ONLY | (cl.mem_flags.USE_HOST_PTR if self.is_cpu else cl.mem_flags.COPY_HOST_PTR)
        with device_errors("lend buffer", bytes=array.nbytes):
            return cl.Buffer(self.context, flags, hostbuf=array)

    def write(self, buffer: cl.Buffer, array: NDArray[Any], offset: int = 0) -> None:
        """Copies `array` into `buffer` from byte `offset` on; returns when the array may be changed again."""
        self._check_range("write buffer", buffer, array.nbytes, offset)
        with device_errors("write buffer", bytes=array.nbytes, offset=offset):
            cl.enqueue_copy(self.queue, buffer, np.ascontiguousarray(array), dst_offset=offset, is_blocking=True)

    def read(self, buffer: cl.Buffer, out: NDArray[Any], offset: int = 0) -> None:
        """Fills the C-contiguous `out` from byte `offset` of `buffer`, after all work enqueued before."""
        self._check_range("read buffer", buffer, out.nbytes, offset)
        with device_errors("read buffer", bytes=out.nbytes, offset=offset):
            cl.enqueue_copy(self.queue, out, buffer, src_offset=offset, is_blocking=True)

    def view(self, buffer: cl.Buffer, offset: int, nbytes: int) -> cl.Buffer:
        """A sub-buffer that shares memory with `buffer`; `offset` must be a multiple of the device's base alignment."""
        self._check_range("view buffer", buffer, nbytes, offset)
        with device_errors("view buffer", bytes=nbytes, offset=offset):
            return buffer.get_sub_region(offset, nbytes)

    @property
    def view_alignment(self) -> int:
        """Bytes to which the offsets of views are aligned."""
        return max(1, int(self.handle.mem_base_addr_align) // 8)

    def run(self, kernel: cl.Kernel, num_items: int) -> None:
        """Enqueues `num_items` work-items in groups of one; each cpu kernel says what an item does."""
        with device_errors("launch kernel", kernel=kernel.function_name, items=num_items):
            cl.enqueue_nd_range_kernel(self.queue, kernel, (num_items,), (1,))

    def finish(self) -> None:
        """Waits for all enqueued work."""
        with device_errors("finish"):
            self.queue.finish()

    def close(self) -> None:
        """Waits for the queue; buffers go when their owners do."""
        self.finish()

    def _check_range(self, operation: str, buffer: cl.Buffer, nbytes: int, offset: int) -> None:
        if offset < 0 or offset + nbytes > buffer.size:
            raise DeviceError(operation, "INVALID_VALUE", offset=offset, bytes=nbytes, buffer_bytes=buffer.size)


def _text(handle: cl.Device, attribute: str) -> str:
    """A device's answer as text; drivers may fail to answer, which counts as empty (BACKEND-2)."""
    try:
        return str(getattr(handle, attribute)).strip().replace("\0", "")
    except cl.Error:
        return ""
