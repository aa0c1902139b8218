"""rms_norm.cl against docs/numerics.md sections 2 and 5."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops
from tests.kernels.reference_ops import Quantized

Floats = NDArray[np.float32]
EPS = 1e-5


def make(num_rows: int, n: int) -> tuple[Floats, Floats]:
    """Rows of different magnitude, and a weight."""
    rng = np.random.default_rng([num_rows, n])
    x = rng.standard_normal((num_rows, n)) * np.exp2(rng.uniform(-12, 12, (num_rows, 1)))
    return x.astype(np.float32), rng.standard_normal(n, np.float32)


def run(
    library: KernelLibrary, x: Floats, weight: Floats, row_ids: list[int] | None, outputs: tuple[NDArray[Any], ...]
) -> None:
    """Fills `outputs`, (y,) or (xq, xd, xsum), with the norm of all rows or of `row_ids`."""
    defines = ({} if row_ids is None else {"ROW_IDS": 1}) | ({"QUANTIZE": 1} if len(outputs) == 3 else {})
    kernel = library.kernel("rms_norm", "rms_norm", **defines)
    inputs = (x, weight) if row_ids is None else (x, np.array(row_ids, np.int32), weight)
    buffers = [library.device.upload(array, "array") for array in (*inputs, *outputs)]
    kernel.set_args(*buffers, np.int32(x.shape[1]), np.float32(EPS))
    library.device.run(kernel, len(outputs[0]))
    for buffer, out in zip(buffers[len(inputs) :], outputs, strict=True):
        library.device.read(buffer, out)


def normalise(library: KernelLibrary, x: Floats, weight: Floats, row_ids: list[int] | None = None) -> Floats:
    y = np.full((len(x) if row_ids is None else len(row_ids), x.shape[1]), np.nan, np.float32)
    run(library, x, weight, row_ids, (y,))
    return y


def normalise_quantized(
    library: KernelLibrary, x: Floats, weight: Floats, row_ids: list[int] | None = None
) -> Quantized:
    shape = (len(x) if row_ids is None else len(row_ids), -(-x.shape[1] // 32))
    codes = np.full((shape[0], shape[1] * 32), 99, np.int8)
    result = Quantized(codes, np.full(shape, np.nan, np.float32), np.full((*shape, 2), 99, np.int16))
    run(library, x, weight, row_ids, result)
    return result


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("n", [1, 7, 31, 32, 33, 64, 172, 896, 2048])
def test_rows_equal_the_definition_to_the_bit(library: KernelLibrary, n: int) -> None:
    """Any length, whole groups of 32 or not; many rows, since a sum in another order seldom shows."""
    x, weight = make(100, n)
    assert_same_bits(normalise(library, x, weight), reference_ops.rms_norm(x, weight, EPS))


def test_result_is_close_to_float64(library: KernelLibrary) -> None:
    """Within 1e-5 of the formula in float64."""
    x, weight = make(4, 2048)
    x64 = x.astype(np.float64)
    exact = x64 / np.sqrt((x64**2).mean(axis=1, keepdims=True) + EPS) * weight
    np.testing.assert_allclose(normalise(library, x, weight), exact, rtol=1e-5, atol=1e-6)


def test_row_ids_choose_the_rows(library: KernelLibrary) -> None:
    """Output row i is input row row_ids[i], in any order and repeated, with the bits it has in the whole batch."""
    x, weight = make(6, 172)
    row_ids = [5, 0, 0, 3]
    assert_same_bits(normalise(library, x, weight, row_ids), normalise(library, x, weight)[row_ids])


def test_a_row_alone_gives_the_bits_it_has_in_a_batch(library: KernelLibrary) -> None:
    """A batch of one equals the same row of a larger batch."""
    x, weight = make(6, 200)
    together = normalise(library, x, weight)
    for row in range(6):
        assert_same_bits(normalise(library, x[row : row + 1], weight)[0], together[row])


@pytest.mark.parametrize("n", [1, 32, 172, 2048])
@pytest.mark.parametrize("row_ids", [None, [4, 1]])
def test_quantised_rows_are_the_quantisation_of_the_f32_rows(
    library: KernelLibrary, n: int, row_ids: list[int] | None
) -> None:
    """The fused variant gives the codes, scales and sums of section 2, padding included."""
    x, weight = make(5, n)
    expected = reference_ops.quantize(normalise(library, x, weight, row_ids))
    for actual, values in zip(normalise_quantized(library, x, weight, row_ids), expected, strict=True):
        np.testing.assert_array_equal(actual, values)


def test_a_zero_row_stays_zero(library: KernelLibrary) -> None:
    """eps keeps a row of zeros finite, and its quantisation has scale 0."""
    x = np.zeros((1, 40), np.float32)
    assert_same_bits(normalise(library, x, np.ones(40, np.float32)), x)
    assert (normalise_quantized(library, x, np.ones(40, np.float32)).scale == 0).all()
