"""matmul_quant.cl and matmul_float.cl against docs/numerics.md section 4, to the bit, in every variant."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from gguf import GGMLQuantizationType as GgmlType
from numpy.typing import NDArray

from engine_service.compute.device import Device
from engine_service.compute.kernel_library import KernelLibrary
from engine_service.compute.quant_layouts import ROWS, layout_for, pack
from tests.engine_service.matrix_data import ALL_TYPES, QUANTISED_TYPES, dequantise_file, file_rows
from tests.kernels import reference_matmul, reference_ops

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

TOKENS = 8  # of a tile, at most
MAX_TOKENS = 2 * TOKENS + 1
SENTINEL = np.float32(-7.5)


class Variant(NamedTuple):
    """A kernel library, and the defines that choose instructions."""

    library: KernelLibrary
    defines: dict[str, int]


@pytest.fixture(scope="session", params=["avx2", "vnni", "portable"])
def variant(request: pytest.FixtureRequest, device: Device) -> Variant:
    """The kernels with each set of instructions that this machine has."""
    flags = Path("/proc/cpuinfo").read_text(encoding="ascii").split()
    if request.param == "vnni" and not {"avx512_vnni", "avx512vl"} <= set(flags):
        pytest.skip("this processor has no AVX512_VNNI")
    library = KernelLibrary(device, portable=request.param == "portable")
    return Variant(library, {"CLF_VNNI": int(request.param == "vnni")})


def matmul(
    variant: Variant,
    tensor_type: GgmlType,
    raw: Bytes,
    x: Floats,
    *,
    bias: Floats | None = None,
    y: Floats | None = None,
    num_tokens: int | None = None,
    num_items: int | None = None,
) -> Floats:
    """y (M, N) = x (M, K) times the file rows, (+ bias), or that added to the given y; of the first tokens only."""
    device, layout = variant.library.device, layout_for(tensor_type)
    source = "matmul_quant" if layout.is_quantised else "matmul_float"
    stride, offset = len(raw) + 8, 3
    guarded = np.full((len(x), stride), SENTINEL)
    if y is not None:
        guarded[:, offset:-5] = y
    inputs = [pack(layout, raw, x.shape[1]), *(reference_ops.quantize(x) if layout.is_quantised else [x])]
    inputs += [] if bias is None else [bias]
    counts = np.array([99, len(x) if num_tokens is None else num_tokens], np.int32)
    buffers = [device.upload(array, "array") for array in (*inputs, guarded, counts)]
    features = ({} if bias is None else {"BIAS": 1}) | ({} if y is None else {"RESIDUAL": 1})
    if layout.is_quantised:
        features |= variant.defines
    kernel = variant.library.kernel(source, source, **layout.defines, **features)
    kernel.set_args(*buffers, *map(np.int32, (1, x.shape[1], len(raw), stride, offset)))
    device.run(kernel, num_items or -(-len(raw) // ROWS))
    device.read(buffers[-2], guarded)
    assert (guarded[:, :offset] == SENTINEL).all()
    assert (guarded[:, -5:] == SENTINEL).all()
    return guarded[:, offset:-5]


def expected(tensor_type: GgmlType, raw: Bytes, x: Floats) -> Floats:
    """The oracle's y for what the layout holds."""
    layout = layout_for(tensor_type)
    packed, shape = pack(layout, raw, x.shape[1]), (len(raw), x.shape[1])
    if not layout.is_quantised:
        return reference_matmul.matmul_float(x, reference_matmul.unpack_float(layout.name, packed, *shape))
    matrix = reference_matmul.unpack_quantised(layout.name, packed, *shape)
    return reference_matmul.matmul_quantised(reference_ops.quantize(x), matrix)


def activations(num_tokens: int, k: int, *, seed: int = 0) -> Floats:
    """Rows with outlier channels 1000 times the rest, and one row of zeros."""
    rng = np.random.default_rng([num_tokens, k, seed])
    x = rng.standard_normal((num_tokens, k), dtype=np.float32)
    x[:, rng.integers(0, k, 3)] *= 1000
    x[num_tokens // 2] = 0
    return x


def assert_same_bits(actual: Floats, wanted: Floats) -> None:
    """Equal, NaN nowhere; the sign of zero is free."""
    np.testing.assert_array_equal(actual, wanted)
    assert np.isfinite(actual).all()


def widths(tensor_type: GgmlType) -> list[int]:
    """Values of K: below, at and past a segment of 512, with the tails that the layout allows."""
    layout = layout_for(tensor_type)
    if not layout.is_quantised:
        return [1, 64, 172, 512 + 32, 1025]
    return [256, 512, 512 + 256, 1024] if layout.block == 256 else [32, 64, 96, 512, 512 + 32]


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("n", [1, 7, 8, 9, 172])
def test_results_are_the_definitions_bits(variant: Variant, tensor_type: GgmlType, n: int) -> None:
    """Every layout, row count and width gives the oracle's bits and writes nothing beside them (GGUF-8, ATT-1)."""
    for k in widths(tensor_type):
        raw, x = file_rows(tensor_type, n, k, seed=k), activations(TOKENS + 2, k)
        assert_same_bits(matmul(variant, tensor_type, raw, x), expected(tensor_type, raw, x))


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_a_row_has_the_same_bits_in_any_batch(variant: Variant, tensor_type: GgmlType) -> None:
    """Batches of 1 to two tiles and one token give each row what it has alone."""
    k = widths(tensor_type)[-1]
    raw, x = file_rows(tensor_type, 25, k), activations(MAX_TOKENS, k)
    alone = np.concatenate([matmul(variant, tensor_type, raw, x[m : m + 1]) for m in range(MAX_TOKENS)])
    for num_tokens in range(1, MAX_TOKENS + 1):
        assert_same_bits(matmul(variant, tensor_type, raw, x[:num_tokens]), alone[:num_tokens])


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_work_items_share_the_rows_without_changing_them(variant: Variant, tensor_type: GgmlType) -> None:
    """One work-item, a few, or more than there are row groups: all rows are computed, to the same bits."""
    k = widths(tensor_type)[2]
    raw, x = file_rows(tensor_type, 172, k), activations(TOKENS + 1, k)
    wanted = expected(tensor_type, raw, x)
    for num_items in (1, 2, 3, 7, 11, 40):
        assert_same_bits(matmul(variant, tensor_type, raw, x, num_items=num_items), wanted)


@pytest.mark.parametrize("tensor_type", QUANTISED_TYPES, ids=lambda t: t.name)
@pytest.mark.parametrize("fill", [0x00, 0x7F, 0x80, 0xFF])
def test_extreme_codes_do_not_overflow(variant: Variant, tensor_type: GgmlType, fill: int) -> None:
    """The largest and smallest codes (-128 in Q8_0) and group scales times activations of +-127 stay exact."""
    k = 2 * layout_for(tensor_type).block
    raw = file_rows(tensor_type, 9, k, fill=fill)
    x = np.ones((TOKENS + 1, k), np.float32)
    x[1], x[2, ::2], x[3, k // 2 :] = -1, -1, -1
    assert_same_bits(matmul(variant, tensor_type, raw, x), expected(tensor_type, raw, x))


@pytest.mark.parametrize("name", ["Q4_K", "F16"])
def test_bias_is_added_and_then_the_residual(variant: Variant, name: str) -> None:
    """total + bias, then residual + total, each rounded once, in whole and in partial row groups."""
    tensor_type, rng = GgmlType[name], np.random.default_rng(0)
    raw, x = file_rows(tensor_type, 21, 512), activations(TOKENS + 1, 512)
    bias, residual = rng.standard_normal(21, np.float32), rng.standard_normal((len(x), 21), np.float32)
    biased = expected(tensor_type, raw, x) + bias
    assert_same_bits(matmul(variant, tensor_type, raw, x, bias=bias), biased)
    assert_same_bits(matmul(variant, tensor_type, raw, x, bias=bias, y=residual), residual + biased)


@pytest.mark.parametrize("tensor_type", ALL_TYPES, ids=lambda t: t.name)
def test_the_definition_is_a_matrix_product(tensor_type: GgmlType) -> None:
    """The oracle is within 1e-5 of the float64 product of what the weights and the quantised activations stand for."""
    k = widths(tensor_type)[-1]
    raw, x = file_rows(tensor_type, 33, k), activations(5, k)
    meant = x.astype(np.float64)
    if layout_for(tensor_type).is_quantised:
        codes, scale, _ = reference_ops.quantize(x)
        meant = codes.astype(np.float64) * np.repeat(scale, 32, axis=1)
    exact = meant @ dequantise_file(raw, tensor_type).astype(np.float64).T
    error = np.linalg.norm(expected(tensor_type, raw, x) - exact) / np.linalg.norm(exact)
    assert error < 1e-5


def test_no_tokens_write_nothing(variant: Variant) -> None:
    """A step without rows for this matmul leaves y alone."""
    for tensor_type in (GgmlType.Q4_0, GgmlType.F32):
        raw, x = file_rows(tensor_type, 8, 32), activations(3, 32)
        assert (matmul(variant, tensor_type, raw, x, num_tokens=0) == SENTINEL).all()


def digest() -> str:
    """Compute units of the device, and a hash of some results; run in a process of its own."""
    device = Device.open()
    hashed, variant = hashlib.sha256(), Variant(KernelLibrary(device), {})
    for tensor_type in (GgmlType.Q4_K, GgmlType.F16):
        hashed.update(matmul(variant, tensor_type, file_rows(tensor_type, 172, 768), activations(6, 768)).tobytes())
    return f"{device.handle.max_compute_units} {hashed.hexdigest()}"


def test_thread_count_changes_no_bit() -> None:
    """One thread and two give the same results."""

    def run(threads: int) -> list[str]:
        command = [sys.executable, "-c", "from tests.kernels.test_matmul import digest; print(digest())"]
        environment = {**os.environ, "POCL_MAX_PTHREAD_COUNT": str(threads)}
        root = Path(__file__).parent.parent.parent
        done = subprocess.run(
            command, env=environment, cwd=root, capture_output=True, text=True, check=True, timeout=60
        )
        return done.stdout.split()

    one, two = run(1), run(2)
    assert (one[0], two[0]) == ("1", "2")
    assert one[1] == two[1]
