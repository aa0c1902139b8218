"""Tries every kernel of a model before the engine serves; those that fail give way to slower ones.

The kernels are built exactly as the model will have them, so this is their warm-up too; it takes a fraction of a second
once they are in the driver's cache.
"""

from __future__ import annotations

from collections.abc import Iterator

import structlog

from engine_service.compute.device import Device
from engine_service.compute.fused_program import FusedProgram
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.launches import Program, SeparateProgram
from engine_service.compute.model_kernels import ModelKernels
from engine_service.compute.self_test_cases import SelfTestCases
from service_common.errors import DeviceError

TOLERANCE = 1e-5  # greatest distance from numpy's result, in parts of that result's Euclidean norm


class SelfTestError(DeviceError):
    """A kernel computes something else than numpy does: `difference` is relative, and above TOLERANCE or NaN."""

    def __init__(self, kernel: str, difference: float) -> None:
        super().__init__("self-test", "WRONG_RESULT", kernel=kernel, difference=f"{difference:.2g}", limit=TOLERANCE)
        self.kernel, self.difference = kernel, difference


def choose_program(device: Device, kernels: ModelKernels, *, portable: bool) -> Program:
    """The fastest program that passes the self-test; a warning tells why where that is not the first one tried.

    With `portable` only portable kernels are tried. DeviceError names the kernel where the slowest one fails as well.
    """
    failures: list[DeviceError] = []
    for program in _programs(device, portable):
        try:
            self_test(program, kernels)
        except DeviceError as error:
            failures.append(error)
            continue
        if failures:
            _warn(program, failures[0])
        return program
    raise failures[-1]


def _programs(device: Device, portable: bool) -> Iterator[Program]:
    """Fastest first."""
    for is_portable in (True,) if portable else (False, True):
        library = KernelLibrary(device, portable=is_portable)
        if device.is_cpu:
            yield FusedProgram(library)
        yield SeparateProgram(library)


def _warn(chosen: Program, failure: DeviceError) -> None:
    structlog.get_logger(__name__).warning(
        "the fastest kernels fail on this device; slower ones give the same results",
        kernel=failure.parameters.get("kernel", failure.parameters.get("source")),
        device=chosen.library.device.name,
        reason=str(failure),
        portable=chosen.library.portable,
        fused=isinstance(chosen, FusedProgram),
    )


def self_test(program: Program, kernels: ModelKernels) -> None:
    """SelfTestError for the first kernel with a wrong result, DeviceError for one that cannot be built or launched."""
    for kernel, difference in SelfTestCases(program, kernels).differences():
        if not difference <= TOLERANCE:
            raise SelfTestError(kernel, difference)
