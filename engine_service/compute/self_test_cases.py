"""A small case for every kernel of a model: run through Operations as the model does, and compared with numpy."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import pyopencl as cl
from gguf import quants
from numpy.typing import DTypeLike, NDArray

from engine_service.compute import self_test_reference as reference
from engine_service.compute.kv_cache import KVCache
from engine_service.compute.kv_plan import KVCacheShape
from engine_service.compute.launches import Launch, Program
from engine_service.compute.model_kernels import MatmulKind, ModelKernels
from engine_service.compute.operations import Activations, Operations, QuantisedRows
from engine_service.compute.quant_layouts import Layout, pack
from engine_service.compute.row_params import RowParams
from engine_service.compute.sampler import Sampler
from engine_service.compute.self_test_pages import CachePages
from engine_service.compute.self_test_reference import Doubles, Floats
from engine_service.compute.step_inputs import StepInputs, StepLimits
from engine_service.compute.weights import Matrix
from engine_service.scheduling.messages import BlockCopy, ScheduledChunk
from engine_service.scheduling.sampling_params import GenerationLimits, SamplingParams
from engine_service.scheduling.sequence import Request, Sequence

# Sizes that no kernel's unit of work divides, and that pass the points where sums are cut. The sequences are a prompt,
# and one token far into its context.
CHUNKS = ((0, 12), (260, 1))
_MATRIX_ROWS, _QUANTISED_COLS, _FLOAT_COLS = 19, 768, 523
_NORM_WIDTH, _FFN_SIZE, _VOCAB_SIZE = 84, 1100, 1000

_SAMPLINGS = (
    SamplingParams(seed=1, temperature=0.0),
    SamplingParams(seed=2, temperature=0.7),
    SamplingParams(seed=3, top_k=40),
    SamplingParams(seed=4, temperature=1.5, top_p=0.8),
    SamplingParams(seed=5, min_p=0.05),
    SamplingParams(seed=1 << 63, temperature=0.9, top_k=100, top_p=0.95, min_p=0.01),
)


class _Case(NamedTuple):
    """Launches whose inputs are in place, and how far they are from numpy once they have run."""

    name: str
    launches: list[Launch]
    difference: Callable[[], float]


class SelfTestCases:
    """A step in which each kernel is run; `chunks` are the first position and the number of tokens of each sequence."""

    def __init__(self, program: Program, kernels: ModelKernels, chunks: Collection[tuple[int, int]] = CHUNKS) -> None:
        self._program, self._device, self._kernels = program, program.library.device, kernels
        self._rng = np.random.default_rng(0)
        num_blocks = [-(-(start + count) // kernels.block_size) for start, count in chunks]
        block_ids = iter(self._rng.permutation(sum(num_blocks)).tolist())
        self._chunks = [_chunk(*chunk, islice(block_ids, n)) for chunk, n in zip(chunks, num_blocks, strict=True)]
        self._ends = np.cumsum([count for _, count in chunks])  # of each sequence's rows
        self._num_tokens = int(self._ends[-1])
        num_seqs = len(chunks)
        limits = StepLimits(self._num_tokens, num_seqs, num_seqs, max(num_blocks), kernels.block_size)
        self._inputs = StepInputs(self._device, limits)
        self._block_copies = [BlockCopy(i % sum(num_blocks), sum(num_blocks) + i) for i in range(len(chunks))]
        self._size = self._inputs.upload(self._chunks, self._block_copies)
        self._operations = Operations(self._device, self._inputs)
        shape = kernels.shape
        self._cache_shape = KVCacheShape(
            1, shape.num_kv_heads, shape.head_dim, kernels.block_size, kernels.kv_cache_type
        )
        self._num_blocks = sum(num_blocks) + len(self._block_copies)

    def differences(self) -> Iterator[tuple[str, float]]:
        """Runs every kernel: its name, with its layout where it is built for one, and how far it is from numpy."""
        cases = list(self._cases())
        self._program.prepare([launch for case in cases for launch in case.launches])
        for case in cases:
            self._program.bind(case.launches, self._inputs.counts).run(self._size)
            yield case.name, case.difference()
        yield "sample", self._sample()

    def _cases(self) -> Iterator[_Case]:
        k = self._kernels
        yield from map(self._gather, k.layouts["token_embd"])
        for layout in k.forms("attn_q", "attn_k", "attn_v", "ffn_gate", "ffn_up"):
            yield self._rms_norm(layout, only_logit_rows=False)
        for layout in k.forms("output"):
            yield self._rms_norm(layout, only_logit_rows=True)
        yield from map(self._matmul, k.matmuls())
        yield from (self._rope_kv_write(), self._attention(), self._copy_blocks())
        yield from (self._quantize(layout) for layout in k.forms("attn_output") if layout.is_quantised)
        yield from map(self._swiglu, k.forms("ffn_down"))

    def _gather(self, layout: Layout) -> _Case:
        matrix, dense = self._matrix(layout)
        out = self._spoilt(self._operations.rows(self._num_tokens, matrix.cols, "self_test"))
        token_ids = [token_id for chunk in self._chunks for token_id in chunk.token_ids()]

        def difference() -> float:
            return reference.difference(self._read(out, self._num_tokens, matrix.cols), dense[token_ids])

        return _Case(f"gather {layout.name}", self._operations.gather(matrix, out), difference)

    def _rms_norm(self, consumer: Layout, *, only_logit_rows: bool) -> _Case:
        x, weight, eps = self._normal(self._num_tokens, _NORM_WIDTH), self._normal(_NORM_WIDTH), 0.5
        out = self._activations(_NORM_WIDTH, consumer)
        buffers = self._upload(x), self._upload(weight)
        launches = self._operations.rms_norm(*buffers, eps, out, only_logit_rows=only_logit_rows)
        exact = reference.rms_norm(x[self._ends - 1] if only_logit_rows else x, weight, eps)
        return _Case("rms_norm", launches, lambda: self._activations_difference(out, exact))

    def _matmul(self, kind: MatmulKind) -> _Case:
        matrix, dense = self._matrix(kind.layout)
        activations, x = self._input(kind.layout, matrix.cols)
        first, end, stride = 3, 3 + matrix.rows, matrix.rows + 5
        before, bias = self._normal(self._num_tokens, stride), self._normal(matrix.rows)
        y, bias_buffer = self._upload(before), self._upload(bias) if kind.has_bias else None
        options: dict[str, Any] = {"y_stride": stride, "y_offset": first, "add_to_y": kind.adds_to_y}
        launches = self._operations.matmul(matrix, activations, y, bias=bias_buffer, **options)
        exact = before.astype(np.float64)
        exact[:, first:end] = kind.adds_to_y * exact[:, first:end] + kind.has_bias * bias + x @ dense.T
        return _Case(kind.name, launches, lambda: reference.difference(self._read(y, *exact.shape), exact))

    def _rope_kv_write(self) -> _Case:
        """With inputs and angles of few bits rotations are exact, in f16 too; values show its rounding and range."""
        shape, cache = self._kernels.shape, self._cache()
        qk = self._few_bits(self._num_tokens, shape.num_heads + shape.num_kv_heads, shape.head_dim)
        values = self._normal(self._num_tokens, shape.num_kv_heads, shape.head_dim)
        values[0] *= 1e6
        positions = np.concatenate([np.arange(c.start, c.start + c.num_tokens) for c in self._chunks])
        heads = np.concatenate([qk, values], axis=1)
        angles = self._few_bits(int(positions.max()) + 1, shape.rope_dim // 2, 2)
        qkv = self._upload(heads)
        launches = self._operations.rope_kv_write(qkv, self._upload(angles), cache, 0, shape)
        rotated = reference.rotate(qk, angles[positions], adjacent=shape.rope_adjacent)
        q, keys = rotated[:, : shape.num_heads], rotated[:, shape.num_heads :]
        slots = np.concatenate([self._slots(chunk)[chunk.start :] for chunk in self._chunks])

        def difference() -> float:
            differences = [np.abs(self._read(qkv, *heads.shape)[:, : shape.num_heads] - q).max()]
            found = CachePages(self._device, cache).read()
            for cached, written in zip(found, (keys, values.astype(np.float64)), strict=True):
                codes, scales = reference.quantize_kv(written, self._kernels.kv_cache_type)
                exact = np.zeros_like(cached)
                exact[slots, :, : shape.head_dim] = codes * scales[..., None].astype(np.float64)
                differences.append(np.abs(cached - exact).max())
            return float(np.max(differences))

        return _Case("rope_kv_write", launches, difference)

    def _attention(self) -> _Case:
        shape, cache = self._kernels.shape, self._cache()
        keys, values = (tokens[..., : shape.head_dim] for tokens in self._random_pages(cache).read())
        heads = self._normal(self._num_tokens, shape.num_heads + 2 * shape.num_kv_heads, shape.head_dim)
        out = self._spoilt(self._operations.rows(self._num_tokens, shape.num_heads * shape.head_dim, "self_test"))
        launches = self._operations.attention(self._upload(heads), cache, 0, out, shape)
        queries = np.split(heads[:, : shape.num_heads], self._ends[:-1])
        slots = map(self._slots, self._chunks)
        exact = np.concatenate(
            [reference.attention(q, keys[s], values[s]) for q, s in zip(queries, slots, strict=True)]
        )
        return _Case("attention", launches, lambda: reference.difference(self._read(out, *exact.shape), exact))

    def _copy_blocks(self) -> _Case:
        cache = self._cache()
        pages = self._random_pages(cache)
        before = pages.read()

        def difference() -> float:
            differences = []
            for tokens, copied in zip(before, pages.read(), strict=True):
                blocks = tokens.reshape(cache.num_blocks, -1)
                for source, target in self._block_copies:
                    blocks[target] = blocks[source]
                differences.append(reference.difference(copied, blocks))
            return max(differences)

        return _Case("copy_blocks", self._operations.copy_blocks(cache, self._kernels.shape), difference)

    def _quantize(self, consumer: Layout) -> _Case:
        x = self._normal(self._num_tokens, _NORM_WIDTH)
        out = self._activations(_NORM_WIDTH, consumer)
        launches = self._operations.quantize(out._replace(values=self._upload(x)))
        return _Case("quantize", launches, lambda: self._activations_difference(out, x.astype(np.float64)))

    def _swiglu(self, consumer: Layout) -> _Case:
        gate_up = self._normal(self._num_tokens, 2 * _FFN_SIZE) * 4
        out = self._activations(_FFN_SIZE, consumer)
        launches = self._operations.swiglu(self._upload(gate_up), out)
        return _Case("swiglu", launches, lambda: self._activations_difference(out, reference.swiglu(gate_up)))

    def _sample(self) -> float:
        """Ids are compared as numbers: a wrong one is far above the tolerance. Logits are the same for every model."""
        logits = 3 * np.random.default_rng(0).standard_normal((len(_SAMPLINGS), _VOCAB_SIZE), np.float32)
        best = np.argsort(-logits, kind="stable")
        rows = [RowParams(s, 7, i, (int(best[i, 0]),), num_logprobs=5) for i, s in enumerate(_SAMPLINGS)]
        sampler = Sampler(self._device, self._program.library, _VOCAB_SIZE, len(rows))
        for step in (-logits, logits):  # the first only leaves wrong ids behind, for the same reason as _spoilt
            sampler.enqueue(self._upload(step), rows)
            try:
                tokens = sampler.read()
            except ValueError:  # no logarithm can be taken of what a report holds
                return math.nan
        differences = []
        for token, row, order, params in zip(tokens, logits, best, rows, strict=True):
            logprobs = reference.log_softmax(row)
            row[order[0]] = -np.inf
            ids = [reference.sampled_id(row, params.sampling, params.position, params.choice), *order[:5]]
            found_ids, found_logprobs = zip((token.token_id, token.logprob), *token.top, strict=True)
            differences += [reference.difference(found_ids, ids), reference.difference(found_logprobs, logprobs[ids])]
        return float(np.max(differences))

    def _matrix(self, layout: Layout) -> tuple[Matrix, Doubles]:
        """A matrix of `layout`, and its exact values."""
        cols = _QUANTISED_COLS if layout.is_quantised else _FLOAT_COLS
        raw = reference.random_weights(self._rng, layout.tensor_type, _MATRIX_ROWS, cols)
        dense = quants.dequantize(raw, layout.tensor_type).astype(np.float64)
        return Matrix(self._upload(pack(layout, raw, cols)), layout, _MATRIX_ROWS, cols), dense

    def _input(self, layout: Layout, cols: int) -> tuple[Activations, Doubles]:
        """Random rows in the form that a matrix of `layout` takes, and their exact values in that form."""
        x = self._normal(self._num_tokens, cols)
        if not layout.is_quantised:
            return Activations(cols, self._upload(x), None), x.astype(np.float64)
        rows = reference.quantize(x)
        quantised = QuantisedRows(*(self._upload(array) for array in rows))
        exact = np.repeat(rows.scales.astype(np.float64), 32, axis=1) * rows.codes
        return Activations(cols, None, quantised), exact

    def _activations(self, width: int, consumer: Layout) -> Activations:
        """Rows in the form that matrices of a layout take."""
        rows = self._operations.activations(self._num_tokens, width, [self._matrix(consumer)[0]], "self_test")
        for buffer in (rows.values, *(rows.quantised or ())):
            if buffer is not None:
                self._spoilt(buffer)
        return rows

    def _activations_difference(self, found: Activations, exact: Doubles) -> float:
        if found.quantised is None:
            assert found.values is not None
            return reference.difference(self._read(found.values, *exact.shape), exact)
        rows, groups = len(exact), -(-exact.shape[1] // 32)
        return reference.quantised_difference(
            reference.Quantised(
                self._read(found.quantised.codes, rows, groups * 32, dtype=np.int8),
                self._read(found.quantised.scales, rows, groups),
                self._read(found.quantised.sums, rows, groups, 2, dtype=np.int16),
            ),
            exact,
        )

    def _cache(self) -> KVCache:
        """A cache of zeros, for one case alone."""
        return KVCache(self._device, self._cache_shape, self._num_blocks)

    def _random_pages(self, cache: KVCache) -> CachePages:
        pages = CachePages(self._device, cache)
        pages.write(self._normal(*pages.num_tokens), self._normal(*pages.num_tokens))
        return pages

    def _slots(self, chunk: ScheduledChunk) -> NDArray[np.int64]:
        """Where the cache has the tokens of a chunk's sequence, from position 0 to the chunk's end."""
        blocks, offsets = np.divmod(np.arange(chunk.start + chunk.num_tokens), self._kernels.block_size)
        return np.array(chunk.sequence.block_table)[blocks] * self._kernels.block_size + offsets

    def _spoilt(self, buffer: cl.Buffer) -> cl.Buffer:
        """`buffer`, full of NaN: it could hold what it should, left by another run, and a kernel do nothing."""
        self._device.write(buffer, np.full(buffer.size, 0xFF, np.uint8))
        return buffer

    def _normal(self, *shape: int) -> Floats:
        return self._rng.standard_normal(shape, np.float32)

    def _few_bits(self, *shape: int) -> Floats:
        """Multiples of 1/8 from −1 to 1."""
        return (self._rng.integers(-8, 9, shape) / 8).astype(np.float32)

    def _upload(self, array: NDArray[Any]) -> cl.Buffer:
        return self._device.upload(array, "self_test")

    def _read(self, buffer: cl.Buffer, *shape: int, dtype: DTypeLike = np.float32) -> NDArray[Any]:
        out = np.empty(shape, dtype)
        self._device.read(buffer, out)
        return out


def _chunk(start: int, num_tokens: int, block_ids: Iterable[int]) -> ScheduledChunk:
    """Tokens of a sequence that has the given blocks; its ids are rows of a matrix."""
    prompt_ids = tuple(position % _MATRIX_ROWS for position in range(start + num_tokens))
    request = Request(
        id=0, prompt_ids=prompt_ids, sampling=SamplingParams(seed=0), limits=GenerationLimits(max_tokens=1), arrival=0.0
    )
    sequence = Sequence(request, 0, (0.0, 0, 0), 1, frozenset(), 1)
    sequence.block_table.extend(block_ids)
    return ScheduledChunk(sequence, start, num_tokens, num_rows=1)
