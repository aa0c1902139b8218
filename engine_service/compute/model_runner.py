"""One forward pass: inputs up, kernels in order, sampled tokens down."""

from __future__ import annotations

from typing import Protocol

import pyopencl as cl

from engine_service.compute.launches import Launch, Program
from engine_service.compute.logit_rows import logit_rows
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.compute.step_inputs import StepInputs
from engine_service.constraints.mask_threads import MaskRequest, MaskThreads
from engine_service.scheduling.messages import ScheduledStep
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
        mask_threads: MaskThreads,
    ) -> None:
        self.program, self.device = program, program.library.device
        self.inputs, self._model, self._sampler = inputs, model, sampler
        self.launches, self._eog_ids = block_copies + model.launches, eog_ids
        self._mask_threads = mask_threads
        self._executable = program.bind(self.launches, inputs.counts)

    def run(self, step: ScheduledStep) -> list[SampledToken]:
        """A token for each row of logits of the step, in order of chunks. DeviceError where the device fails.

        What the step copies and writes lands in the cache in order, after all that earlier steps wrote.
        """
        size = self.inputs.upload(step.chunks, step.block_copies)
        constrained = ((chunk.constraint, chunk.draft_ids) for chunk in step.chunks)
        pending = self._mask_threads.start([MaskRequest(each, tail) for each, tail in constrained if each is not None])
        self._executable.run(size)
        masks = iter(pending.wait())
        rows: list[RowParams] = []
        for chunk in step.chunks:
            allowed = None if chunk.constraint is None else next(masks)
            rows += logit_rows(chunk, self._eog_ids, self._sampler.vocab_size, allowed)
        self._sampler.enqueue(self._model.logits, rows)
        return self._sampler.read()

    def close(self) -> None:
        """Waits for the device to be done."""
        self._mask_threads.close()
        self.device.close()
