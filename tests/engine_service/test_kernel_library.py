"""Sources to kernels: each built once, errors with the name and the compiler's words."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from engine_service.compute import kernel_library
from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from service_common.errors import DeviceError


def test_concurrent_first_use_builds_a_program_once(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Eight threads ask at once: one build, eight kernels of their own (BACKEND-1, BACKEND-6)."""
    builds: list[str] = []
    library = KernelLibrary(device)
    original = library.build

    def counting(source: str, text: str, **defines: int | str) -> Any:
        builds.append(source)
        return original(source, text, **defines)

    monkeypatch.setattr(library, "build", counting)
    kernels: list[object] = []
    start = threading.Barrier(8)

    def ask() -> None:
        start.wait()
        kernels.append(library.kernel("quantize", "quantize_rows"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert builds == ["quantize"]
    assert len({id(kernel) for kernel in kernels}) == 8


def test_an_unknown_kernel_is_refused_by_name(device: Device) -> None:
    """Kernel and source are in the message (BACKEND-4)."""
    with pytest.raises(DeviceError, match="kernel=no_such_kernel, source=quantize"):
        KernelLibrary(device).kernel("quantize", "no_such_kernel")


def test_a_source_that_does_not_compile_carries_the_build_log(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """The compiler's own words reach the error, with source and options (BACKEND-4)."""
    monkeypatch.setattr(kernel_library, "operation_text", lambda source: "__kernel void k() { undeclared = 1; }")
    with pytest.raises(DeviceError, match="undeclared") as failure:
        KernelLibrary(device).kernel("broken", "k", SOME_DEFINE=3)
    assert failure.value.parameters["source"] == "broken"
    assert "-DSOME_DEFINE=3" in str(failure.value.parameters["options"])
