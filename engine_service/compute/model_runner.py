"""One forward pass: inputs up, kernels in order, sampled tokens down."""

from __future__ import annotations

from typing import Protocol

import pyopencl as cl

from engine_service.compute.device import Device
from engine_service.compute.launches import Executable, Launch
from engine_service.compute.sampler import RowParams, Sampler
from engine_service.compute.step_inputs import StepInputs
from engine_service.scheduling.messages import ScheduledChunk, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken


class Model(Protocol):
    """A model on the device, whatever its family."""

    launches: list[Launch]
    logits: cl.Buffer


class ModelRunner:
    """Runs scheduled steps: `launches` copy KV blocks, then are the model's.

    Prefill, decode and chunked prefill are the same code path.
    """

    def __init__(
        self,
        device: Device,
        launches: Executable,
        model: Model,
        inputs: StepInputs,
        sampler: Sampler,
        eog_ids: tuple[int, ...],
    ) -> None:
        self._device, self._model, self._inputs, self._sampler = device, model, inputs, sampler
        self._launches, self._eog_ids = launches, eog_ids

    def run(self, step: ScheduledStep) -> list[SampledToken]:
        """The next token of every chunk that samples, in order of chunks. DeviceError where the device fails.

        What the step copies and writes lands in the cache in order, after all that earlier steps wrote.
        """
        size = self._inputs.upload(step.chunks, step.block_copies)
        self._launches.run(size)
        self._sampler.enqueue(self._model.logits, [self._row(chunk) for chunk in step.chunks if chunk.samples])
        return self._sampler.read()

    def close(self) -> None:
        """Waits for the device to be done."""
        self._device.close()

    def _row(self, chunk: ScheduledChunk) -> RowParams:
        request, sequence = chunk.sequence.request, chunk.sequence
        return RowParams(
            sampling=request.sampling,
            position=chunk.start + chunk.num_tokens,
            choice=sequence.choice,
            banned_ids=request.limits.banned_ids(self._eog_ids, sequence.num_generated),
            num_logprobs=request.logprobs,
        )
