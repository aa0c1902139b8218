"""Many launches as one: a step without a wake-up of the driver's threads between any two operations.

Launches become rows of a table that kernels/cpu/fused.cl goes through. The table holds addresses of buffers, so this is
for devices that share the host's memory and leave buffers where they are: CPUs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.kernel_sources import Variant, fused_text
from engine_service.compute.launches import Argument, Launch
from engine_service.compute.step_inputs import StepSize

_PROGRESS_BYTES = 8  # `progress` of fused.cl


class _Built(NamedTuple):
    """A program, the numbers of its functions, and how its table is laid out."""

    program: cl.Program
    functions: dict[Variant, int]
    row_dtype: np.dtype[np.void]


class FusedProgram:
    """See launches.Program. It is built anew for launches of other variants, so all should be prepared at once."""

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library
        self._built: _Built | None = None

    def prepare(self, launches: Sequence[Launch]) -> None:
        """See launches.Program."""
        self._prepared(launches)

    def bind(self, launches: Sequence[Launch], counts: cl.Buffer) -> FusedLaunches:
        """See launches.Program."""
        program, functions, row_dtype = self._prepared(launches)
        buffers = {id(a): a for launch in launches for a in launch.arguments if isinstance(a, cl.Buffer)}
        addresses = dict(zip(buffers, self._addresses(program, list(buffers.values())), strict=True))
        table = np.zeros(len(launches), row_dtype)
        for row, launch in zip(table, launches, strict=True):
            words = [addresses[id(a)] if isinstance(a, cl.Buffer) else int(a.view(np.uint32)) for a in launch.arguments]
            row["arguments"][: len(words)] = words
            row["function"] = functions[launch.variant]
            row["unit"], row["factor"], row["is_beside"] = launch.unit, launch.factor, launch.is_beside
        kernel = cl.Kernel(program, "fused")
        return FusedLaunches(self.library.device, kernel, table, counts, list(buffers.values()))

    def _prepared(self, launches: Sequence[Launch]) -> _Built:
        by_variant = {launch.variant: launch for launch in launches}
        if self._built is None or not by_variant.keys() <= self._built.functions.keys():
            max_arguments = max(len(launch.arguments) for launch in launches)
            text = fused_text(list(by_variant), [_call(launch) for launch in by_variant.values()], max_arguments)
            functions = {variant: number for number, variant in enumerate(by_variant)}
            self._built = _Built(self.library.build("fused", text), functions, _row_dtype(max_arguments))
        return self._built

    def _addresses(self, program: cl.Program, buffers: Sequence[cl.Buffer]) -> list[int]:
        device, kernel = self.library.device, cl.Kernel(program, "address_of")
        found = device.empty(8 * len(buffers), "fused.addresses")
        for index, buffer in enumerate(buffers):
            kernel.set_args(buffer, found, np.int32(index))
            device.run(kernel, 1)
        addresses = np.empty(len(buffers), np.uint64)
        device.read(found, addresses)
        return [int(address) for address in addresses]


class FusedLaunches:
    """See FusedProgram."""

    def __init__(
        self, device: Device, kernel: cl.Kernel, table: NDArray[Any], counts: cl.Buffer, buffers: list[cl.Buffer]
    ) -> None:
        self._device, self._kernel = device, kernel
        state = device.zeros((len(table) + 1) * _PROGRESS_BYTES, "fused.state")
        arguments = device.upload(table, "fused.operations"), np.int32(len(table)), state, counts
        kernel.set_args(*arguments)
        self._kept = arguments, buffers  # neither a kernel nor a table holds references to buffers

    def run(self, size: StepSize) -> None:
        """See Executable. The kernel reads the size from `counts`."""
        self._device.run(self._kernel, self._device.num_compute_units)


def _row_dtype(max_arguments: int) -> np.dtype[np.void]:
    """Mirrors `operation` of fused.cl."""
    numbers = ("function", "unit", "factor", "is_beside")
    return np.dtype([("arguments", "<u8", (max_arguments,)), *((name, "<i4") for name in numbers)])


def _call(launch: Launch) -> str:
    """The arguments with which fused.cl calls a launch's function, from the words `a` of its row."""
    words = [_word(argument, f"a[{index}]") for index, argument in enumerate(launch.arguments)]
    return ", ".join((*words, "item", "num_items"))


def _word(argument: Argument, word: str) -> str:
    if isinstance(argument, np.float32):
        return f"as_float((uint){word})"
    return f"(int){word}" if isinstance(argument, np.int32) else f"(__global void *){word}"
