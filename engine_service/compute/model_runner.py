"""One forward pass: inputs up, kernels in order, sampled tokens down."""

from __future__ import annotations

from typing import Protocol

import pyopencl as cl

from engine_service.compute.launches import Launch, Program
from engine_service.compute.sampler import RowParams, Sampler
from engine_service.compute.step_inputs import StepInputs
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
        """A token for each row of logits that the step wants, in order of chunks. DeviceError where the device fails.

        What the step copies and writes lands in the cache in order, after all that earlier steps wrote.
        """
        size = self.inputs.upload(step.chunks, step.block_copies)
        self._executable.run(size)
        rows = [self._row(chunk, behind) for chunk in step.chunks for behind in range(chunk.num_rows - 1, -1, -1)]
        self._sampler.enqueue(self._model.logits, rows)
        return self._sampler.read()

    def close(self) -> None:
        """Waits for the device to be done."""
        self.device.close()

    def _row(self, chunk: ScheduledChunk, behind: int) -> RowParams:
        """How the token after the chunk's last token but `behind` is chosen."""
        request, sequence = chunk.sequence.request, chunk.sequence
        return RowParams(
            sampling=request.sampling,
            position=chunk.start + chunk.num_tokens - behind,
            choice=sequence.choice,
            banned_ids=request.limits.banned_ids(self._eog_ids, sequence.num_generated),
            num_logprobs=request.logprobs,
        )
