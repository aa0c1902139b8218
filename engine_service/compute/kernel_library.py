"""OpenCL sources to built kernels: each source and set of defines is compiled once, also under concurrent use."""

from __future__ import annotations

import threading

import pyopencl as cl

from engine_service.compute.device import Device, device_errors
from engine_service.compute.kernel_sources import operation_text
from service_common.errors import DeviceError

_Key = tuple[str, tuple[tuple[str, int | str], ...]]


class KernelLibrary:
    """Builds the operations of `kernels/cpu` for one device.

    `portable` leaves out the builtins of the host's instruction set; the results are the same bits. A built program is
    kept per (source, defines); every call of `kernel` returns a new kernel object, so that arguments set on one are its
    caller's own.
    """

    def __init__(self, device: Device, *, portable: bool = False) -> None:
        self.device = device
        self.portable = portable
        self._programs: dict[_Key, cl.Program] = {}
        self._lock = threading.Lock()
        self._building: dict[_Key, threading.Lock] = {}

    def kernel(self, source: str, name: str, **defines: int | str) -> cl.Kernel:
        """The kernel `name` of `kernels/cpu/<source>.cl`, built with `defines`. DeviceError carries the build log."""
        key = source, tuple(sorted(defines.items()))
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        with building:
            if key not in self._programs:
                self._programs[key] = self.build(source, operation_text(source), **defines)
        try:
            return cl.Kernel(self._programs[key], name)
        except cl.Error as error:
            raise DeviceError("create kernel", "INVALID_KERNEL_NAME", kernel=name, source=source) from error

    def build(self, source: str, text: str, **defines: int | str) -> cl.Program:
        """A program of OpenCL C; `source` names it in errors."""
        options = ["-cl-std=CL1.2", *(f"-D{name}={value}" for name, value in defines.items())]
        if self.device.supports_correct_division:
            options.append("-cl-fp32-correctly-rounded-divide-sqrt")
        if self.portable:
            options.append("-DCLF_PORTABLE")
        elif self.device.has_vnni and defines.get("CLF_VNNI") != 0:
            options.append("-DCLF_VNNI=1")
        with device_errors("build program", source=source, options=" ".join(options)):
            try:
                return self._build(text, options)
            except cl.Error:  # may be a race for the driver's cache, which other processes use as well
                return self._build(text, options)

    def _build(self, text: str, options: list[str]) -> cl.Program:
        program: cl.Program = cl.Program(self.device.context, text).build(options)
        return program
