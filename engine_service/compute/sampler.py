"""Chooses the next token of each row of logits on the device: docs/numerics.md section 10, kernels/cpu/sample.cl.

A step uploads one array of row parameters, runs one kernel and reads back token ids; what log-probabilities need is
read only in steps where a row asks for them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl
from numpy.typing import NDArray

from engine_service.compute.device import Device, device_errors
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.scheduling.sampled_token import SampledToken
from engine_service.scheduling.sampling_params import MAX_LOGPROBS, MAX_STOP_TOKEN_IDS, SamplingParams
from service_common.errors import InternalError

_ONE = 2.0**31  # the integer weight of probability 1
_WORD = 0xFFFFFFFF


class RowParams(NamedTuple):
    """How one row's token is chosen.

    `position` is the absolute position of the token to be chosen. `banned_ids` (distinct or not) come as
    GenerationLimits.banned_ids gives them. `num_logprobs` in [0, 20], or None for no log-probability at all.
    `allowed` is a packed mask, uint32 [ceil(vocab_size / 32)]: bit i % 32 of word i // 32 allows token i, bits from
    vocab_size on are 0, and some bit is set; None allows all. Where all allowed tokens are banned or have logits of
    -infinity or NaN, the lowest allowed id is chosen.
    """

    sampling: SamplingParams
    position: int
    choice: int = 0
    banned_ids: tuple[int, ...] = ()
    num_logprobs: int | None = None
    allowed: NDArray[np.uint32] | None = None


# Mirrors row_report of kernels/cpu/sample.cl, which explains the fields.
ROW_REPORT = np.dtype(
    [
        ("weight_sum", "<u8"),
        ("largest_logit", "<f4"),
        ("chosen_logit", "<f4"),
        ("top_ids", "<i4", (MAX_LOGPROBS,)),
        ("top_logits", "<f4", (MAX_LOGPROBS,)),
    ]
)

_SAMPLING_FIELDS = [
    ("is_greedy", "<i4"),
    ("inverse_temperature", "<f4"),
    ("top_k", "<u4"),
    ("top_p_weight", "<u4"),
    ("min_p_weight", "<u4"),
    ("seed_low", "<u4"),
    ("seed_high", "<u4"),
]


def row_params_dtype(max_banned_ids: int) -> np.dtype[np.void]:
    """Mirrors row_params of kernels/cpu/sample.cl, which explains the fields."""
    return np.dtype(
        [
            ("sampling", _SAMPLING_FIELDS),
            ("position", "<u4"),
            ("choice", "<u4"),
            ("num_logprobs", "<i4"),
            ("mask", "<i4"),
            ("num_banned", "<i4"),
            ("banned_ids", "<i4", (max_banned_ids,)),
        ]
    )


class Sampler:
    """Owns the sampling kernel and its buffers for up to `max_rows` rows a step.

    `eog_ids` are the model's end-of-generation ids, which a row may ban beside its stop ids; each must be below
    `vocab_size`. Use is `enqueue`, then `read`, once per step; between the two, other work may be enqueued.
    """

    def __init__(
        self, device: Device, library: KernelLibrary, vocab_size: int, max_rows: int, eog_ids: Sequence[int]
    ) -> None:
        max_banned_ids = len(eog_ids) + MAX_STOP_TOKEN_IDS
        dtype = row_params_dtype(max_banned_ids)
        padded_vocab_size = (vocab_size + 7) // 8 * 8
        self._device = device
        self._vocab_size = vocab_size
        self._params = np.zeros(max_rows, dtype)
        self._masks = np.zeros((max_rows, (vocab_size + 31) // 32), np.uint32)
        self._token_ids = np.zeros(max_rows, np.int32)
        self._reports = np.zeros(max_rows, ROW_REPORT)
        self._params_buffer = device.empty(self._params.nbytes, "sampler.params")
        self._weights_buffer = device.empty(max_rows * padded_vocab_size * 4, "sampler.weights")
        self._masks_buffer = device.empty(self._masks.nbytes, "sampler.masks")
        self._token_ids_buffer = device.empty(self._token_ids.nbytes, "sampler.token_ids")
        self._reports_buffer = device.empty(self._reports.nbytes, "sampler.reports")
        self._kernel = library.kernel(
            "sample",
            "sample",
            MAX_BANNED_IDS=max_banned_ids,
            MAX_LOGPROBS=MAX_LOGPROBS,
            ROW_PARAMS_BYTES=dtype.itemsize,
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
        assert len(rows) * self._vocab_size * 4 <= logits_buffer.size, "fewer logits than rows"
        self._rows = tuple(rows)
        if not rows:
            return
        if logits_buffer is not self._logits_buffer:
            self._bind(logits_buffer)
        self._fill_params(rows)
        num_masks = self._fill_masks(rows)
        self._uploads = [self._upload(self._params_buffer, self._params[: len(rows)], "sampler.params")]
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
        if all(row.num_logprobs is None for row in rows):
            return [SampledToken(token_id, None, ()) for token_id in token_ids.tolist()]
        reports = self._reports[: len(rows)]
        self._device.read(self._reports_buffer, reports)
        return [
            SampledToken(token_id, None, ())
            if row.num_logprobs is None
            else _with_logprobs(token_id, min(row.num_logprobs, self._vocab_size), report)
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
            self._weights_buffer,
            self._masks_buffer,
            self._token_ids_buffer,
            self._reports_buffer,
            np.int32(self._vocab_size),
        )
        self._logits_buffer = logits_buffer

    def _fill_params(self, rows: Sequence[RowParams]) -> None:
        params = self._params[: len(rows)]
        params["sampling"] = [_sampling_fields(row.sampling) for row in rows]
        params["position"] = [row.position for row in rows]
        params["choice"] = [row.choice for row in rows]
        params["num_logprobs"] = [-1 if row.num_logprobs is None else row.num_logprobs for row in rows]
        params["num_banned"] = [len(row.banned_ids) for row in rows]
        for index, row in enumerate(rows):
            if row.banned_ids:
                params["banned_ids"][index, : len(row.banned_ids)] = row.banned_ids

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


@lru_cache(maxsize=4096)
def _sampling_fields(sampling: SamplingParams) -> tuple[Any, ...]:
    """The fields named by _SAMPLING_FIELDS: the same in every step of a request."""
    return (
        sampling.is_greedy,
        sampling.inverse_temperature,
        sampling.top_k,
        sampling.top_p_weight,
        sampling.min_p_weight,
        sampling.seed & _WORD,
        sampling.seed >> 32,
    )


def _with_logprobs(token_id: int, num_top: int, report: Any) -> SampledToken:
    """One row's answer from its ROW_REPORT: computed in float64, rounded once to f32."""
    largest = float(report["largest_logit"])
    log_sum = math.log(int(report["weight_sum"]) / _ONE)

    def logprob(logit: float) -> float:
        return float(np.float32((logit - largest) - log_sum))

    top = zip(report["top_ids"][:num_top].tolist(), report["top_logits"][:num_top].tolist(), strict=True)
    chosen = logprob(float(report["chosen_logit"]))
    return SampledToken(token_id, chosen, tuple((index, logprob(logit)) for index, logit in top))
