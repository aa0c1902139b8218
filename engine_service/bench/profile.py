"""Where the time of a step goes: each launch of its forward pass, timed by the device.

A step that is profiled runs twice: as it always does, then launch by launch. Passes may run twice, since they write the
same bits to the same places.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import pyopencl as cl

from engine_service.bench.figures import rounded
from engine_service.bench.limits import Limits
from engine_service.compute.device import Device, device_errors
from engine_service.compute.launches import Launch, bound_kernel
from engine_service.compute.model_runner import ModelRunner
from engine_service.compute.step_inputs import StepSize
from engine_service.compute.work import StepShape, Work
from engine_service.scheduling.messages import ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken

_NANOSECOND = 1e-9
_GIGA = 1e9
_MILLISECOND = 1e-3


class LaunchTime(NamedTuple):
    """One launch in one step."""

    name: str
    seconds: float
    work: Work


class KernelTotal(NamedTuple):
    """All launches of one name in a step, on average over the steps."""

    name: str
    num_launches: float
    seconds: float
    nbytes: float
    num_ops: float

    def to_json(self, limits: Limits) -> dict[str, Any]:
        """Rates, and what fraction of the limits they are; None where nothing was counted."""
        bytes_per_s, ops_per_s = self.nbytes / self.seconds, self.num_ops / self.seconds
        return {
            "kernel": self.name,
            "launches": rounded(self.num_launches),
            "ms": rounded(self.seconds / _MILLISECOND),
            "gb_per_s": rounded(bytes_per_s / _GIGA) if self.nbytes else None,
            "of_copy": rounded(bytes_per_s / limits.bytes_per_s) if self.nbytes else None,
            "gop_per_s": rounded(ops_per_s / _GIGA) if self.num_ops else None,
            "of_multiply_add": rounded(ops_per_s / limits.ops_per_s) if self.num_ops else None,
        }


class Profile(NamedTuple):
    """A workload's steps: `step_seconds` is how long one took as it always runs, sampling included."""

    num_steps: int
    step_seconds: float
    kernels: Sequence[KernelTotal]

    def to_json(self, limits: Limits) -> dict[str, Any]:
        """Kernels, the most expensive first, beside the machine's limits."""
        return {
            "steps": self.num_steps,
            "step_ms": rounded(self.step_seconds / _MILLISECOND),
            "sum_ms": rounded(sum(kernel.seconds for kernel in self.kernels) / _MILLISECOND),
            "copy_gb_per_s": rounded(limits.bytes_per_s / _GIGA),
            "multiply_add_gop_per_s": rounded(limits.ops_per_s / _GIGA),
            "kernels": [kernel.to_json(limits) for kernel in self.kernels],
        }


class Profiler:
    """A Runner that runs each step by `runner`, and then its launches once more, each timed."""

    def __init__(self, runner: ModelRunner) -> None:
        self._runner = runner
        self._queue = _timing_queue(runner.device)
        self._kernels = [bound_kernel(runner.program.library, launch) for launch in runner.launches]
        self._step_seconds: list[float] = []
        self._launch_times: list[LaunchTime] = []

    def run(self, step: ScheduledStep) -> list[SampledToken]:
        """As Runner.run."""
        started = time.perf_counter()
        tokens = self._runner.run(step)
        self._step_seconds.append(time.perf_counter() - started)
        size = self._runner.inputs.upload(step.chunks, step.block_copies)
        kernels = zip(self._runner.launches, self._kernels, strict=True)
        self._launch_times += time_launches(self._queue, kernels, size, StepShape.of(step.chunks))
        return tokens

    def close(self) -> None:
        """As Runner.close."""
        self._runner.close()

    def profile(self) -> Profile:
        """Of all steps so far."""
        num_steps = len(self._step_seconds)
        return Profile(num_steps, sum(self._step_seconds) / num_steps, totals(self._launch_times, num_steps))


def time_launches(
    queue: cl.CommandQueue, launches: Iterable[tuple[Launch, cl.Kernel]], size: StepSize, shape: StepShape
) -> list[LaunchTime]:
    """Runs launches one after the other on a queue that takes times, and waits for them."""
    timed = []
    for launch, kernel in launches:
        if num_items := launch.num_items(size):
            name = launch.name or launch.variant.kernel
            with device_errors("profile kernel", kernel=name, items=num_items):
                event = cl.enqueue_nd_range_kernel(queue, kernel, (num_items,), (1,))
                event.wait()
            seconds = (event.profile.end - event.profile.start) * _NANOSECOND
            timed.append(LaunchTime(name, seconds, launch.work(shape)))
    return timed


def totals(launch_times: Iterable[LaunchTime], num_steps: int) -> list[KernelTotal]:
    """Sums by name, per step, the most expensive first."""
    by_name: dict[str, list[LaunchTime]] = {}
    for launch_time in launch_times:
        by_name.setdefault(launch_time.name, []).append(launch_time)
    summed = [
        KernelTotal(
            name,
            len(times) / num_steps,
            sum(timed.seconds for timed in times) / num_steps,
            sum(timed.work.nbytes for timed in times) / num_steps,
            sum(timed.work.num_ops for timed in times) / num_steps,
        )
        for name, times in by_name.items()
    ]
    return sorted(summed, key=lambda total: total.seconds, reverse=True)


def _timing_queue(device: Device) -> cl.CommandQueue:
    """A queue beside the device's own, which takes no times so that serving does not pay for them."""
    with device_errors("create queue", device=device.name):
        return cl.CommandQueue(device.context, properties=cl.command_queue_properties.PROFILING_ENABLE)
