"""One forward pass: inputs up, kernels in order, sampled tokens down."""

from __future__ import annotations

from typing import Protocol

import pyopencl as cl

from engine_service.compute.launches import Launch, Program
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.compute.step_inputs import StepInputs
from engine_service.scheduling.adjustments import NO_ADJUSTMENTS
from engine_service.scheduling.messages import ScheduledChunk, ScheduledStep
from engine_service.scheduling.sampled_token import SampledToken


class Model(Protocol):
    """A model on the device, whatever its family."""

    launches: list[Launch]
    logits: cl.Buffer


class ModelRunner:
    """Runs scheduled steps: `block_copies` are the launches that copy KV blocks, which come before the model's.

    Prefill, decode and chunked prefill are the same code path: `launches`, in order, over what `inputs` hold.
    """

    def __init__(
        self,
        program: Program,
        block_copies: list[Launch],
        model: Model,
        inputs: StepInputs,
        sampler: Sampler,
        eog_ids: tuple[int, ...],
    ) -> None:
        self.program, self.device = program, program.library.device
        self.inputs, self._model, self._sampler = inputs, model, sampler
        self.launches, self._eog_ids = block_copies + model.launches, eog_ids
        self._executable = program.bind(self.launches, inputs.counts)

    def run(self, step: ScheduledStep) -> list[SampledToken]:
        """The next token of every chunk that samples, in order of chunks. DeviceError where the device fails.

        What the step copies and writes lands in the cache in order, after all that earlier steps wrote.
        """
        size = self.inputs.upload(step.chunks, step.block_copies)
        self._executable.run(size)
        self._sampler.enqueue(self._model.logits, [self._row(chunk) for chunk in step.chunks if chunk.samples])
        return self._sampler.read()

    def close(self) -> None:
        """Waits for the device to be done."""
        self.device.close()

    def _row(self, chunk: ScheduledChunk) -> RowParams:
        request, sequence, state = chunk.sequence.request, chunk.sequence, chunk.sequence.sampling_state
        allowed = request.sampling.allowed
        return RowParams(
            sampling=request.sampling,
            position=chunk.start + chunk.num_tokens,
            choice=sequence.choice,
            banned_ids=request.limits.banned_ids(self._eog_ids, sequence.num_generated),
            num_logprobs=request.logprobs,
            allowed=None if allowed is None else allowed.mask,
            adjustments=NO_ADJUSTMENTS if state is None else state.adjustments(),
            max_surprise=0 if state is None else state.max_surprise,
        )
