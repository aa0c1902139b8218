"""Operations with their arguments, as data: a model is a list of launches, which programs run one by one or fused."""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple, Protocol

import numpy as np
import pyopencl as cl

from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.kernel_sources import Variant
from engine_service.compute.step_inputs import StepSize
from engine_service.compute.work import WorkOf, no_work

Argument = cl.Buffer | np.int32 | np.float32


class Unit(IntEnum):
    """What an operation has some items of work for each of: its place in StepSize."""

    TOKEN = 0
    LOGIT_ROW = 1
    TILE = 2
    BLOCK_COPY = 3
    STEP = 4


class Launch(NamedTuple):
    """An operation on its buffers, with `factor` items of work for each `unit` of a step.

    Arguments never change between steps; what does, the kernels read from StepInputs. `is_beside` tells that it may run
    beside the launch before it, since neither reads or writes what the other one writes. `name` and `work` are for
    people who read a profile.
    """

    variant: Variant
    arguments: tuple[Argument, ...]
    unit: Unit
    factor: int = 1
    is_beside: bool = False
    name: str = ""
    work: WorkOf = no_work

    def num_items(self, size: StepSize) -> int:
        """Items of work in a step of some size."""
        return size[self.unit] * self.factor


class Executable(Protocol):
    """Launches, ready to be run in their order."""

    def run(self, size: StepSize) -> None:
        """Enqueues all of them for the step that is in StepInputs. DeviceError where the device refuses."""


class Program(Protocol):
    """How launches are run on a device."""

    @property
    def library(self) -> KernelLibrary:
        """Where its kernels are from."""

    def prepare(self, launches: Sequence[Launch]) -> None:
        """Builds what launches like these need. DeviceError carries the build log."""

    def bind(self, launches: Sequence[Launch], counts: cl.Buffer) -> Executable:
        """Launches to be run in their order, prepared if need be; `counts` as StepInputs has them."""


class SeparateProgram:
    """Each launch is a launch of its own kernel."""

    def __init__(self, library: KernelLibrary) -> None:
        self.library = library

    def prepare(self, launches: Sequence[Launch]) -> None:
        """See Program."""
        for launch in launches:
            bound_kernel(self.library, launch)

    def bind(self, launches: Sequence[Launch], counts: cl.Buffer) -> SeparateLaunches:
        """See Program."""
        return SeparateLaunches(self.library, launches)


class SeparateLaunches:
    """See SeparateProgram."""

    def __init__(self, library: KernelLibrary, launches: Sequence[Launch]) -> None:
        self._device, self._launches = library.device, launches
        self._kernels = [bound_kernel(library, launch) for launch in launches]

    def run(self, size: StepSize) -> None:
        """See Executable."""
        for launch, kernel in zip(self._launches, self._kernels, strict=True):
            if num_items := launch.num_items(size):
                self._device.run(kernel, num_items)


def bound_kernel(library: KernelLibrary, launch: Launch) -> cl.Kernel:
    """A kernel of the launch's own, with its arguments. OpenCL holds no reference to the buffers among them."""
    source, name, defines = launch.variant
    kernel = library.kernel(source, name, **dict(defines))
    kernel.set_args(*launch.arguments)
    return kernel
