"""swiglu.cl against docs/numerics.md sections 2 and 6."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from engine_service.compute.kernel_library import KernelLibrary
from tests.kernels import reference_ops
from tests.kernels.reference_ops import Quantized

Floats = NDArray[np.float32]
CHUNK = 96


def make(num_rows: int, n: int) -> Floats:
    """gate_up [num_rows][2 n]: gates from the flat to the saturated range."""
    rng = np.random.default_rng([num_rows, n])
    return (rng.standard_normal((num_rows, 2 * n)) * np.exp2(rng.uniform(-6, 6, (num_rows, 2 * n)))).astype(np.float32)


def num_items(gate_up: Floats) -> int:
    num_rows, width = gate_up.shape
    return int(num_rows * -(-(width // 2) // CHUNK))


def activate(library: KernelLibrary, gate_up: Floats) -> Floats:
    kernel = library.kernel("swiglu", "swiglu", CHUNK=CHUNK)
    n = gate_up.shape[1] // 2
    y = np.full((len(gate_up), n), np.nan, np.float32)
    buffers = [library.device.upload(array, "array") for array in (gate_up, y)]
    kernel.set_args(*buffers, np.int32(n))
    library.device.run(kernel, num_items(gate_up))
    library.device.read(buffers[1], y)
    return y


def activate_quantized(library: KernelLibrary, gate_up: Floats) -> Quantized:
    kernel = library.kernel("swiglu", "swiglu", CHUNK=CHUNK, QUANTIZE=1)
    n = gate_up.shape[1] // 2
    shape = (len(gate_up), -(-n // 32))
    codes = np.full((shape[0], shape[1] * 32), 99, np.int8)
    result = Quantized(codes, np.full(shape, np.nan, np.float32), np.full((*shape, 2), 99, np.int16))
    buffers = [library.device.upload(array, "array") for array in (gate_up, *result)]
    kernel.set_args(*buffers, np.int32(n))
    library.device.run(kernel, num_items(gate_up))
    outputs: tuple[NDArray[Any], ...] = result
    for buffer, out in zip(buffers[1:], outputs, strict=True):
        library.device.read(buffer, out)
    return result


def assert_same_bits(actual: Floats, expected: Floats) -> None:
    np.testing.assert_array_equal(actual.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("n", [1, 31, 96, 172, 1000])
def test_rows_equal_the_definition_to_the_bit(library: KernelLibrary, n: int) -> None:
    """Any length, whole groups and chunks or not."""
    gate_up = make(3, n)
    assert_same_bits(activate(library, gate_up), reference_ops.swiglu(gate_up[:, :n], gate_up[:, n:]))


def test_result_is_close_to_float64(library: KernelLibrary) -> None:
    """Within 1e-5 of g / (1 + exp(-g)) × u in float64."""
    gate_up = make(4, 256)
    gate, up = gate_up[:, :256].astype(np.float64), gate_up[:, 256:]
    exact = gate / (1 + np.exp(-gate)) * up
    np.testing.assert_allclose(activate(library, gate_up), exact, rtol=1e-5, atol=1e-30)


def test_saturated_gates_stay_finite(library: KernelLibrary) -> None:
    """A large positive gate passes `up` on, a large negative one gives almost zero, and neither overflows."""
    gate_up = np.array([[1000, -1000, 2, 2]], np.float32)
    np.testing.assert_allclose(activate(library, gate_up), [[2000, 0]], atol=1e-30)


@pytest.mark.parametrize("n", [1, 96, 172])
def test_quantised_rows_are_the_quantisation_of_the_f32_rows(library: KernelLibrary, n: int) -> None:
    """The fused variant gives the codes, scales and sums of section 2, padding included."""
    gate_up = make(3, n)
    for actual, expected in zip(
        activate_quantized(library, gate_up), reference_ops.quantize(activate(library, gate_up)), strict=True
    ):
        np.testing.assert_array_equal(actual, expected)


def test_a_row_alone_gives_the_bits_it_has_in_a_batch(library: KernelLibrary) -> None:
    """A batch of one equals the same row of a larger batch."""
    gate_up = make(4, 200)
    together = activate(library, gate_up)
    for row in range(4):
        assert_same_bits(activate(library, gate_up[row : row + 1])[0], together[row])
