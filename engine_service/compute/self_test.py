"""Tries every kernel of a model before the engine serves; native kernels that fail give way to portable ones.

The kernels are built exactly as the model will have them, so this is their warm-up too; it takes a fraction of a second
once they are in the driver's cache.
"""

from __future__ import annotations

import structlog

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.model_kernels import ModelKernels
from engine_service.compute.self_test_cases import SelfTestCases
from service_common.errors import DeviceError

TOLERANCE = 1e-5  # greatest distance from numpy's result, in parts of that result's Euclidean norm


class SelfTestError(DeviceError):
    """A kernel computes something else than numpy does: `difference` is relative, and above TOLERANCE or NaN."""

    def __init__(self, kernel: str, difference: float) -> None:
        super().__init__("self-test", "WRONG_RESULT", kernel=kernel, difference=f"{difference:.2g}", limit=TOLERANCE)
        self.kernel, self.difference = kernel, difference


def choose_library(device: Device, kernels: ModelKernels, *, portable: bool) -> KernelLibrary:
    """A library that has passed the self-test: the native one, or with a warning that says why, the portable one.

    With `portable` the native one is not tried. DeviceError names the kernel where the portable library fails as well.
    """
    if not portable:
        native = KernelLibrary(device)
        try:
            self_test(native, kernels)
            return native
        except DeviceError as error:
            structlog.get_logger(__name__).warning(
                "a native kernel fails on this device; portable ones give the same results, but slower",
                kernel=error.parameters.get("kernel", error.parameters.get("source")),
                device=device.name,
                reason=str(error),
            )
    library = KernelLibrary(device, portable=True)
    self_test(library, kernels)
    return library


def self_test(library: KernelLibrary, kernels: ModelKernels) -> None:
    """SelfTestError for the first kernel with a wrong result, DeviceError for one that cannot be built or launched."""
    for kernel, difference in SelfTestCases(library, kernels).differences():
        if not difference <= TOLERANCE:
            raise SelfTestError(kernel, difference)
