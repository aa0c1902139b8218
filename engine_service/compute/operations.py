"""The kernels of a forward pass, each bound to its buffers once: a model is a list of launches made here.

Arguments never change between steps; what does is read by the kernels from StepInputs, and the number of work-items is
computed from the step's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pyopencl as cl

from engine_service.compute.device import Device
from engine_service.compute.kernel_sources import Variant
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.launches import Argument, Launch, Unit
from engine_service.compute.quant_layouts import ROWS
from engine_service.compute.step_inputs import LOGIT_COUNT, TILE_ROWS, TOKEN_COUNT, StepInputs
from engine_service.compute.weights import Matrix
from engine_service.compute.work import attention_work, matmul_work, row_work

_GROUP = 32  # elements that share an activation scale: docs/numerics.md section 2
_SWIGLU_CHUNK = 1024
_MATMUL_SHARE = 8  # groups of 8 weight rows a work-item, where that leaves items enough for all threads
_MATMUL_ITEMS_PER_UNIT = 4


class QuantisedRows(NamedTuple):
    """codes int8 [rows][padded width], scales f32 [rows][padded width / 32], sums int16 [rows][… / 32][2]."""

    codes: cl.Buffer
    scales: cl.Buffer
    sums: cl.Buffer


class Activations(NamedTuple):
    """Rows [rows][width] in the forms that the matrices they are multiplied with take: f32, quantised, or both."""

    width: int
    values: cl.Buffer | None
    quantised: QuantisedRows | None


class AttentionShape(NamedTuple):
    """What a family's attention looks like. `rope_adjacent`: pairs are neighbours (2i, 2i + 1), else halves."""

    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_dim: int
    rope_adjacent: bool

    @property
    def qkv_width(self) -> int:
        """Elements of a row of queries, keys and values."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim


class Operations:
    """Makes launches and the buffers between them."""

    def __init__(self, device: Device, inputs: StepInputs) -> None:
        self._device, self._inputs = device, inputs

    def rows(self, num_rows: int, width: int, name: str) -> cl.Buffer:
        """An f32 buffer [num_rows][width]."""
        return self._device.empty(num_rows * width * 4, name)

    def activations(
        self, num_rows: int, width: int, consumers: Sequence[Matrix], name: str, *, with_values: bool = False
    ) -> Activations:
        """Buffers for the input of `consumers`, in the forms that their layouts take; `with_values`: f32 too."""
        quantised = None
        if any(matrix.layout.is_quantised for matrix in consumers):
            groups = num_rows * -(-width // _GROUP)
            quantised = QuantisedRows(
                self._device.empty(groups * _GROUP, f"{name}.codes"),
                self._device.empty(groups * 4, f"{name}.scales"),
                self._device.empty(groups * 4, f"{name}.sums"),
            )
        plain = with_values or any(not matrix.layout.is_quantised for matrix in consumers)
        return Activations(width, self.rows(num_rows, width, name) if plain else None, quantised)

    def gather(self, embedding: Matrix, out: cl.Buffer) -> list[Launch]:
        """out[row] = embedding[token_ids[row]]."""
        variant = Variant.of("gather", "gather_rows", **embedding.layout.defines)
        arguments = embedding.buffer, self._inputs.token_ids, out, np.int32(embedding.cols)
        work = row_work(embedding.buffer.size // embedding.rows + 4 * embedding.cols)
        return [Launch(variant, arguments, Unit.TOKEN, work=work)]

    def rms_norm(
        self, x: cl.Buffer, weight: cl.Buffer, eps: float, out: Activations, *, only_logit_rows: bool = False
    ) -> list[Launch]:
        """out = norm(x) × weight, of all tokens' rows or only of those whose logits are wanted."""
        unit = Unit.LOGIT_ROW if only_logit_rows else Unit.TOKEN
        defines = {"ROW_IDS": 1} if only_logit_rows else {}
        inputs = (x, self._inputs.logit_rows, weight) if only_logit_rows else (x, weight)
        size = np.int32(out.width), np.float32(eps)
        launches: list[Launch] = []
        for form, form_defines in _forms(out):
            variant = Variant.of("rms_norm", "rms_norm", **defines, **form_defines)
            nbytes = 4 * out.width + _form_bytes(out.width, form)
            work = row_work(nbytes, 4 * out.width, only_logit_rows=only_logit_rows)
            launches.append(Launch(variant, (*inputs, *form, *size), unit, is_beside=bool(launches), work=work))
        return launches

    def quantize(self, x: Activations) -> list[Launch]:
        """Fills the quantised form of `x` from its values, where a consumer takes it (docs/numerics.md section 2)."""
        if x.quantised is None:
            return []
        assert x.values is not None, "there is nothing to quantise"
        arguments = x.values, *x.quantised, np.int32(x.width)
        work = row_work(4 * x.width + _form_bytes(x.width, x.quantised), 2 * x.width)
        return [Launch(Variant.of("quantize", "quantize_rows"), arguments, Unit.TOKEN, work=work)]

    def matmul(
        self,
        matrix: Matrix,
        x: Activations,
        y: cl.Buffer,
        *,
        y_stride: int,
        y_offset: int = 0,
        bias: cl.Buffer | None = None,
        add_to_y: bool = False,
        only_logit_rows: bool = False,
        is_beside: bool = False,
    ) -> list[Launch]:
        """y[row][y_offset:] = matrix @ x[row] (+ bias), or that added to what is there. `is_beside` as in Launch."""
        defines = dict(matrix.layout.defines)
        if bias is not None:
            defines["BIAS"] = 1
        if add_to_y:
            defines["RESIDUAL"] = 1
        source = "matmul_quant" if matrix.layout.is_quantised else "matmul_float"
        inputs = x.quantised if matrix.layout.is_quantised else (x.values,)
        assert inputs is not None, "the activations were made for other matrices"
        sizes = (LOGIT_COUNT if only_logit_rows else TOKEN_COUNT, matrix.cols, matrix.rows, y_stride, y_offset)
        biases = () if bias is None else (bias,)
        arguments = matrix.buffer, *inputs, *biases, y, self._inputs.counts, *map(np.int32, sizes)
        variant = Variant.of(source, source, **defines)
        name = f"matmul {matrix.layout.name} {matrix.rows} × {matrix.cols}"
        work = matmul_work(matrix.buffer.size, matrix.rows, matrix.cols, only_logit_rows=only_logit_rows)
        return [Launch(variant, arguments, Unit.STEP, self._matmul_items(matrix.rows), is_beside, name, work)]

    def _matmul_items(self, num_rows: int) -> int:
        """Kernels share their rows out among any number of items: few are faster, but all threads need some."""
        groups, share = -(-num_rows // ROWS), _MATMUL_SHARE
        while share > 2 and -(-groups // share) < _MATMUL_ITEMS_PER_UNIT * self._device.num_compute_units:
            share //= 2
        return -(-groups // share)

    def copy_blocks(self, cache: KVCache, shape: AttentionShape) -> list[Launch]:
        """Copies the step's block_copies, K and V of all layers."""
        variant = Variant.of("copy_blocks", "copy_blocks", **_head_defines(shape, cache))
        pages = zip(cache.keys, cache.values, strict=True)
        return [
            Launch(
                variant, (self._inputs.block_copies, keys, values), Unit.BLOCK_COPY, shape.num_kv_heads * 2, layer > 0
            )
            for layer, (keys, values) in enumerate(pages)
        ]

    def rope_kv_write(
        self, qkv: cl.Buffer, rotary_table: cl.Buffer, cache: KVCache, layer: int, shape: AttentionShape
    ) -> list[Launch]:
        """Rotates queries in place and writes rotated keys, and values, to the layer's pages."""
        variant = Variant.of(
            "rope_kv_write",
            "rope_kv_write",
            **_head_defines(shape, cache),
            ROPE_DIM=shape.rope_dim,
            **({"ROPE_ADJACENT": 1} if shape.rope_adjacent else {}),
        )
        pages = cache.keys[layer], cache.values[layer]
        inputs = self._inputs
        arguments = qkv, inputs.positions, inputs.slot_mapping, rotary_table, *pages
        written = 4 * shape.num_heads * shape.head_dim + 2 * shape.num_kv_heads * cache.shape.head_bytes
        num_rotated = (shape.num_heads + shape.num_kv_heads) * shape.rope_dim
        work = row_work(4 * shape.qkv_width + written, 3 * num_rotated)  # 4 products and 2 sums turn a pair
        return [Launch(variant, arguments, Unit.TOKEN, work=work)]

    def attention(
        self, qkv: cl.Buffer, cache: KVCache, layer: int, out: cl.Buffer, shape: AttentionShape
    ) -> list[Launch]:
        """out [rows][num_heads × head_dim] = causal attention over the layer's pages."""
        variant = Variant.of("attention", "attention", **_head_defines(shape, cache), TILE_ROWS=TILE_ROWS)
        inputs = self._inputs
        sizes = np.int32(inputs.limits.max_blocks_per_seq), np.float32(shape.head_dim**-0.5)
        pages = cache.keys[layer], cache.values[layer]
        arguments = qkv, *pages, inputs.positions, inputs.block_tables, inputs.tiles, out, *sizes
        context_bytes = 2 * shape.num_kv_heads * cache.shape.head_bytes
        work = attention_work(shape.num_heads, shape.head_dim, context_bytes=context_bytes)
        return [Launch(variant, arguments, Unit.TILE, shape.num_kv_heads, work=work)]

    def swiglu(self, gate_up: cl.Buffer, out: Activations) -> list[Launch]:
        """out = silu(gate) × up."""
        chunks = -(-out.width // _SWIGLU_CHUNK)
        launches: list[Launch] = []
        for form, defines in _forms(out):
            variant = Variant.of("swiglu", "swiglu", CHUNK=_SWIGLU_CHUNK, **defines)
            arguments: tuple[Argument, ...] = (gate_up, *form, np.int32(out.width))
            work = row_work(8 * out.width + _form_bytes(out.width, form))
            launches.append(Launch(variant, arguments, Unit.TOKEN, chunks, is_beside=bool(launches), work=work))
        return launches


def _form_bytes(width: int, form: tuple[cl.Buffer, ...]) -> int:
    """Bytes of a row in a form of `_forms`: f32, or codes with a scale and two sums per group."""
    return 4 * width if len(form) == 1 else -(-width // _GROUP) * (_GROUP + 8)


def _forms(out: Activations) -> Iterator[tuple[tuple[cl.Buffer, ...], dict[str, int]]]:
    """The buffers of each form that `out` has, with the defines of a kernel that writes it."""
    if out.values is not None:
        yield (out.values,), {}
    if out.quantised is not None:
        yield out.quantised, {"QUANTIZE": 1}


_KV_DEFINES = {"f16": {}, "f32": {"KV_F32": 1}, "int8": {"KV_INT8": 1}}


def _head_defines(shape: AttentionShape, cache: KVCache) -> dict[str, int]:
    return {
        "HEAD_DIM": shape.head_dim,
        "NUM_HEADS": shape.num_heads,
        "NUM_KV_HEADS": shape.num_kv_heads,
        "BLOCK_SIZE": cache.shape.block_size,
        **_KV_DEFINES[cache.shape.kv_cache_type],
    }
