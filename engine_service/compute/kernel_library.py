"""OpenCL sources to built kernels: each source and set of defines is compiled once, also under concurrent use."""

from __future__ import annotations

import threading
from importlib.resources import files

import pyopencl as cl

from engine_service.compute.device import Device
from service_common.errors import DeviceError

_SHARED_SOURCES = ("common.cl", "quantize_row.cl", "weight_tile.cl", "kv_block.cl")


class KernelLibrary:
    """Builds `kernels/cpu/<source>.cl` for one device.

    `portable` leaves out the builtins of the host's instruction set; the results are the same bits. A built program is
    kept per (source, defines); every call of `kernel` returns a new kernel object, so that arguments set on one are its
    caller's own.
    """

    def __init__(self, device: Device, *, portable: bool = False) -> None:
        self.device = device
        self.portable = portable
        self._programs: dict[tuple[str, tuple[str, ...]], cl.Program] = {}
        self._lock = threading.Lock()
        self._building: dict[tuple[str, tuple[str, ...]], threading.Lock] = {}

    def kernel(self, source: str, name: str, **defines: int | str) -> cl.Kernel:
        """The kernel `name` of `kernels/cpu/<source>.cl`, built with `defines`. DeviceError carries the build log."""
        program = self._program(source, tuple(f"-D{key}={value}" for key, value in sorted(defines.items())))
        try:
            return cl.Kernel(program, name)
        except cl.Error as error:
            raise DeviceError("create kernel", "INVALID_KERNEL_NAME", kernel=name, source=source) from error

    def _program(self, source: str, defines: tuple[str, ...]) -> cl.Program:
        key = (source, defines)
        with self._lock:
            building = self._building.setdefault(key, threading.Lock())
        with building:
            if key not in self._programs:
                try:
                    self._programs[key] = self._build(source, defines)
                except DeviceError:  # may be a race for the driver's cache, which other processes use as well
                    self._programs[key] = self._build(source, defines)
            return self._programs[key]

    def _build(self, source: str, defines: tuple[str, ...]) -> cl.Program:
        options = ["-cl-std=CL1.2", *defines]
        if self.device.supports_correct_division:
            options.append("-cl-fp32-correctly-rounded-divide-sqrt")
        if self.portable:
            options.append("-DCLF_PORTABLE")
        elif self.device.has_vnni and "-DCLF_VNNI=0" not in defines:
            options.append("-DCLF_VNNI=1")
        try:
            program: cl.Program = cl.Program(self.device.context, _source_text(source)).build(options)
        except cl.Error as error:
            raise DeviceError("build program", str(error), source=source, options=" ".join(options)) from error
        return program


def _source_text(source: str) -> str:
    folder = files("engine_service.kernels")
    shared = [folder / name for name in _SHARED_SOURCES]
    parts = [*shared, folder / "cpu" / f"{source}.cl"]
    return "\n".join(f'#line 1 "{part.name}"\n{part.read_text(encoding="utf-8")}' for part in parts)
