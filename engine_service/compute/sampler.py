"""Chooses the next token of each row of logits on the device: docs/numerics.md section 10, kernels/cpu/sample.cl.

A step uploads one array of row parameters, runs one kernel and reads back token ids. Masks and adjustments are uploaded
only for rows that have any; what log-probabilities and mirostat need is read only in steps where a row asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.device import Device, device_errors
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.row_params import ROW_PARAMS, ROW_REPORT, RowParams, sampling_fields
from engine_service.scheduling.adjustments import ADJUSTMENT, NO_ADJUSTMENTS, NONE, Adjustments, ban
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import MAX_LOGPROBS
from service_common.errors import InternalError

_ONE = 2.0**31  # the integer weight of probability 1
_MIN_ADJUSTMENTS = 1 << 12  # that the buffer has room for; it grows to what a step needs


class Sampler:
    """Owns the sampling kernel and its buffers for up to `max_rows` rows a step.

    Use is `enqueue`, then `read`, once per step; between the two, other work may be enqueued.
    """

    def __init__(self, device: Device, library: KernelLibrary, vocab_size: int, max_rows: int) -> None:
        padded_vocab_size = (vocab_size + 7) // 8 * 8
        self._device = device
        self.vocab_size = vocab_size
        self._params = np.zeros(max_rows, ROW_PARAMS)
        self._masks = np.zeros((max_rows, (vocab_size + 31) // 32), np.uint32)
        self._token_ids = np.zeros(max_rows, np.int32)
        self._reports = np.zeros(max_rows, ROW_REPORT)
        self._params_buffer = device.empty(self._params.nbytes, "sampler.params")
        self._adjustments_buffer = self._room_for(_MIN_ADJUSTMENTS)
        self._weights_buffer = device.empty(max_rows * padded_vocab_size * 4, "sampler.weights")
        self._masks_buffer = device.empty(self._masks.nbytes, "sampler.masks")
        self._token_ids_buffer = device.empty(self._token_ids.nbytes, "sampler.token_ids")
        self._reports_buffer = device.empty(self._reports.nbytes, "sampler.reports")
        self._kernel = library.kernel(
            "sample",
            "sample",
            MAX_LOGPROBS=MAX_LOGPROBS,
            ROW_PARAMS_BYTES=ROW_PARAMS.itemsize,
            ROW_REPORT_BYTES=ROW_REPORT.itemsize,
        )
        self._logits_buffer: cl.Buffer | None = None
        self._uploads: list[cl.Event] = []
        self._rows: tuple[RowParams, ...] = ()

    def enqueue(self, logits_buffer: cl.Buffer, rows: Sequence[RowParams]) -> None:
        """Starts choosing a token for each of the first len(rows) rows of `logits_buffer`, f32 [R][vocab_size].

        The logits are the same afterwards. `rows` may be empty. InternalError where a mask allows nothing.
        """
        assert len(rows) <= len(self._params), f"{len(rows)} rows, made for {len(self._params)}"
        assert len(rows) * self.vocab_size * 4 <= logits_buffer.size, "fewer logits than rows"
        self._rows = tuple(rows)
        if not rows:
            return
        self._fill_params(rows)
        num_masks = self._fill_masks(rows)
        adjustments = self._fill_adjustments(rows)
        if adjustments.nbytes > self._adjustments_buffer.size:
            self._adjustments_buffer = self._room_for(2 * len(adjustments))
            self._logits_buffer = None
        if logits_buffer is not self._logits_buffer:
            self._bind(logits_buffer)
        self._uploads = [self._upload(self._params_buffer, self._params[: len(rows)], "sampler.params")]
        if len(adjustments):
            self._uploads.append(self._upload(self._adjustments_buffer, adjustments, "sampler.adjustments"))
        if num_masks:
            self._uploads.append(self._upload(self._masks_buffer, self._masks[:num_masks], "sampler.masks"))
        self._device.run(self._kernel, len(rows))

    def read(self) -> list[SampledToken]:
        """The tokens of the last `enqueue`, in the order of its rows; waits for them."""
        rows = self._rows
        if not rows:
            return []
        token_ids = self._token_ids[: len(rows)]
        self._device.read(self._token_ids_buffer, token_ids)
        if not any(row.wants_report for row in rows):
            return [SampledToken(token_id, None, ()) for token_id in token_ids.tolist()]
        reports = self._reports[: len(rows)]
        self._device.read(self._reports_buffer, reports)
        return [
            _with_report(token_id, row, report, self.vocab_size)
            for token_id, row, report in zip(token_ids.tolist(), rows, reports, strict=True)
        ]

    def _upload(self, buffer: cl.Buffer, source: NDArray[Any], name: str) -> cl.Event:
        """Device.write would wait for the forward pass. The event keeps `source` alive until the copy is done."""
        with device_errors("write buffer", buffer=name, bytes=source.nbytes):
            return cl.enqueue_copy(self._device.queue, buffer, source, is_blocking=False)

    def _bind(self, logits_buffer: cl.Buffer) -> None:
        self._kernel.set_args(
            logits_buffer,
            self._params_buffer,
            self._adjustments_buffer,
            self._weights_buffer,
            self._masks_buffer,
            self._token_ids_buffer,
            self._reports_buffer,
            np.int32(self.vocab_size),
        )
        self._logits_buffer = logits_buffer

    def _fill_params(self, rows: Sequence[RowParams]) -> None:
        params = self._params[: len(rows)]
        params["sampling"] = [sampling_fields(row.sampling) for row in rows]
        params["position"] = [row.position for row in rows]
        params["choice"] = [row.choice for row in rows]
        params["num_logprobs"] = [-1 if row.num_logprobs is None else row.num_logprobs for row in rows]
        params["max_surprise"] = [row.max_surprise for row in rows]

    def _fill_adjustments(self, rows: Sequence[RowParams]) -> NDArray[Any]:
        """The rows' adjustments one behind the other, bans among the biases; refers rows to them."""
        params = self._params[: len(rows)]
        if all(row.adjustments is NO_ADJUSTMENTS and not row.banned_ids for row in rows):
            params["num_biases"] = params["num_penalties"] = params["num_dry"] = 0
            return NONE
        parts = [_with_bans(row) for row in rows]
        counts = np.array([[len(part) for part in adjustments] for adjustments in parts], np.int32)
        params["num_biases"], params["num_penalties"], params["num_dry"] = counts.T
        params["first_adjustment"] = [0, *accumulate(counts.sum(1)[:-1].tolist())]
        return np.concatenate([part for adjustments in parts for part in adjustments])

    def _room_for(self, num_adjustments: int) -> cl.Buffer:
        return self._device.empty(num_adjustments * ADJUSTMENT.itemsize, "sampler.adjustments")

    def _fill_masks(self, rows: Sequence[RowParams]) -> int:
        """Lays out the masks one behind the other and refers rows to them; their number."""
        indices = self._params["mask"]
        indices[: len(rows)] = -1
        num_masks = 0
        for index, row in enumerate(rows):
            if row.allowed is None:
                continue
            if not row.allowed.any():
                raise InternalError(f"the mask of row {index} allows no token", reason="EMPTY_MASK")
            self._masks[num_masks] = row.allowed
            indices[index] = num_masks
            num_masks += 1
        return num_masks


def _with_bans(row: RowParams) -> Adjustments:
    if not row.banned_ids:
        return row.adjustments
    return row.adjustments._replace(biases=np.concatenate((row.adjustments.biases, ban(row.banned_ids))))


def _with_report(token_id: int, row: RowParams, report: Any, vocab_size: int) -> SampledToken:
    """A row's answer, with what it wants of its ROW_REPORT."""
    surprise = 0 if row.sampling.mirostat is None else int(report["surprise"])
    if row.num_logprobs is None:
        return SampledToken(token_id, None, (), surprise)
    num_top = min(row.num_logprobs, vocab_size)
    chosen, *top = _logprobs(
        np.concatenate(([report["chosen_logit"]], report["top_logits"][:num_top])).tolist(), report
    )
    return SampledToken(token_id, chosen, tuple(zip(report["top_ids"][:num_top].tolist(), top, strict=True)), surprise)


def _logprobs(logits: list[float], report: Any) -> list[float]:
    """Computed in float64, rounded once to f32."""
    largest = float(report["largest_logit"])
    log_sum = math.log(int(report["weight_sum"]) / _ONE)
    return [float(np.float32((logit - largest) - log_sum)) for logit in logits]
